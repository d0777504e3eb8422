"""A searched parameter: its range or choices, their rules, and its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymeta.errors import shown

Scalar = bool | int | float | str

MOST_CHOICES = 1_000  # Ax's limit
LARGEST_CHOICE = 2**53  # of whole numbers: larger ones are equal as floats, and overflow in Ax


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A range of numbers (`low`, `high`) or a list of `choices`.

    Args:
        name: unique in the search space.
        low, high: the ends of the range, both included.
        integer: the range holds whole numbers only.
        log: the range is searched on a logarithmic scale.
        step: the range holds low, low + step, low + 2 step, … only.
        choices: the values, all of one type.
        ordered: whether the choices have an order; by default numbers do.
        when: a choice parameter and some of its values; this parameter exists only with those.
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
    def fault(self) -> str | None:
        """The rule that this parameter breaks, without its name; None if it is valid."""
        if self.choices is None:
            return self._fault_of_range()
        return self._fault_of_choices(self.choices)

    def _fault_of_choices(self, choices: Sequence[Scalar]) -> str | None:
        if self.low is not None or self.high is not None or self.step is not None or self.log:
            return "`choices` stands alone, without low, high, step and log"
        if not choices:
            return "`choices` is empty; give at least one value"
        if len(choices) > MOST_CHOICES:
            return (
                f"`choices` takes at most {MOST_CHOICES:,} values, but got {len(choices):,}; use a "
                "range with `low`, `high` and `step`"
            )
        for choice in choices:
            if not isinstance(choice, Scalar):
                return (
                    "`choices` must be numbers, strings or booleans, but got "
                    f"{shown(choice)}; choose among their names and look the value up in the "
                    "trainable"
                )
            if isinstance(choice, int | float) and not is_finite(choice):
                return f"`choices` must be finite, but got {shown(choice)}"
            if isinstance(choice, int) and abs(choice) > LARGEST_CHOICE:
                return (
                    f"`choices` must be whole numbers up to 2**53, but got {shown(choice)}; choose "
                    "among their texts and convert them in the trainable"
                )
        if len(set(choices)) < len(choices):
            return f"`choices` must differ, but got {shown(list(choices))}"
        if len({_kind(choice) for choice in choices}) > 1:
            return f"`choices` must be of one type, but got {shown(list(choices))}"
        return None

    def _fault_of_range(self) -> str | None:
        low, high, step = self.low, self.high, self.step
        if low is None or high is None:
            return "give `low` and `high`, or `choices`"
        if not (is_finite(low) and is_finite(high)):
            return f"`low` and `high` must be finite, but got {shown((low, high))}"
        if not is_finite(float(high) - float(low)):
            return f"`high - low` must be finite, but got (low={low}, high={high})"
        if not low < high:
            return f"`low < high` must hold, but got (low={shown(low)}, high={shown(high)})"
        if self.log and low <= 0:
            return f"`low > 0` must hold for `log: true`, but got (low={low})"
        if step is not None and not (is_finite(step) and step > 0):
            return f"`step` must be > 0, but got {shown(step)}"
        if self.integer and any(end != round(end) for end in (low, high, step or 1)):
            return (
                "a range of whole numbers needs whole `low`, `high` and `step`, but got "
                f"(low={low}, high={high}, step={step})"
            )
        return None

    # ------------------------------------------------------------------- values

    @property
    def first(self) -> Scalar:
        """The first choice, or the low end."""
        return self.ends[0]

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """All choices, or the two ends of the range."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    @property
    def is_ordered(self) -> bool:
        """Whether the values lie on a line: ranges, and choices of numbers by default."""
        if self.ordered is not None or self.choices is None:
            return self.ordered is not False
        return _kind(self.choices[0]) is float

    @property
    def num_values(self) -> int | None:
        """The number of values; None for a continuous range."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.step is not None:
            return math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return round(self.high) - round(self.low) + 1 if self.integer else None

    def listed(self, most: int) -> list[Any] | None:
        """All values; None if there are more than `most` or the range is continuous."""
        if self.choices is not None:
            return list(self.choices)
        count = self.num_values
        if count is None or count > most:
            return None
        assert self.low is not None
        return [self.snapped(self.low + number * (self.step or 1)) for number in range(count)]

    def exists_in(self, point: Mapping[str, Any]) -> bool:
        """Whether a point with these values has this parameter."""
        if self.when is None:
            return True
        parent, values = self.when
        return parent in point and point[parent] in values

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices, or lies in the range and on its steps.

        Numbers compare by value: 2 is among the choices 1.0 and 2.0, and 3.0 is a whole number.
        """
        if self.choices is not None:
            kind = _kind(value)
            return any(value == choice and kind is _kind(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert self.low is not None
        assert self.high is not None
        if not self.low <= value <= self.high or (self.integer and value != round(value)):
            return False
        return self.step is None or is_multiple(value - self.low, self.step)

    def exact(self, value: Any) -> Any:
        """Converts a value from a file or user to the parameter's own: 2 to 2.0, 0.3 to its step.

        Other values are returned unchanged.
        """
        if hasattr(value, "item"):
            value = value.item()
        if self.choices is not None:
            return next((own for own in self.choices if own == value), value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        snapped = self.snapped(value)
        return snapped if math.isclose(snapped, value, rel_tol=1e-9) else value

    def snapped(self, value: float) -> float:
        """The nearest value on the parameter's steps and within its range."""
        assert self.low is not None
        assert self.high is not None
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * min(max(round((value - self.low) / self.step), 0), steps)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)


def is_multiple(distance: float, step: float) -> bool:
    """Whether `distance` is a whole number of steps, up to rounding."""
    ratio = distance / step
    tolerance = min(1e-9 * max(1.0, abs(ratio)), 1e-3)
    return abs(ratio - round(ratio)) < tolerance


def _kind(value: object) -> type:
    """The type of a choice; whole and real numbers are of one kind."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def is_finite(value: float) -> bool:
    """Whether a number is finite, and no larger than a float can be."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
