"""Plain forecasts as controls, against the definition of MASE in the series' own units."""

from __future__ import annotations

import numpy as np
import pytest

from raymeta.evaluation.controls.naive import MovedSeason, Naive, SeasonalNaive


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


def test_a_season_of_one_step_is_the_last_value(untrained):
    tasks = untrained("employment", "tasks.season=1", "tasks.difference=last").tasks
    assert not SeasonalNaive().serves(tasks)
    assert Naive().serves(tasks)
