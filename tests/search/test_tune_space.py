"""Ray Tune's search spaces as ours."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune

from raymeta.errors import SearchError
from raymeta.search.space import Parameter, Space
from raymeta.search.tune_space import nested, tune_space


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
    space, constants = tune_space({"x": domain})
    assert space == Space((Parameter(name="x", **expected),))
    assert constants == {}


@pytest.mark.parametrize(
    "domain",
    [tune.quniform(0.1, 1, 0.1), tune.qrandint(8, 64, 8), tune.randint(2, 9), tune.uniform(0, 1)],
)
def test_what_tune_draws_lies_in_the_parameter_and_on_its_steps(domain: Any) -> None:
    (parameter,) = tune_space({"x": domain})[0].parameters
    for value in map(float, domain.sample(size=50)):
        assert parameter.contains(value)
        assert parameter.snapped(value) == pytest.approx(value)


def test_nested_keys_are_joined_and_constants_kept_apart() -> None:
    config = {"optimizer": {"lr": tune.uniform(0, 1), "name": "adam"}, "layers": 2, "list": [1, 2]}
    space, constants = tune_space(config)
    assert [parameter.name for parameter in space.parameters] == ["optimizer/lr"]
    assert constants == {"optimizer/name": "adam", "layers": 2, "list": [1, 2]}
    assert nested({**constants, "optimizer/lr": 0.5}) == {
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
        ({"a/b": tune.uniform(0, 1)}, "x/a/b: keys of a search space must be strings without '/'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_searched_is_refused_with_the_reason(value: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        tune_space({"x": value})


def test_a_range_of_one_value_is_constant() -> None:
    space, constants = tune_space({"x": tune.uniform(0, 1), "n": tune.randint(3, 4)})
    assert [parameter.name for parameter in space.parameters] == ["x"]
    assert constants == {"n": 3}


def test_constraints_go_with_the_space() -> None:
    config = {"a": {"x": tune.uniform(0, 1)}, "y": tune.uniform(0, 1)}
    assert tune_space(config, ["a/x + y <= 1"])[0].constraints == ("a/x + y <= 1",)
