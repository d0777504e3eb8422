"""Translates search spaces and metrics into Ax's terms.

Three properties of Ax require this. It parses names as formulas, so that `f-score` is a difference
and `beta` a function: it gets generated names. It enumerates integer ranges: wide ones become
ranges of real numbers, rounded here. It refuses ranges narrower than 1.5e-5 and overflows in huge
ones: those become fractions of the range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.core.parameter import EPS

from raymeta.experiment.parameter import Parameter
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space

MOST_LISTED = 1_000  # most values of an integer range that Ax enumerates
_MOST_STEPS = 64  # most values of a range that Ax gets as an ordered choice
_NARROWEST = 100 * EPS  # of a range that Ax takes
_WIDEST = 1e100  # with wider ones the squares of Ax's constraints and distances overflow
_LEAST_FEASIBLE = 0.9  # a value nearer to 1 keeps the search further away from failed trials
_PREFIX = "raymeta_"  # lets generated names be found in Ax's texts
FEASIBLE = f"{_PREFIX}feasible"  # a metric: 1 where a trial gave a value, 0 where it failed
_INTERNAL = re.compile(rf"{_PREFIX}[pm]\d+")


class AxSpace:
    """Translates between a search's own names and values and Ax's."""

    def __init__(self, space: Space, settings: SearchSettings) -> None:
        self._parameters = {
            f"{_PREFIX}p{number}": AxParameter(f"{_PREFIX}p{number}", parameter)
            for number, parameter in enumerate(space.parameters)
        }
        self._constraints = space.linear_constraints
        self._settings = settings
        # Ax sorts metrics by name, and the last bits of its sums depend on it: keep the order.
        metrics = enumerate(sorted(settings.metrics))
        self.metrics = {name: f"{_PREFIX}m{number:03}" for number, name in metrics}
        self._own_names = {
            **{name: parameter.own.name for name, parameter in self._parameters.items()},
            **{ax: name for name, ax in self.metrics.items()},
        }

    @property
    def parameters(self) -> list[RangeParameterConfig | ChoiceParameterConfig]:
        """The parameters for Ax; conditional ones are in every point.

        Ax's own conditions allow one value of the parent only, and its model fills in what is
        missing.
        """
        return [parameter.config for parameter in self._parameters.values()]

    @property
    def constraints(self) -> list[str]:
        """The linear constraints between parameters."""
        return [
            self._inequality(constraint.weights, constraint.bound)
            for constraint in self._constraints
            if any(constraint.weights.values())
        ]

    def _inequality(self, weights: Mapping[str, float], bound: float) -> str:
        terms = []
        for name, parameter in self._parameters.items():
            weight = weights.get(parameter.own.name, 0.0)
            if weight:
                terms.append(f"{weight * parameter.scale!r} * {name}")
                bound -= weight * parameter.offset
        return f"{' + '.join(terms)} <= {bound!r}"

    @property
    def objective(self) -> str:
        """The objectives as a formula for Ax."""
        signs = {"max": "", "min": "-"}
        return ", ".join(
            f"{signs[mode]}{self.metrics[name]}" for name, mode in self._settings.objectives
        )

    @property
    def outcome_constraints(self) -> list[str]:
        """The bounds on metrics as formulas for Ax."""
        return [
            f"{self.metrics[bound.metric]} {bound.relation} {bound.value!r}"
            for bound in self._settings.outcome_bounds
        ]

    @property
    def feasibility_constraint(self) -> str:
        """The bound that keeps the search away from where trials fail."""
        return f"{FEASIBLE} >= {_LEAST_FEASIBLE}"

    def parameter(self, name: str) -> str:
        """Ax's name of a parameter."""
        return next(ax for ax, parameter in self._parameters.items() if parameter.own.name == name)

    def to_ax(self, point: Point) -> dict[str, Any]:
        """Converts a point for Ax; missing parameters get a fixed value."""
        return {
            name: parameter.to_ax(point.get(parameter.own.name, parameter.own.first))
            for name, parameter in self._parameters.items()
        }

    def from_ax(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Renames Ax's values; neither rounds them nor drops inactive parameters."""
        return {
            parameter.own.name: parameter.from_ax(values[name])
            for name, parameter in self._parameters.items()
        }

    def own_text(self, text: str) -> str:
        """Replaces Ax's names in a text by the search's own."""
        return _INTERNAL.sub(lambda match: self._own_names.get(match[0], match[0]), text)


class AxParameter:
    """One parameter as Ax sees it.

    Where Ax searches fractions of the range, a value is `offset + scale * fraction`, or its
    logarithm is; otherwise the two are 0 and 1.
    """

    def __init__(self, name: str, own: Parameter) -> None:
        self.own = own
        self.offset, self.scale = 0.0, 1.0
        self._is_fraction = self._is_float = False
        self._choices = _choices(own)
        if self._choices is not None:
            self.config: RangeParameterConfig | ChoiceParameterConfig = ChoiceParameterConfig(
                name=name,
                values=self._choices,
                parameter_type=_type_name(self._choices),
                is_ordered=own.is_ordered and not _are_too_close(self._choices),
            )
            return
        low, high = own.low, own.high
        assert low is not None
        assert high is not None
        count = own.num_values
        is_listed = own.integer and own.step is None and count is not None and count <= MOST_LISTED
        self._is_float = not is_listed
        self._is_fraction = not _NARROWEST <= float(high) - float(low) <= _WIDEST
        if self._is_fraction:
            start, end = (math.log(low), math.log(high)) if own.log else (low, high)
            self.offset, self.scale = start, end - start
        self.config = RangeParameterConfig(
            name=name,
            bounds=(0.0, 1.0) if self._is_fraction else (low, high),
            parameter_type="float" if self._is_float else "int",
            scaling="log" if own.log and not self._is_fraction else "linear",
        )

    def to_ax(self, value: Any) -> Any:
        """Converts a value for Ax."""
        value = self.own.exact(value)
        if not self._is_float:
            return float(value) if _holds_floats(self._choices) else value
        if not self._is_fraction:
            return float(value)
        at = math.log(value) if self.own.log else value
        return min(max((at - self.offset) / self.scale, 0.0), 1.0)

    def from_ax(self, value: Any) -> Any:
        """Converts a value from Ax, without rounding to the parameter's steps."""
        value = value.item() if hasattr(value, "item") else value
        if self.own.choices is not None:
            return self.own.exact(value)
        if not self._is_fraction:
            return value
        at = self.offset + self.scale * value
        return math.exp(at) if self.own.log else at


def _choices(parameter: Parameter) -> list[Any] | None:
    """Lists the values of a parameter that Ax gets as a choice; None for a range."""
    if parameter.choices is not None:
        values = list(parameter.choices)
        return list(map(float, values)) if _holds_floats(values) else values
    is_stepped = parameter.step is not None and not parameter.log
    return parameter.listed(_MOST_STEPS) if is_stepped else None


def _holds_floats(values: list[Any] | None) -> bool:
    return any(isinstance(value, float) for value in values or ())


def _are_too_close(values: list[Any]) -> bool:
    """Whether two numbers have equal logarithms, which Ax may take."""
    numbers = sorted(float(value) for value in values)
    return any(math.isclose(low, high, rel_tol=1e-9) for low, high in pairwise(numbers))


def _type_name(values: list[Any]) -> Literal["bool", "int", "float", "str"]:
    if isinstance(values[0], bool):
        return "bool"
    if isinstance(values[0], int):
        return "int"
    return "float" if isinstance(values[0], float) else "str"
