"""Formats numbers, keys and times for the terminal."""

from __future__ import annotations

import math
from typing import Any


def plus_minus(value: float, spread: float | None) -> str:
    """Formats a mean with its spread, if one is known."""
    if not math.isfinite(value):
        return "not finite"
    return (
        f"{value:.3f}"
        if spread is None or not math.isfinite(spread)
        else f"{value:.3f} ± {spread:.3f}"
    )


def value_text(value: Any) -> str:
    """Formats a hyperparameter's value; floats get four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def leaf(key: str) -> str:
    """The last part of a dotted key."""
    return key.rsplit(".", 1)[-1]


def clock_text(seconds: float) -> str:
    """Formats a duration as `[H:]M:SS`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
