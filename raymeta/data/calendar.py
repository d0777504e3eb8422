"""Numbers that the calendar tells of a time: where in its year, week or day it is.

Shape legend: R rows, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def calendar_names(parts: Sequence[str]) -> list[str]:
    """The names of the 2 P columns."""
    return [f"{wave} of {part}" for part in parts for wave in ("sine", "cosine")]


def calendar_columns(dates: pa.Array, parts: Sequence[str]) -> np.ndarray:
    """A sine and a cosine of each part, so that December is beside January: float64 `[R, 2 P]`.

    Args:
        dates: time stamps without gaps; those with a zone count in it.
        parts: `month`, `weekday` or `hour`, in the order of the columns.
    """
    columns = []
    for part in parts:
        if part == "month":
            place, period = pc.subtract(pc.month(dates), 1), 12
        elif part == "weekday":
            place, period = pc.day_of_week(dates), 7
        else:
            place, period = pc.hour(dates), 24
        angle = 2 * np.pi / period * place.to_numpy(zero_copy_only=False).astype(np.float64)
        columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=1)
