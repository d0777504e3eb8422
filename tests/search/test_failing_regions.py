"""A region in which trials fail is learnt and left."""

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
    """A search, two trials at a time, for the least negative sum of a point's numbers."""
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
    assert failed <= 10  # without a model of failures, 20
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
