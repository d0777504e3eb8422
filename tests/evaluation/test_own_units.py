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


def test_rows_of_other_problems_have_none(untrained):
    result = meta_test(untrained("sinusoid"), {}, label="tuned", num_episodes=3)
    assert all(not row.own_units for row in result.rows)
