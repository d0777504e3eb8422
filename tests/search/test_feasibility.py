"""Which points are likely to fail, judged by the trials that did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search.feasibility import Feasibility, nearest_allowed
from raymeta.search.space import Point, Space
from raymeta.search.tried_points import TriedPoints

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
    assert at_low > 0.6
    assert at_high < 0.4


def test_several_failures_outvote_a_success_as_near() -> None:
    space = Space((Parameter(name="x", low=0, high=1),))
    feasibility = Feasibility(space, [{"x": 0.4}], [{"x": 0.6}, {"x": 0.65}])
    left, middle, right = feasibility.probabilities([{"x": x} for x in (0.2, 0.5, 0.8)])
    assert left > middle > right
    assert right < 0.4


def test_the_parameter_that_failures_depend_on_is_found() -> None:
    names = ("width", "rate", "depth")
    space = Space(tuple(Parameter(name=name, low=0, high=1) for name in names))
    rng = np.random.default_rng(0)
    points = [dict(zip(names, row, strict=True)) for row in rng.random((25, 3)).tolist()]
    succeeded = [point for point in points if point["width"] < 0.7]
    failed = [point for point in points if point["width"] >= 0.7]
    feasibility = Feasibility(space, succeeded, failed)
    fresh = [dict(zip(names, row, strict=True)) for row in rng.random((200, 3)).tolist()]
    likely = feasibility.probabilities(fresh)
    assert max(p for p, at in zip(likely, fresh, strict=True) if at["width"] > 0.8) < 0.5
    assert min(p for p, at in zip(likely, fresh, strict=True) if at["width"] < 0.5) > 0.7


def test_many_trials_are_judged_as_few_are() -> None:
    space = Space((Parameter(name="x", low=0, high=1),))
    points: list[Point] = [{"x": x} for x in np.linspace(0, 1, 250).tolist()]
    feasibility = Feasibility(space, points[:200], points[200:])
    assert feasibility.probabilities(points[:190]).min() > 0.5
    assert feasibility.probabilities(points[210:]).max() < 0.5


def test_a_point_known_to_fail_gives_way_to_the_nearest_that_is_not() -> None:
    space = Space((Parameter(name="x", low=0, high=1),))
    tried, rng = TriedPoints(space), np.random.default_rng(0)
    found = nearest_allowed(space, {"x": 0.9}, tried, rng, lambda p: "big" if p["x"] > 0.5 else "")
    assert 0.45 < found["x"] <= 0.5
    with pytest.raises(SearchError, match=r"none of 256 random points.* may not since no memory"):
        nearest_allowed(space, {"x": 0.9}, tried, rng, lambda _: "no memory")


def test_a_failing_value_of_a_choice_is_distinguished_from_the_others() -> None:
    space = Space((CELL, Parameter(name="x", low=0, high=1, when=("cell", ("gru", "lstm")))))
    feasibility = Feasibility(
        space, [{"cell": "rnn"}, {"cell": "gru", "x": 0.5}], [{"cell": "lstm", "x": 0.5}]
    )
    points: list[Point] = [{"cell": "rnn"}, {"cell": "gru", "x": 0.6}, {"cell": "lstm", "x": 0.4}]
    assert [bool(p > 0.5) for p in feasibility.probabilities(points)] == [True, True, False]
