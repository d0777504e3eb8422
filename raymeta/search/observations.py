"""Reads a search's metrics from the results that trainables report to Ray Tune."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from raymeta.search.settings import SearchSettings

_LONGEST_VALUE = 80  # characters of a value in a message


@dataclass(frozen=True)
class Observation:
    """The contents of one result.

    Attributes:
        step: the progress in `step_metric`, which may be a fraction of an epoch; None where the
            result has none.
        values: mean and standard error (None if not reported) of each metric; empty with a problem.
        problem: why the result cannot be used, None if it can.
        is_mistake: whether the problem is a mistake in the trainable, such as a list for a number,
            rather than the outcome of a trial, such as NaN.
    """

    step: float | None
    values: Mapping[str, tuple[float, float | None]]
    problem: str | None = None
    is_mistake: bool = False


def observe(result: Mapping[str, Any], settings: SearchSettings) -> Observation:
    """Reads all metrics of the search from a flat result of Tune."""
    values: dict[str, tuple[float, float | None]] = {}
    for metric in settings.metrics:
        reported = result.get(metric)
        mean = _number(reported)
        if mean is None:
            description = "was not reported" if metric not in result else f"is {_shown(reported)}"
            is_mistake = reported is not None
            return Observation(None, {}, f"{metric} {description}", is_mistake)
        if not math.isfinite(mean):
            return Observation(None, {}, f"{metric} is {mean}")
        sem_name = metric + settings.sem_suffix
        sem = _number(result.get(sem_name))
        if (sem is None and result.get(sem_name) is not None) or (sem is not None and sem < 0):
            description = f"{sem_name} (a standard error, >= 0) is {_shown(result[sem_name])}"
            return Observation(None, {}, description, is_mistake=True)
        values[metric] = (mean, sem if sem is not None and math.isfinite(sem) else None)
    name = settings.step_metric
    step = _number(result.get(name))
    if result.get(name) is not None and (step is None or not math.isfinite(step)):
        description = f"{name} (the step_metric) is {_shown(result[name])}"
        return Observation(None, {}, description, is_mistake=True)
    is_whole = step is not None and step == int(step)
    return Observation(int(step) if is_whole and step is not None else step, values)


def _number(value: Any) -> float | None:
    """A scalar, or an array of one element, as a float; None for anything else."""
    if np.ma.is_masked(value):  # as a number it would be 0.0
        return None
    if not isinstance(value, str) and hasattr(value, "item"):
        if math.prod(getattr(value, "shape", ())) != 1:
            return None
        value = value.item()
    if not isinstance(value, Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the largest float
        return math.inf


def _shown(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
    return f"{text} ({type(value).__name__})"
