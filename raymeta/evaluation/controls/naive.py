"""Controls for forecasts without learning: the last value or the last season, repeated.

Each forecast is the mean of a normal distribution, whose deviation is estimated from the past.

Shape legend: E episodes, M queries, P steps of the past, H horizon, Q levels of quantiles, O
outputs: H, or H Q.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch

from raymeta.episodes import Split, TaskDistribution
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.problem import Problem
from raymeta.tasks.cutter import moved_season, seasonal_naive

# The past [..., P], the steps of a season, the horizon -> the forecast [..., H], and the deviation
# [..., H] of the normal distribution around it.
Forecast = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


def judge_forecast(contest: Contest, forecast: Forecast, detail: str = "") -> Judgement:
    """Scores forecasts made from the past alone, in the series' own units."""
    own, problem = contest.own, contest.own.recipe.problem
    outputs = network_units(own.tasks, problem, "test", contest.num_episodes, forecast)
    targets = own.tasks.episodes("test", range(contest.num_episodes)).query.y.double()
    scores = problem.query_scores(outputs, targets)
    return Judgement(scores, detail=detail, outputs=outputs)


def network_units(
    tasks: TaskDistribution, problem: Problem, split: Split, num_episodes: int, forecast: Forecast
) -> torch.Tensor:
    """Converts forecasts for the first episodes to a network's outputs, float64 `[E, M, O]`.

    Where quantiles are asked for, they are those of the normal distribution of each step.
    """
    past = tasks.query_past(split, num_episodes)
    assert tasks.season is not None, "forecasts have a season"
    point, deviation = forecast(past.values, tasks.season, past.base.shape[-1])
    found, unit = (point - past.base) / past.unit, past.unit
    if problem.levels:
        normal = np.array([NormalDist().inv_cdf(level) for level in problem.levels])
        spread = (deviation / unit)[..., None] * normal  # [E, M, H, Q]
        found = (found[..., None] + spread).reshape(*found.shape[:-1], -1)
    return torch.from_numpy(found)


def last_value(past: np.ndarray, season: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """A random walk: σ √h (Hyndman & Athanasopoulos 2021, "Forecasting", section 5.5).

    σ² is the mean square of the past's changes.
    """
    del season
    return seasonal_naive(past, 1, horizon), _walk(np.diff(past), 1, horizon)


def _last_season(past: np.ndarray, season: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """A random walk of each step of the season: σ √k in the kth season ahead (the same table)."""
    changes = past[..., season:] - past[..., :-season]
    return seasonal_naive(past, season, horizon), _walk(changes, season, horizon)


def _walk(changes: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The deviations `[..., H]` of a walk whose steps, `season` apart, were these changes."""
    seasons = 1 + np.arange(horizon) // season
    deviation: np.ndarray = np.sqrt(np.square(changes).mean(axis=-1, keepdims=True) * seasons)
    return deviation


def _moved_season(past: np.ndarray, season: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """A random walk of the change d over a season, whose error after h steps is a sum.

    It is Σ_j (d_{T + h - j m} - d_T) over the seasons j = 0 … k ahead with h - j m > 0, and the
    covariance of two such differences is σ² times the smaller of the two numbers of steps.  σ² is
    the mean square of the past's changes of d.
    """
    changes = past[..., season:] - past[..., :-season]
    steps = np.diff(changes)
    variance = np.square(steps).mean(axis=-1, keepdims=True) if steps.shape[-1] else 0.0
    ahead = [np.arange(h, 0, -season) for h in range(1, horizon + 1)]
    sums = np.array([np.minimum.outer(own, own).sum() for own in ahead])
    return moved_season(past, season, horizon), np.sqrt(variance * sums)


class Naive(Control):
    """Repeats the last value."""

    name = "naive"
    label = "the last value"
    problems = frozenset({"forecast", "quantiles"})

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the last value."""
        return judge_forecast(contest, last_value)


class SeasonalNaive(Control):
    """Repeats the last season."""

    name = "seasonal_naive"
    label = "the last season"
    problems = frozenset({"forecast", "quantiles"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether a season has several steps; with one step this control would equal `Naive`."""
        return super().serves(tasks) and (tasks.season or 1) > 1

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the last season."""
        return judge_forecast(contest, _last_season)


class MovedSeason(Control):
    """The last season, moved by the change from the season before.

    It is what `tasks.difference: drift` gives a network to start from.
    """

    name = "moved_season"
    label = "the last season, moved by the last change"
    problems = frozenset({"forecast", "quantiles"})

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the moved season."""
        return judge_forecast(contest, _moved_season)
