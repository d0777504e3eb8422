"""Ray Tune's search spaces become raymeta's."""

from __future__ import annotations

import enum
from collections import deque
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search.space import Space
from raymeta.search.tune_space import tune_space

DOMAIN = tune.uniform(0, 1)


class Schedule:
    """A callable record."""

    def __init__(self, rate: Any) -> None:
        self.rate = rate

    def __call__(self) -> Any:
        return self.rate


class Slotted:
    """A record without a `__dict__`."""

    __slots__ = ("rate",)

    def __init__(self, rate: Any) -> None:
        self.rate = rate


class Config:
    """Settings as attributes of a class."""

    rate = DOMAIN


class Inherited(Config):
    """Further settings."""


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (tune.uniform(-1, 2), {"low": -1, "high": 2}),
        (tune.loguniform(1e-4, 1), {"low": 1e-4, "high": 1, "log": True}),
        (tune.quniform(0.1, 1, 0.1), {"low": 0.1, "high": 1, "step": 0.1}),
        (tune.qloguniform(5, 100, 5), {"low": 5, "high": 100, "step": 5, "log": True}),
        (tune.randint(2, 9), {"low": 2, "high": 8, "integer": True}),
        (tune.lograndint(1, 100), {"low": 1, "high": 99, "integer": True, "log": True}),
        (tune.qrandint(8, 64, 8), {"low": 8, "high": 64, "step": 8, "integer": True}),
        (tune.qrandint(5, 23, 10), {"low": 10, "high": 20, "step": 10, "integer": True}),
        (tune.choice([1, 0.5]), {"choices": (1.0, 0.5)}),
        (tune.choice(["a", "b"]), {"choices": ("a", "b")}),
        (tune.choice([1, 2, 4]), {"choices": (1, 2, 4)}),
        (tune.choice([True, False]), {"choices": (True, False)}),
    ],
)
def test_every_domain_becomes_the_parameter_it_describes(domain: Any, expected: Any) -> None:
    found = tune_space({"x": domain})
    assert found.space == Space((Parameter(name="x", **expected),))
    assert not found.constants


@pytest.mark.parametrize(
    "domain",
    [tune.quniform(0.1, 1, 0.1), tune.qrandint(8, 64, 8), tune.randint(2, 9), tune.uniform(0, 1)],
)
def test_what_tune_draws_lies_in_the_parameter_and_on_its_steps(domain: Any) -> None:
    (parameter,) = tune_space({"x": domain}).space.parameters
    for value in map(float, domain.sample(size=50)):
        assert parameter.contains(value)
        assert parameter.snapped(value) == pytest.approx(value)


def test_nested_keys_are_joined_and_constants_kept_apart() -> None:
    config = {"optimizer": {"lr": tune.uniform(0, 1), "name": "adam"}, "layers": 2, "list": [1, 2]}
    found = tune_space(config)
    assert [parameter.name for parameter in found.space.parameters] == ["optimizer/lr"]
    assert found.constants == {"optimizer/name": "adam", "layers": 2, "list": [1, 2]}
    assert found.config({"optimizer/lr": 0.5}) == {
        "optimizer": {"lr": 0.5, "name": "adam"},
        "layers": 2,
        "list": [1, 2],
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tune.randn(0, 1), "x: a normal distribution has no bounds"),
        (tune.qrandn(0, 1, 0.1), "x: a normal distribution has no bounds"),
        (tune.sample_from(lambda _: 1), "x: Function cannot be searched"),
        (tune.choice([1, "a"]), "x: tune.choice over values of several types"),
        (tune.choice([[1], [2]]), "x: tune.choice over list cannot be searched"),
        (tune.grid_search([1, 2]), "x: tune.grid_search tries all values by itself"),
        (tune.randint(0, 10**400), "x: bounds must be finite numbers"),
        (tune.choice([1, 10**400]), "x: a choice must be finite"),
        (tune.choice([]), "x: tune.choice must have 1 to 1000 values, but got 0"),
        (tune.choice(list(range(1001))), "x: tune.choice must have 1 to 1000 values, but got 1001"),
        (tune.choice([0, 2**53 + 1]), "x: a whole number among choices must be at most 2..53"),
        (tune.choice([0.5, -(2**63)]), "x: a whole number among choices must be at most 2..53"),
        (deque([DOMAIN]), r"x\[0\]: a Float domain within a deque"),
        ({"y": DOMAIN}.values(), r"x\[0\]: a Float domain within a dict_values"),
        (partial(max, DOMAIN), r"x\(0\): a Float domain within a partial"),
        (partial(dict, lr=[DOMAIN]), r"x\(lr=\)\[0\]: a Float domain within a partial"),
        (Schedule(DOMAIN), r"x\.rate: a Float domain within a Schedule"),
        (Slotted(DOMAIN), r"x\.rate: a Float domain within a Slotted"),
        (Config, r"x\.rate: a Float domain within a type"),
        (Inherited(), r"x\.rate: a Float domain within a Inherited"),
        ([{DOMAIN: 1}], r"x\[0\]\[key 0\]: a Float domain within a list"),
        ({"a/b": tune.uniform(0, 1)}, "x/a/b: keys of a search space must be strings without '/'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_searched_is_refused_with_the_reason(value: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        tune_space({"x": value})


def test_constants_that_refer_to_each_other_are_read_once() -> None:
    shared: list[Any] = []
    for _ in range(40):
        shared = [shared, shared]
    chain: Any = None
    for _ in range(5_000):
        chain = SimpleNamespace(before=chain)
    found = tune_space({"x": tune.uniform(0, 1), "shared": shared, "chain": chain})
    assert set(found.constants) == {"shared", "chain"}
    with pytest.raises(SearchError, match="a Float domain within a list"):
        tune_space({"shared": [shared, DOMAIN]})


def test_a_range_of_one_value_is_constant() -> None:
    found = tune_space({"x": tune.uniform(0, 1), "n": tune.randint(3, 4)})
    assert [parameter.name for parameter in found.space.parameters] == ["x"]
    assert found.config({"x": 0.5}) == {"x": 0.5, "n": 3}


class Level(enum.IntEnum):
    """An enumeration whose members are numbers, too."""

    LOW = 1
    HIGH = 2


def test_trainables_get_the_members_of_enumerations_and_none() -> None:
    config = {"level": tune.choice(list(Level)), "clip": tune.choice([None, 0.5])}
    found = tune_space(config)
    point = found.point({"level": 2, "clip": None})
    assert [type(value) for value in point.values()] == [int, str]
    assert found.config(point) == {"level": Level.HIGH, "clip": None}
    assert type(found.config(point)["level"]) is Level


def test_constraints_go_with_the_space() -> None:
    config = {"a": {"x": tune.uniform(0, 1)}, "y": tune.uniform(0, 1)}
    assert tune_space(config, ["a/x + y <= 1"]).space.constraints == ("a/x + y <= 1",)


POINTS = tune_space(
    {
        "net": {"dropout": tune.choice([0, 0.1]), "n": tune.randint(1, 9)},
        "x": tune.uniform(0, 1),
        "clip": tune.choice([None, 0.5]),
        "epochs": 5,
        "data": {"path": "here"},
        "sizes": [1, 2],
        "nothing": None,
        "flag": True,
        "scale": float("nan"),
    }
)
POINT = {"net/dropout": 0.1, "net/n": 3, "x": 0.5, "clip": "None"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"net": {"dropout": 0.1, "n": 3.0}},
        {"net": {"dropout": np.float64(0.1), "n": np.int32(3)}},
        {"x": np.float32(0.5)},
        {"epochs": 5, "data": {"path": "here"}},
        {"sizes": (1, np.int64(2)), "nothing": None, "flag": np.True_, "scale": float("nan")},
        {"__trial_index__": 1},
    ],
    ids=str,
)
def test_equal_values_of_another_type_become_the_parameters_own(changes: dict[str, Any]) -> None:
    config = {"net": {"dropout": 0.1, "n": 3}, "x": 0.5, "clip": None} | changes
    point = POINTS.point(config)
    assert point == POINT
    assert [type(value) for value in point.values()] == [float, int, float, str]
    assert POINTS.config(point)["clip"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"net": {"dropout": 0.2, "n": 3}},
            r"must be one of \[0.0, 0.1\], but got 0.2",
        ),
        ({"net": {"dropout": False, "n": 3}}, "net/dropout must be one of .* but got False"),
        ({"net": {"dropout": 0, "n": 9}}, "net/n must be a whole number from 1 to 8, but got 9"),
        ({"net": {"dropout": 0, "n": 2.5}}, "net/n must be a whole number .* but got 2.5"),
        ({"net": {"dropout": 0, "n": "3"}}, "net/n must be a whole number .* but got '3'"),
        ({"net": {"dropout": 0}}, "net/n must be given"),
        ({"x": None}, "x must be a number from 0 to 1, but got None"),
        ({"x": float("nan")}, "x must be a number from 0 to 1, but got nan"),
        ({"clip": 0.25}, "clip must be one of"),
        ({"x": 10**400}, "x must be a number from 0 to 1, but got a number of 1329 bits"),
        ({"data": {"path": "there"}}, "data/path is constant .* must be 'here', but got 'there'"),
        ({"data": {"road": 1}}, "data/road is constant in the search space"),
        ({"data": None}, "data is constant in the search space and must be {'path': 'here'}"),
        ({"sizes": [1, 3]}, r"sizes is constant .* must be \[1, 2\], but got \[1, 3\]"),
        ({"nothing": 0}, "nothing is constant .* must be None, but got 0"),
        ({"flag": 1}, "flag is constant .* must be True, but got 1"),
        ({"epochs": 6}, "epochs is constant in the search space and must be 5, but got 6"),
        ({"lr": 1}, "lr is not in the search space, which has net/dropout, net/n, x, clip; leave"),
    ],
    ids=str,
)
def test_an_invalid_point_is_refused_with_key_rule_and_value(
    changes: dict[str, Any], message: str
) -> None:
    config = {"net": {"dropout": 0, "n": 3}, "x": 0.5, "clip": None} | changes
    with pytest.raises(SearchError, match=message):
        POINTS.point(config)


def test_the_point_of_a_trial_is_read_from_its_flat_result() -> None:
    config = {"net/dropout": 0.1, "net/n": 3, "x": 0.5, "clip": None, "epochs": 5, "more": 1}
    result = {"loss": 2.0, "x": 0.75, **{f"config/{key}": value for key, value in config.items()}}
    assert POINTS.point_of_result(result) == POINT
    assert POINTS.point_of_result({"loss": 2.0, "x": 0.75}) is None


def test_a_constant_dictionary_may_have_any_keys() -> None:
    found = tune_space({"x": tune.uniform(0, 1), "weights": {0: 1.0, "a/b": 2.0}, "empty": {}})
    assert found.config({"x": 0.5}) == {"x": 0.5, "weights": {0: 1.0, "a/b": 2.0}, "empty": {}}
