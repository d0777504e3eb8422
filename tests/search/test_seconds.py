"""The model of trials' durations, and the acquisition function that uses it."""

from __future__ import annotations

import math

import pytest
import torch

from raymeta.experiment.parameter import Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.records import Curve, Status, TrialRecord
from raymeta.search.seconds import SecondsModel, seconds_of
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space

SPACE = Space(
    (Parameter(name="x", low=0, high=1), Parameter(name="cell", choices=("rnn", "gru", "lstm")))
)
XS = (0.02, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)


def record(
    x: float, seconds: float, status: Status = "completed", cell: str = "gru", value: float = 0.0
) -> TrialRecord:
    curve: Curve = [(6, value, 0.1)]
    point = {"x": x, "cell": cell}
    return TrialRecord(point, "sobol", status, curve, began_s=5, latest_s=5 + seconds)


def test_a_stopped_trial_is_extrapolated_and_a_failed_one_ignored() -> None:
    assert seconds_of(record(0, 12), 6) == 12
    assert seconds_of(record(0, 12, "early_stopped"), 24) == 48
    assert seconds_of(record(0, 12, "early_stopped"), None) == 12
    assert seconds_of(record(0, 12, "failed"), 6) is None
    assert seconds_of(record(0, 12, "running"), 6) is None
    assert seconds_of(record(0, 0), 6) is None  # never timed


def new_model(acquisition: str) -> AxModel:
    settings = SearchSettings(
        objectives=(("score", "max"),), num_sobol=4, acquisition=acquisition, max_steps=6
    )
    return AxModel(SPACE, settings)


@pytest.mark.slow
def test_the_model_learns_seconds_that_vary_tenfold() -> None:
    model = new_model("auto")
    cells = ("rnn", "gru", "lstm")
    known = {
        f"{x} {cell}": record(x, 10 ** (x + 0.3 * number), cell=cell, value=math.sin(5 * x))
        for x in XS
        for number, cell in enumerate(cells)
    }
    model.learn(known)
    _, adapter = model.fitted()
    points = {trial: model.ax_space.to_ax(r.point) for trial, r in known.items()}
    seconds = {trial: seconds_of(r, None) or 0.0 for trial, r in known.items()}
    found = SecondsModel(adapter, seconds, points)
    # Ax's columns: x, and the place of the choice.
    for place, power in enumerate((0.0, 0.3, 0.6)):
        at = torch.tensor([[0.52, place]], dtype=torch.float64)
        assert float(found(at)) == pytest.approx(math.log(10) * (0.52 + power), abs=0.05)
    few = SecondsModel(adapter, dict(list(seconds.items())[:2]), points)
    assert few(torch.zeros(4, 1, 2)).tolist() == [[0.0]] * 4


@pytest.mark.slow
def test_of_two_equal_hopes_the_cheaper_one_is_tried() -> None:
    """Two hills of one height; trials on the right take a hundred times as long."""

    def proposed(acquisition: str, *, right: bool) -> float:
        records = {
            str(x): record(
                x,
                100.0 if (x > 0.5) == right else 1.0,
                value=math.cos(4 * math.pi * (x - 0.25)),
            )
            for x in (0.0, 0.12, 0.38, 0.5, 0.62, 0.88, 1.0)
        }
        proposal = new_model(acquisition).propose(records)
        assert proposal is not None
        assert (proposal.source, proposal.reason) == ("bo", "")
        return float(proposal.point["x"])

    assert proposed("log_nei_per_second", right=True) < 0.5
    assert proposed("log_nei_per_second", right=False) > 0.5
