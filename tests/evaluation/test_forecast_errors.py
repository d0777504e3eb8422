"""Errors of forecasts on meta-validation: intervals of a stated coverage, and their test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymeta.errors import DataError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.forecast_errors import (
    NUM_EPISODES,
    ForecastErrors,
    coverage_in_meta_test,
)
from raymeta.evaluation.scores import MetaTest, Row, Score
from raymeta.inference.files import load_forecaster
from raymeta.report.words import certainty_lines
from raymeta.tasks.load import load_tasks
from tests.inference.test_forecaster import forecast_run


def test_errors_of_a_new_series_are_below_the_half_width_as_often_as_stated() -> None:
    """Simulates series that differ in how hard they are; 9 of them are in meta-validation."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(2000):
        hard = rng.lognormal(sigma=1, size=10)
        rows = np.abs(rng.normal(size=(10, 6, 2))) * hard[:, None, None]
        errors = ForecastErrors(tuple(tuple(map(tuple, one)) for one in rows[:9].tolist()))
        hits.append((rows[9, 0] <= errors.half_widths(0.8)).mean())
    assert 0.79 < np.mean(hits) < 0.9


def test_half_widths_are_the_weighted_quantile() -> None:
    errors = ForecastErrors((((1.0,), (4.0,)), ((2.0,),), ((3.0,),)))
    # The mass up to 1, 2, 3, 4 is 1/8, 3/8, 5/8, 6/8.
    for coverage, wanted in ((0.1, 1), (0.3, 2), (0.6, 3), (0.7, 4), (0.75, 4)):
        assert errors.half_widths(coverage) == wanted
    with pytest.raises(DataError, match=r"at most 0\.75.*had 3 series, and 0\.9 needs 9"):
        errors.half_widths(0.9)
    with pytest.raises(DataError, match="coverage must be > 0 and < 1"):
        errors.half_widths(0)


def test_the_coverage_of_the_meta_test_is_that_of_its_intervals(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "run", "learner=ridge")
    opened = load_forecaster(str(run.path))
    tasks = load_tasks(run.experiment())
    networks = [Network(tasks, opened.trained.recipe, params) for params in opened.networks]
    episodes = [tasks.episode("test", index) for index in range(20)]
    answers = answers_of(networks[0])
    errors = np.abs(answers - np.stack([episode.query_y for episode in episodes]))
    for half in (0.5, 2.0):
        wide = ForecastErrors(tuple((((half,) * 4),) for _ in range(9)))
        found = coverage_in_meta_test(wide, networks, 20)
        assert found is not None
        assert found.found.mean == pytest.approx((errors <= half).mean())
        assert (found.wanted, found.num_tasks, found.half_width) == (0.8, 9, half)
        drawn = [tasks.episode("val", index).query_units for index in range(NUM_EPISODES)]
        assert found.val_units == {
            axis: len({unit for own in drawn if own for unit in own[axis].tolist()})
            for axis in ("shop", "town")
        }
    few = ForecastErrors(tuple((((1.0,) * 4),) for _ in range(3)))
    assert coverage_in_meta_test(few, networks, 20) is None
    assert found is not None
    row = Row("tuned", "tuned network", Score(1.0, 0.1), Score(1.0, 0.1))
    result = MetaTest("MASE", False, 20, {}, "", (row,), coverage=found)
    assert MetaTest.from_json(json.loads(json.dumps(result.to_json()))) == result
    (line,) = certainty_lines(result)
    units = f"{found.val_units['shop']} × shop, {found.val_units['town']} × town"
    assert line.startswith(f"intervals of 80 %, from 9 tasks of meta-validation ({units}), hold ")
    assert line.endswith("and are ± 2 wide in units of MASE")
    kept = result.to_json()
    earlier = {
        "wanted": 0.8,
        "found": kept["coverage"]["found"],
        "num_series": 9,
        "half_width": 2.0,
    }
    without = replace(result, coverage=replace(found, val_units={}))
    assert MetaTest.from_json({**kept, "coverage": earlier}) == without


def answers_of(network: Network) -> np.ndarray:
    """Answers 20 meta-test episodes, `[E, M, H]`."""
    episodes = network.tasks.episodes("test", range(20)).to(
        next(iter(network.params.values())).device, network.recipe.dtype
    )
    *_, last = network.recipe.learner.query_outputs(
        network.recipe.spec,
        network.recipe.problem,
        network.params,
        episodes.support,
        episodes.query,
        network.recipe.num_steps,
    )
    found: np.ndarray = last.numpy()
    return found
