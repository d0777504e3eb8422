"""The search space: typed parameters, the conditions they stand under, and an experiment's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymeta.errors import ExperimentError, SearchError
from raymeta.experiment import Experiment, Scalar

Point = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension: a range of numbers (`low`, `high`) or a list of `choices`.

    `integer` ranges hold whole numbers; `log` searches a range on a logarithmic scale; `step` keeps
    to low, low + step, …  Choices are ordered or not; by default numbers are.  `when` is a choice
    parameter and those of its values under which this one exists.
    """

    name: str
    low: float | None = None
    high: float | None = None
    integer: bool = False
    log: bool = False
    step: float | None = None
    choices: tuple[Scalar, ...] | None = None
    ordered: bool | None = None
    when: tuple[str, tuple[Scalar, ...]] | None = None

    @property
    def first(self) -> Scalar:
        """The first choice, or the low end."""
        if self.choices is not None:
            return self.choices[0]
        assert self.low is not None
        return self.low

    def exact(self, value: Any) -> Any:
        """The parameter's own value for one that a file or a user wrote: 2 as 2.0, 0.3 on a step.

        A value beside the steps stays as it is.
        """
        if hasattr(value, "item"):
            value = value.item()
        if (
            self.choices is not None
            or isinstance(value, bool)
            or not isinstance(value, int | float)
        ):
            return value
        snapped = self.snapped(value)
        return snapped if math.isclose(snapped, value, rel_tol=1e-9) else value

    @property
    def is_ordered(self) -> bool:
        """Whether its values lie on a line: ranges, and choices of numbers by default."""
        if self.ordered is not None or self.choices is None:
            return self.ordered is not False
        first = self.choices[0]
        return isinstance(first, int | float) and not isinstance(first, bool)

    def exists_in(self, point: Mapping[str, Any]) -> bool:
        """Whether a point with these values has this parameter."""
        if self.when is None:
            return True
        parent, values = self.when
        return parent in point and point[parent] in values

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices, or lies in the range."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert self.low is not None
        assert self.high is not None
        return self.low <= value <= self.high

    def snapped(self, value: float) -> float:
        """The nearest value on the parameter's steps and within its range."""
        assert self.low is not None
        assert self.high is not None
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * min(max(round((value - self.low) / self.step), 0), steps)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)


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
            if parameter.choices is None:
                _check_range(parameter)
            if parameter.when is not None:
                _check_condition(parameter, by_name)
        for constraint in self.constraints:
            _check_constraint(constraint, by_name)

    def names_in(self, point: Mapping[str, Any]) -> set[str]:
        """The parameters that a point with these values has."""
        return {parameter.name for parameter in self.parameters if parameter.exists_in(point)}

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has the parameters that it must have, in their ranges, and no more."""
        return (
            set(point) == self.names_in(point)
            and all(p.contains(point[p.name]) for p in self.parameters if p.name in point)
            and all(LinearConstraint.parse(text).holds(point) for text in self.constraints)
        )


def _check_range(parameter: Parameter) -> None:
    low, high = parameter.low, parameter.high
    if low is None or high is None:
        raise SearchError(f"{parameter.name} needs `low` and `high`, or `choices`")
    if not low < high:
        raise SearchError(
            f"{parameter.name}: `low < high` must hold, but got (low={low}, high={high}); a single "
            f"value is `choices=({low},)`"
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


_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z_][\w./]*"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*\s*)?({_NAME})\s*")
_BOUND = re.compile(rf"(<=|>=)\s*([+-]?{_NUMBER})\s*")


@dataclass(frozen=True)
class LinearConstraint:
    """Σ weight · parameter ≤ bound."""

    weights: Mapping[str, float]
    bound: float

    @classmethod
    def parse(cls, text: str) -> LinearConstraint:
        """From such as `x + 2 * y <= 3`.

        Raises:
            SearchError: it is not of this form.
        """
        weights: dict[str, float] = {}
        at = 0
        while (term := _TERM.match(text, at)) and (term[1] or not weights):
            weight = float(term[2] or 1) * (-1 if term[1] == "-" else 1)
            weights[term[3]] = weights.get(term[3], 0.0) + weight
            at = term.end()
        end = _BOUND.fullmatch(text, at)
        if end is None or not weights:
            raise SearchError(
                f"the constraint '{text}' must be linear, such as 'x + 2 * y <= 3' or 'x - y >= 0'"
            )
        sign = 1 if end[1] == "<=" else -1
        return cls({k: sign * w for k, w in weights.items()}, sign * float(end[2]))

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether it holds at a point, rounding aside."""
        total = sum(weight * point[name] for name, weight in self.weights.items())
        return bool(total <= self.bound + 1e-9 * (1 + abs(self.bound)))


def _check_constraint(text: str, by_name: Mapping[str, Parameter]) -> None:
    for name in LinearConstraint.parse(text).weights:
        parameter = by_name.get(name)
        if parameter is None:
            raise SearchError(f"the constraint '{text}' names {name}, which is not searched")
        if parameter.choices is not None or parameter.log or parameter.step is not None:
            raise SearchError(
                f"the constraint '{text}' can hold for plain ranges only, but {name} has choices, "
                "steps or a logarithmic scale"
            )
        if parameter.when is not None:
            raise SearchError(f"the constraint '{text}' names {name}, which is conditional")


# ------------------------------------------------------------------- from an experiment


def search_space(experiment: Experiment) -> Space:
    """The space of `search.space`, in file order."""
    parameters = []
    for name, dimension in experiment.search.space.items():
        integer = experiment.is_integer(name)
        choices = None
        if dimension.choices is not None:
            choices = tuple(dimension.choices)
            if integer:
                choices = tuple(int(choice) for choice in choices)
            elif isinstance(experiment.value(name), float):
                choices = tuple(float(choice) for choice in choices)
        when = None
        if dimension.when is not None:
            ((parent, values),) = dimension.when.items()
            when = (parent, tuple(values))
        parameters.append(
            Parameter(
                name=name,
                low=dimension.low,
                high=dimension.high,
                integer=integer,
                log=dimension.log,
                step=dimension.step,
                choices=choices,
                when=when,
            )
        )
    return Space(tuple(parameters), tuple(experiment.search.constraints))


def file_point(experiment: Experiment) -> Point:
    """The point of the space that the experiment file itself names: first to try, and the control.

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
