"""Which points are likely to fail, judged by the trials that did."""

from __future__ import annotations

from typing import Any

import pytest

from raymeta.experiment.parameter import Parameter
from raymeta.search.feasibility import Feasibility
from raymeta.search.space import Point, Space

CELL = Parameter(name="cell", choices=("rnn", "gru", "lstm"))
RANGES = [
    {"low": 0, "high": 1},
    {"low": 0.0, "high": 1e-9},
    {"low": -8e307, "high": 8e307},
    {"low": 1e-300, "high": 1e300, "log": True},
    {"low": 1, "high": 10**15, "integer": True},
    {"choices": (1, 2, 4, 8, 16)},
]


@pytest.mark.parametrize("limits", RANGES, ids=str)
def test_points_near_failed_trials_are_likely_to_fail(limits: dict[str, Any]) -> None:
    parameter = Parameter(name="x", **limits)
    low, high = parameter.ends[0], parameter.ends[-1]
    feasibility = Feasibility(Space((parameter,)), [{"x": low}], [{"x": high}])
    at_low, at_high = feasibility.probabilities([{"x": low}, {"x": high}])
    assert at_low == pytest.approx(1)
    assert at_high == pytest.approx(0)


def test_several_failures_outvote_a_success_as_near() -> None:
    space = Space((Parameter(name="x", low=0, high=1),))
    feasibility = Feasibility(space, [{"x": 0.4}], [{"x": 0.6}, {"x": 0.65}])
    left, middle, right = feasibility.probabilities([{"x": x} for x in (0.42, 0.5, 0.58)])
    assert left > 0.9
    assert right < 0.1
    assert middle < 0.5


def test_a_value_of_a_choice_that_fails_is_told_from_the_others() -> None:
    space = Space((CELL, Parameter(name="x", low=0, high=1, when=("cell", ("gru", "lstm")))))
    feasibility = Feasibility(
        space, [{"cell": "rnn"}, {"cell": "gru", "x": 0.5}], [{"cell": "lstm", "x": 0.5}]
    )
    points: list[Point] = [{"cell": "rnn"}, {"cell": "gru", "x": 0.6}, {"cell": "lstm", "x": 0.4}]
    assert [bool(p > 0.5) for p in feasibility.probabilities(points)] == [True, True, False]
