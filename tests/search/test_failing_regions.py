"""The search learns a region in which trials fail, and leaves it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raymeta.experiment.parameter import Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space

pytestmark = pytest.mark.slow

NUM_TRIALS = 25


def failures(
    parameters: list[Parameter], fails: Callable[[Point], bool], seed: int
) -> tuple[int, list[Point], list[str]]:
    """Searches, two trials at a time, for the least negative sum of a point's numbers."""
    settings = SearchSettings(objectives=(("loss", "min"),), num_sobol=5, seed=seed)
    model = AxModel(Space(tuple(parameters)), settings)
    running: dict[str, TrialRecord] = {}
    changes: dict[str, TrialRecord] = {}
    failed = 0
    points: list[Point] = []
    sources: list[str] = []
    for number in range(NUM_TRIALS):
        proposal = model.propose(changes)
        assert proposal is not None
        points.append(proposal.point)
        sources.append(proposal.source)
        running[str(number)] = TrialRecord(proposal.point, proposal.source)
        changes = {str(number): running[str(number)]}
        if len(running) == 2:
            first = next(iter(running))
            point = running.pop(first).point
            loss = -sum(value for value in point.values() if isinstance(value, int | float))
            failed += fails(point)
            changes[first] = (
                TrialRecord(point, "bo", "failed")
                if fails(point)
                else TrialRecord(point, "bo", "completed", [(1, loss, None)])
            )
    return failed, points, sources


@pytest.mark.parametrize("seed", range(3))
def test_a_failing_corner_that_would_be_best_is_left(seed: int) -> None:
    parameters = [Parameter(name=name, low=0, high=1) for name in ("width", "lr")]
    failed, points, sources = failures(parameters, lambda point: point["width"] > 0.7, seed)
    assert failed <= 4  # without a model of failures, 20
    assert len({tuple(point.values()) for point in points}) == NUM_TRIALS
    assert set(sources) == {"sobol", "bo"}


@pytest.mark.parametrize("acquisition", ["auto", "log_ei", "log_nei", "ucb"])
def test_failed_trials_leave_every_acquisition_function_its_model(acquisition: str) -> None:
    settings = SearchSettings(objectives=(("loss", "min"),), num_sobol=3, acquisition=acquisition)
    model = AxModel(Space((Parameter(name="x", low=0, high=1),)), settings)
    records = {
        str(x): TrialRecord({"x": x}, "sobol", "completed", [(1, -x, None)])
        for x in (0.1, 0.3, 0.5, 0.6)
    }
    records["failed"] = TrialRecord({"x": 0.9}, "sobol", "failed")
    proposal = model.propose(records)
    assert proposal is not None
    assert (proposal.source, proposal.reason) == ("bo", "")
    assert model.statuses()["failed"] == "failed"


def test_a_region_is_left_after_two_failures() -> None:
    settings = SearchSettings(objectives=(("loss", "min"),), num_sobol=4)
    model = AxModel(Space((Parameter(name="x", low=0, high=1),)), settings)
    changes = {
        str(x): TrialRecord({"x": x}, "sobol", "completed", [(1, -x, None)])
        for x in (0.05, 0.2, 0.4, 0.6)
    }
    changes |= {str(x): TrialRecord({"x": x}, "bo", "failed") for x in (0.8, 0.95)}
    for number in range(6):
        proposal = model.propose(changes)
        assert proposal is not None
        x = proposal.point["x"]
        assert (x < 0.75, proposal.source) == (True, "bo")
        changes = {f"t{number}": TrialRecord({"x": x}, "bo", "completed", [(1, -x, None)])}


def test_a_point_that_is_known_to_fail_is_not_proposed_and_it_is_said() -> None:
    settings = SearchSettings(objectives=(("loss", "min"),), num_sobol=4)
    space = Space((Parameter(name="x", low=0, high=1),))
    model = AxModel(space, settings, why_not=lambda p: f"x {p['x']:.1f}" if p["x"] > 0.5 else "")
    changes: dict[str, TrialRecord] = {}
    told = []
    for number in range(9):
        proposal = model.propose(changes)
        assert proposal is not None
        x = proposal.point["x"]
        assert x <= 0.5
        told.append(proposal.passed_over)
        record = TrialRecord(proposal.point, proposal.source, "completed", [(1, -x, None)])
        changes = {str(number): record}
    assert any(told[:4])
    assert all(text.startswith(("x 0.", "x 1.")) for text in told if text)
    assert sum(map(bool, told[6:])) <= 2  # the model has learnt where not to look
    assert max(float(r.point["x"]) for r in model._records.values() if r.curve) > 0.4
    assert set(model.statuses().values()) == {"completed", "failed"}
