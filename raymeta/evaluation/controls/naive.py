"""Controls for forecasts without learning: the last value or the last season, repeated.

Shape legend: E episodes, M queries, P steps of the past, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from raymeta.episodes import Split, TaskDistribution
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.tasks.forecast import moved_season, seasonal_naive

# The past [..., P], the steps of a season, the horizon -> the forecast [..., H].
Forecast = Callable[[np.ndarray, int, int], np.ndarray]


def judge_forecast(contest: Contest, forecast: Forecast, detail: str = "") -> Judgement:
    """Scores forecasts made from the past alone, in the series' own units."""
    own = contest.own
    outputs = network_units(own.tasks, "test", contest.num_episodes, forecast)
    targets = own.tasks.episodes("test", range(contest.num_episodes)).query.y.double()
    scores = own.recipe.problem.query_scores(outputs, targets)
    return Judgement(scores, detail=detail, outputs=outputs)


def network_units(
    tasks: TaskDistribution, split: Split, num_episodes: int, forecast: Forecast
) -> torch.Tensor:
    """Converts forecasts for the first episodes to a network's units, float64 `[E, M, H]`."""
    past = tasks.query_past(split, num_episodes)
    assert tasks.season is not None, "forecasts have a season"
    found = forecast(past.values, tasks.season, past.base.shape[-1])
    return torch.from_numpy((found - past.base) / past.unit)


class Naive(Control):
    """Repeats the last value."""

    name = "naive"
    label = "the last value"
    problems = frozenset({"forecast"})

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the last value."""
        return judge_forecast(contest, lambda past, _, horizon: seasonal_naive(past, 1, horizon))


class SeasonalNaive(Control):
    """Repeats the last season."""

    name = "seasonal_naive"
    label = "the last season"
    problems = frozenset({"forecast"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Not for seasons of one step, where it equals `Naive`."""
        return super().serves(tasks) and (tasks.season or 1) > 1

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the last season."""
        return judge_forecast(contest, seasonal_naive)


class MovedSeason(Control):
    """The last season, moved by the change from the season before.

    It is what `tasks.difference: drift` gives a network to start from.
    """

    name = "moved_season"
    label = "the last season, moved by the last change"
    problems = frozenset({"forecast"})

    def judge(self, contest: Contest) -> Judgement:
        """The scores of the moved season."""
        return judge_forecast(contest, moved_season)
