"""Linear constraints: tight ones have points, and infeasible ones are refused by their text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from ray import tune

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search import AxSearcher
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.sampling import PointSampler
from raymeta.search.settings import Method, SearchSettings
from raymeta.search.space import Point, Space


def fractions(count: int, *, integer: bool = False) -> tuple[Parameter, ...]:
    high = 100 if integer else 1
    return tuple(Parameter(name=f"f{i}", low=0, high=high, integer=integer) for i in range(count))


def sum_of(count: int, relation: str) -> str:
    return " + ".join(f"f{i}" for i in range(count)) + f" {relation}"


SPACES = {
    "ten fractions": Space(fractions(10), (sum_of(10, "<= 1"),)),
    "an equality": Space(fractions(4), (sum_of(4, "<= 1"), sum_of(4, ">= 1"))),
    "a thin slice": Space(fractions(6), (sum_of(6, "<= 0.001"),)),
    "whole numbers": Space(fractions(10, integer=True), (sum_of(10, "<= 100"),)),
    "whole numbers, an equality": Space(
        fractions(3, integer=True), (sum_of(3, "<= 100"), sum_of(3, ">= 100"))
    ),
}
every_space = pytest.mark.parametrize("name", SPACES)


def search(space: Space, method: Method, count: int) -> list[Point]:
    settings = SearchSettings(objectives=(("loss", "min"),), method=method, model="gp", num_sobol=3)
    model = AxModel(space, settings)
    points = []
    for number in range(count):
        proposal = model.propose({})
        assert proposal is not None
        assert proposal.source in (method, "sobol"), proposal.reason
        loss = sum(proposal.point.values())
        record = TrialRecord(proposal.point, proposal.source, "completed", [(1, loss, None)])
        model.learn({str(number): record})
        points.append(proposal.point)
    return points


@pytest.mark.slow
@every_space
def test_random_points_meet_tight_constraints(name: str) -> None:
    points = search(SPACES[name], "random", 8)
    assert all(SPACES[name].contains(point) for point in points)
    assert len({tuple(point.values()) for point in points}) == 8


@pytest.mark.slow
def test_sobol_points_meet_tight_constraints() -> None:
    space = SPACES["ten fractions"]
    assert all(space.contains(point) for point in search(space, "sobol", 6))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize(
    "constraints",
    [
        (sum_of(3, "<= -0.5"),),
        (sum_of(3, "<= 0.1"), sum_of(3, ">= 0.2")),
        ("f0 - f1 >= 0.5", "f1 - f2 >= 0.5", "f2 - f0 >= 0.5"),
    ],
    ids=["one", "two", "a cycle of three"],
)
def test_infeasible_constraints_are_refused_by_their_text(
    constraints: tuple[str, ...], integer: bool
) -> None:
    feasible = "f0 + f1 <= 150"
    with pytest.raises(SearchError, match="no point of the search space satisfies") as caught:
        Space(fractions(3, integer=integer), (feasible, *constraints))
    assert all(f"'{text}'" in str(caught.value) for text in constraints)
    assert feasible not in str(caught.value)


def test_a_bound_between_whole_numbers_is_infeasible() -> None:
    texts = ("f0 + f1 >= 3.2", "f0 + f1 <= 3.8")
    with pytest.raises(SearchError, match=re.escape(f"'{texts[0]}' and '{texts[1]}'")):
        Space(fractions(2, integer=True), texts)


def number(name: str, high: float, *, integer: bool = False) -> Parameter:
    return Parameter(name=name, low=0, high=high, integer=integer)


CORNERS = {
    "huge whole numbers": Space(
        (number("a", 2**40, integer=True), number("b", 2**40, integer=True)), ("a + b <= 1000",)
    ),
    "a whole number without freedom": Space(
        (number("a", 1), number("b", 1), number("c", 9, integer=True)), ("a + b + c <= 0.01",)
    ),
    "a number without freedom": Space((number("a", 1), number("b", 1)), ("a <= 0", "b <= 0.0001")),
}


@pytest.mark.parametrize("name", CORNERS)
def test_random_points_differ_where_constraints_leave_a_corner(name: str) -> None:
    space = CORNERS[name]
    sampler, rng = PointSampler(space), np.random.default_rng(0)
    points = [sampler.draw(rng) for _ in range(30)]
    assert all(space.contains(point) for point in points)
    assert len({tuple(point.values()) for point in points}) >= 29


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("x + y <= 1", r"constraints must be a list of texts, but got 'x \+ y <= 1'; put it in"),
        ([5], "constraints must be texts such as 'x \\+ 2 \\* y <= 3', but got 5"),
        ([None], "constraints must be texts .*, but got None"),
    ],
)
def test_constraints_other_than_a_list_of_texts_are_refused(constraints: Any, message: str) -> None:
    space = {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}
    with pytest.raises(SearchError, match=message):
        AxSearcher(space, metric="loss", mode="min", constraints=constraints)
    with pytest.raises(SearchError, match=f"outcome_{message}"):
        AxSearcher(space, metric="loss", mode="min", outcome_constraints=constraints)
