"""The search space: parameters, conditions and constraints; and how an experiment defines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raymeta.errors import ExperimentError, SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.experiment.schema import Experiment
from raymeta.search.constraints import LinearConstraint, check_feasible

Point = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Parameters, and linear constraints between them such as `x + 2 * y <= 3`."""

    parameters: tuple[Parameter, ...]
    constraints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        by_name: dict[str, Parameter] = {}
        for parameter in self.parameters:
            if parameter.name in by_name:
                raise SearchError(f"{parameter.name} is twice in the search space")
            by_name[parameter.name] = parameter
        for parameter in self.parameters:
            if parameter.fault is not None:
                raise SearchError(f"{parameter.name}: {parameter.fault}")
            if parameter.when is not None:
                _check_condition(parameter, by_name)
        _ = self.in_order  # refuses cyclic conditions
        for constraint in self.linear_constraints:
            _check_constraint(constraint, by_name)
        check_feasible(self.parameters, self.linear_constraints)

    @cached_property
    def linear_constraints(self) -> tuple[LinearConstraint, ...]:
        """The constraints as weights and bounds."""
        names = {parameter.name for parameter in self.parameters}
        return tuple(LinearConstraint.parse(text, names) for text in self.constraints)

    @cached_property
    def in_order(self) -> tuple[Parameter, ...]:
        """The parameters, each after its condition's parent."""
        ordered: list[Parameter] = []
        rest = list(self.parameters)
        while rest:
            known = {parameter.name for parameter in ordered}
            ready = [p for p in rest if p.when is None or p.when[0] in known]
            if not ready:
                names = ", ".join(parameter.name for parameter in rest)
                raise SearchError(f"the conditions of {names} depend on each other")
            ordered += ready
            rest = [parameter for parameter in rest if parameter not in ready]
        return tuple(ordered)

    def tidied(self, values: Mapping[str, Any]) -> Point:
        """Makes values a valid point: on the steps, within the ranges, active parameters only."""
        point: Point = {}
        for parameter in self.in_order:
            if parameter.exists_in(point) and parameter.name in values:
                value = values[parameter.name]
                if parameter.choices is None:
                    value = parameter.snapped(value)
                point[parameter.name] = value
        return {p.name: point[p.name] for p in self.parameters if p.name in point}

    def names_in(self, point: Mapping[str, Any]) -> set[str]:
        """The names of the parameters that are active with these values."""
        return {parameter.name for parameter in self.parameters if parameter.exists_in(point)}

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has exactly its active parameters, within their ranges."""
        return (
            set(point) == self.names_in(point)
            and all(p.contains(point[p.name]) for p in self.parameters if p.name in point)
            and all(constraint.holds(point) for constraint in self.linear_constraints)
        )


def _check_condition(parameter: Parameter, by_name: Mapping[str, Parameter]) -> None:
    assert parameter.when is not None
    parent_name, values = parameter.when
    parent = by_name.get(parent_name)
    if parent is None or parent.choices is None:
        raise SearchError(
            f"{parameter.name} depends on {parent_name}, which must be a choice in the search space"
        )
    unknown = [value for value in values if value not in parent.choices]
    if unknown or not values:
        raise SearchError(
            f"{parameter.name} depends on {parent_name} being one of {list(values)}, but its "
            f"choices are {list(parent.choices)}"
        )


def _check_constraint(constraint: LinearConstraint, by_name: Mapping[str, Parameter]) -> None:
    for name in constraint.weights:
        parameter = by_name[name]
        if parameter.choices is not None or parameter.log or parameter.step is not None:
            raise SearchError(
                f"the constraint '{constraint.text}' can hold for plain ranges only, but {name} has"
                " choices, steps or a logarithmic scale"
            )
        if parameter.when is not None:
            raise SearchError(
                f"the constraint '{constraint.text}' names {name}, which is conditional"
            )


# ------------------------------------------------------------------- from an experiment


def search_space(experiment: Experiment) -> Space:
    """Builds the space of `search.space`, in file order."""
    parameters = []
    for name, dimension in experiment.search.space.items():
        integer = experiment.is_integer(name)
        is_float = isinstance(experiment.value(name), float)
        kind = int if integer else float if is_float else None
        parameters.append(dimension.parameter(name, integer=integer, kind=kind))
    return Space(tuple(parameters), tuple(experiment.search.constraints))


def file_point(experiment: Experiment) -> Point:
    """The experiment file's own point of the space: tried first, and the control.

    Raises:
        ExperimentError: it lies outside the space.
    """
    values = {name: experiment.value(name) for name in experiment.search.space}
    point = {}
    for name in search_space(experiment).names_in(values):
        if not experiment.search.space[name].contains(values[name]):
            raise ExperimentError(
                f"search.space.{name} must contain the experiment's own value of {name}, which the "
                f"search tries first and compares with, but got {values[name]!r}"
            )
        point[name] = values[name]
    return {name: value for name, value in values.items() if name in point}  # in file order
