"""Plain forecasts as controls, against the definition of MASE in the series' own units."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from raymeta.evaluation.controls.naive import (
    MovedSeason,
    Naive,
    SeasonalNaive,
    _last_season,
    _moved_season,
    last_value,
)
from tests.reference import crps_of


def mase(forecast: np.ndarray, actual: np.ndarray, past: np.ndarray, season: int) -> float:
    """MASE by Hyndman & Koehler 2006, written out."""
    scale = sum(abs(past[t] - past[t - season]) for t in range(season, len(past)))
    scale /= len(past) - season
    return sum(abs(f - a) for f, a in zip(forecast, actual, strict=True)) / len(actual) / scale


@pytest.mark.parametrize("control", [Naive(), SeasonalNaive(), MovedSeason()])
def test_scores_are_mase(control, untrained, contest_of):
    own = untrained("employment")
    judged = control.judge(contest_of(own, num_episodes=5))
    past = own.tasks.query_past("test", 5)
    y = own.tasks.episodes("test", range(5)).query.y.numpy()
    for row in range(5):
        values = past.values[row, 0]
        actual = past.base[row, 0] + past.unit[row, 0] * y[row, 0]
        forecast = {
            "naive": np.full(12, values[-1]),
            "seasonal_naive": values[-12:],
            "moved_season": values[-12:] + values[-1] - values[-13],
        }[control.name]
        expected = mase(forecast, actual, values, 12)
        assert judged.scores[row, 0].item() == pytest.approx(expected, rel=1e-9)


def walk_of(kind: str, rng: np.random.Generator, season: int, length: int) -> np.ndarray:
    """Draws 4,000 series for which the forecast of that kind is the mean of what comes."""
    shocks = rng.normal(size=(4000, length))
    if kind == "naive":
        return shocks.cumsum(axis=1)
    if kind == "moved_season":
        shocks = shocks.cumsum(axis=1)
    for step in range(season, length):
        shocks[:, step] += shocks[:, step - season]
    return shocks


@pytest.mark.parametrize(
    ("kind", "forecast"),
    [("naive", last_value), ("seasonal_naive", _last_season), ("moved_season", _moved_season)],
)
def test_the_deviation_is_that_of_the_errors_on_series_of_the_kind(kind, forecast):
    season, horizon, past = 3, 7, 200
    series = walk_of(kind, np.random.default_rng(0), season, past + horizon)
    found, deviation = forecast(series[:, :past], season, horizon)
    errors = series[:, past:] - found
    assert deviation.shape == (4000, horizon)
    np.testing.assert_allclose(
        np.sqrt(np.square(deviation).mean(axis=0)), errors.std(axis=0), rtol=0.05
    )


def test_controls_give_the_quantiles_of_their_normal_distributions(untrained, contest_of):
    """And their score is the pinball loss of these, in units of MASE."""
    quantiles = ("tasks.quantiles=[0.1, 0.3, 0.5, 0.9]", "learner=maml")
    own, plain = untrained("employment", *quantiles), untrained("employment")
    judged = Naive().judge(contest_of(own, num_episodes=5))
    point = Naive().judge(contest_of(plain, num_episodes=5))
    assert judged.outputs is not None
    outputs = judged.outputs.view(5, 1, 12, 4).numpy()
    assert point.outputs is not None
    np.testing.assert_allclose(outputs[..., 2], point.outputs.numpy(), rtol=1e-9)
    past = own.tasks.query_past("test", 5)
    changes = np.diff(past.values[:, 0])
    deviation = np.sqrt(np.square(changes).mean(axis=1, keepdims=True) * np.arange(1, 13))
    for place, level in enumerate((0.1, 0.3, 0.5, 0.9)):
        wanted = NormalDist().inv_cdf(level) * deviation / past.unit[:, 0]
        np.testing.assert_allclose(outputs[:, 0, :, place] - outputs[:, 0, :, 2], wanted, atol=1e-9)
    y = own.tasks.episodes("test", range(5)).query.y
    for row in range(5):
        wanted = crps_of(judged.outputs[row], y[row].double(), (0.1, 0.3, 0.5, 0.9))
        assert judged.scores[row].mean().item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_season_of_one_step_is_the_last_value(untrained):
    tasks = untrained("employment", "tasks.season=1", "tasks.difference=last").tasks
    assert not SeasonalNaive().serves(tasks)
    assert Naive().serves(tasks)
