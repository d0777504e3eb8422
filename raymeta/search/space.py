"""The search space: from the `search.space` section of an experiment to typed parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raymeta.errors import ExperimentError
from raymeta.experiment import Experiment, Scalar

Point = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension: a range of numbers (`low`, `high`) or a list of `choices`.

    `integer` ranges hold whole numbers; `log` searches a range on a logarithmic scale; `step` keeps
    to low, low + step, …  Numeric choices are ordered, others are not.
    """

    name: str
    low: float | None = None
    high: float | None = None
    integer: bool = False
    log: bool = False
    step: float | None = None
    choices: tuple[Scalar, ...] | None = None


def search_space(experiment: Experiment) -> list[Parameter]:
    """The parameters of `search.space`, in file order."""
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
        parameters.append(
            Parameter(
                name=name,
                low=dimension.low,
                high=dimension.high,
                integer=integer,
                log=dimension.log,
                step=dimension.step,
                choices=choices,
            )
        )
    return parameters


def file_point(experiment: Experiment) -> Point:
    """The point of the space that the experiment file itself names: first to try, and the control.

    Raises:
        ExperimentError: it lies outside the space.
    """
    for name, dimension in experiment.search.space.items():
        if not dimension.contains(experiment.value(name)):
            raise ExperimentError(
                f"search.space.{name} must contain the experiment's own value of {name}, which the "
                f"search tries first and compares with, but got {experiment.value(name)!r}"
            )
    return {name: experiment.value(name) for name in experiment.search.space}
