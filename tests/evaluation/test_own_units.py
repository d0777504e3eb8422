"""Forecasts in the series' own units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.own_units import forecasts_of, smape
from raymeta.evaluation.scores import MetaTest


def test_smape_is_that_of_the_m3_competition():
    found = smape(
        torch.tensor([[110.0, 0.0], [1.0, -1.0]]), torch.tensor([[90.0, 0.0], [1.0, 3.0]])
    )
    assert found.tolist() == pytest.approx([(200 * 20 / 200 + 0) / 2, (0 + 200 * 4 / 4) / 2])


def test_rows_of_a_forecast_have_measures_in_own_units(monkeypatch, untrained):
    from raymeta.evaluation import controls  # noqa: PLC0415
    from raymeta.evaluation.controls.naive import Naive  # noqa: PLC0415

    monkeypatch.setattr(controls, "CONTROLS", (Naive(),))
    own = untrained("employment")
    result = meta_test(own, {}, label="tuned", num_episodes=6)
    past = own.tasks.query_past("test", 6)
    y = own.tasks.episodes("test", range(6)).query.y.numpy()
    actual = past.base + past.unit * y
    outputs = forecasts_of([own], 6, own.recipe.num_steps)[0].numpy()
    expected = {
        "tuned": past.base + past.unit * outputs,
        "naive": np.repeat(past.values[..., -1:], 12, axis=-1),
    }
    for row in result.rows:
        squares = (expected[row.name] - actual) ** 2
        assert row.own_units["squared error"].mean == pytest.approx(squares.mean(), rel=1e-9)
        assert 0 < row.own_units["sMAPE in %"].mean < 200
    assert MetaTest.from_json(result.to_json()) == result


def test_quantiles_have_the_crps_and_the_share_within_their_intervals(monkeypatch, untrained):
    from raymeta.evaluation import controls  # noqa: PLC0415
    from raymeta.evaluation.controls.naive import Naive  # noqa: PLC0415

    monkeypatch.setattr(controls, "CONTROLS", (Naive(),))
    levels = (0.05, 0.1, 0.5, 0.9)
    own = untrained("employment", f"tasks.quantiles={list(levels)}", "learner=maml")
    kept: dict[str, torch.Tensor] = {}
    result = meta_test(own, {}, label="tuned", num_episodes=6, keep_forecasts=kept.update)
    past = own.tasks.query_past("test", 6)
    y = own.tasks.episodes("test", range(6)).query.y.numpy()
    actual = past.base + past.unit * y
    assert (result.metric, result.higher_is_better) == ("scaled CRPS", False)
    assert [row.name for row in result.rows] == ["tuned", "naive"]
    for row, outputs in zip(result.rows, kept.values(), strict=True):
        ordered = np.sort(outputs.numpy().reshape(6, 1, 12, 4), axis=-1)
        quantiles = past.base[..., None] + past.unit[..., None] * ordered
        missed = actual[..., None] - quantiles
        tau = np.array(levels)
        crps = 2 * np.where(missed > 0, tau * missed, (tau - 1) * missed).mean(axis=-1)
        found = {name: score.mean for name, score in row.own_units.items()}
        assert list(found) == [
            "CRPS",
            "MASE",
            "sMAPE in %",
            "squared error",
            "% in the 80 % interval",
        ]
        assert found["CRPS"] == pytest.approx(crps.mean(), rel=1e-6)
        scaled = (crps / past.unit).mean()
        assert row.score.mean == pytest.approx(scaled, rel=1e-5)
        errors = np.abs(quantiles[..., 2] - actual)
        assert found["MASE"] == pytest.approx((errors / past.unit).mean(), rel=1e-6)
        assert found["squared error"] == pytest.approx((errors**2).mean(), rel=1e-6)
        is_in = (quantiles[..., 1] <= actual) & (actual <= quantiles[..., 3])
        assert found["% in the 80 % interval"] == pytest.approx(100 * is_in.mean())
    assert MetaTest.from_json(result.to_json()) == result


def test_rows_of_other_problems_have_none(untrained):
    result = meta_test(untrained("sinusoid"), {}, label="tuned", num_episodes=3)
    assert all(not row.own_units for row in result.rows)
