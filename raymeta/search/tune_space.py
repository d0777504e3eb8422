"""Ray Tune's search spaces as ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray.tune.search import sample

from raymeta.errors import SearchError
from raymeta.experiment import Scalar
from raymeta.search.space import Parameter, Space


def tune_space(
    config: Mapping[str, Any], constraints: Sequence[str] = ()
) -> tuple[Space, dict[str, Any]]:
    """A `param_space` of Ray Tune as a space, and what is constant in it.

    Keys of nested dictionaries are joined by `/`, as Tune does.

    Raises:
        SearchError: it holds something that cannot be searched, which is named with the reason.
    """
    parameters, constants = [], {}
    for name, value in joined(config).items():
        if isinstance(value, sample.Domain):
            parameter = _tune_parameter(name, value)
            if parameter.choices is None and parameter.low == parameter.high:
                constants[name] = parameter.low  # a range of one value
            else:
                parameters.append(parameter)
        else:
            constants[name] = value
    return Space(tuple(parameters), tuple(constraints)), constants


def joined(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary with its keys joined by `/`."""
    return dict(_flat(config))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary whose keys `tune_space` has joined."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or "/" in key:
            raise SearchError(f"{name}: keys of a search space must be strings without '/'")
        if isinstance(value, Mapping) and set(value) == {"grid_search"}:
            raise SearchError(
                f"{name}: tune.grid_search tries all values by itself; use tune.choice here"
            )
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}/")
        else:
            yield name, value


def _tune_parameter(name: str, domain: sample.Domain) -> Parameter:
    sampler, step = domain.get_sampler(), None
    if isinstance(sampler, sample.Quantized):
        step, sampler = sampler.q, sampler.get_sampler()
    if isinstance(domain, sample.Categorical):
        return Parameter(name=name, choices=tuple(_choices(name, domain.categories)))
    if isinstance(domain, sample.Float | sample.Integer):
        integer = isinstance(domain, sample.Integer)
        if isinstance(sampler, sample.Normal):
            raise SearchError(f"{name}: a normal distribution has no bounds; use tune.uniform")
        if not (math.isfinite(domain.lower) and math.isfinite(domain.upper)):
            raise SearchError(f"{name}: {domain.domain_str} has no bounds; use tune.uniform")
        log = isinstance(sampler, sample.LogUniform)
        # Tune's integers exclude the upper end, except when they are quantised.
        step = None if integer and step == 1 else step
        low, high = domain.lower, domain.upper - (1 if integer and step is None else 0)
        if integer and step is not None:  # Tune's grid is that of the multiples of q
            low, high = math.ceil(low / step) * step, math.floor(high / step) * step
        if low > high:
            raise SearchError(
                f"{name}: there is no value between {domain.lower} and {domain.upper}"
            )
        return Parameter(name=name, low=low, high=high, integer=integer, log=log, step=step)
    raise SearchError(
        f"{name}: {type(domain).__name__} cannot be searched (tune.sample_from has no bounds); use "
        "tune.uniform, loguniform, randint, choice or a quantised form of them"
    )


def _choices(name: str, values: Sequence[Any]) -> Iterator[Scalar]:
    kinds = {
        bool if isinstance(v, bool) else float if isinstance(v, int) else type(v) for v in values
    }
    if len(kinds) > 1:
        raise SearchError(f"{name}: tune.choice over values of several types cannot be searched")
    floats = any(isinstance(value, float) for value in values)
    for value in map(float, values) if floats else values:
        if not isinstance(value, bool | int | float | str):
            raise SearchError(
                f"{name}: tune.choice over {type(value).__name__} cannot be searched; use numbers, "
                "strings or booleans"
            )
        yield value
