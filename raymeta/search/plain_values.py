"""Values as users write them: converted to Python's own, and compared by value."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

from raymeta.experiment.parameter import is_finite
from raymeta.search.hidden_domains import is_mark


def kind_of(value: Any) -> type | None:
    """The type by which choices are compared; None for values that cannot be searched."""
    if value is None:
        return type(None)
    for kind, types in ((bool, bool), (float, int | float), (str, str)):
        if isinstance(value, types):
            return kind
    return None


def plain(value: Any) -> Any:
    """Converts numpy and torch scalars to Python's; enum members to their plain value, or name."""
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value, bool | int | float | str) else value.name
    if type(value).__module__ != "builtins" and hasattr(value, "item") and _size(value) == 1:
        value = value.item()
    if isinstance(value, str) and type(value) is not str:
        return str(value)
    return value


def _size(value: Any) -> int:
    return math.prod(getattr(value, "shape", ()))


def is_number(value: object) -> bool:
    """Whether a value is a finite number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts, lists and dictionaries only."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return not is_mark(value) and all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def is_same(value: Any, constant: Any) -> bool:
    """Whether a value equals a plain constant; lists equal tuples, and NaN equals NaN."""
    if isinstance(constant, dict):
        return (
            isinstance(value, Mapping)
            and set(value) == set(constant)
            and all(is_same(value[key], constant[key]) for key in constant)
        )
    if isinstance(constant, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(constant)
            and all(map(is_same, value, constant))
        )
    value, constant = plain(value), plain(constant)
    if kind_of(value) is not kind_of(constant):
        return False
    return bool(value == constant or (value != value and constant != constant))  # noqa: PLR0124
