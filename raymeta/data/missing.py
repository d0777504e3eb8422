"""Fills missing numbers, and turns gaps and irregular times into features.

Shape legend: T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def interpolated(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Fills gaps by linear interpolation in time; at the ends by the nearest number.

    Args:
        x: `[T, D]`, NaN where a number is missing; a column without any number stays as it is.
        times: `[T]`, increasing.
    """
    result = x.copy()
    for column in result.T:
        gaps = np.isnan(column)
        if gaps.any() and not gaps.all():
            column[gaps] = np.interp(times[gaps], times[~gaps], column[~gaps])
    return result


def carried(x: np.ndarray) -> np.ndarray:
    """Fills gaps with the last number before them; leading gaps stay NaN."""
    steps = np.arange(len(x))[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(x), 0, steps), axis=0)
    return np.take_along_axis(x, last, axis=0)


def observed(x: np.ndarray) -> np.ndarray:
    """1 where there is a number and 0 where it is missing, `[T, D]`: `m` of Che et al. 2018."""
    return (~np.isnan(x)).astype(np.float64)


def since_observed(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The time since the last observation before each step, `[T, D]`.

    Che et al. 2018, "Recurrent neural networks for multivariate time series with missing values",
    equation 2: 0 at the first step; one time step after an observation; longer after a gap.

    Args:
        x: `[T, D]`, NaN where a number is missing.
        times: `[T]`, increasing.
    """
    # Before the first number the time counts from the first step.
    at = np.where(np.isnan(x), -np.inf, times[:, None])
    at[0] = times[0]
    before = np.vstack([at[:1], np.maximum.accumulate(at, axis=0)[:-1]])
    return times[:, None] - before


def time_differences(times: np.ndarray) -> np.ndarray:
    """The time since the step before, `[T, 1]`; 0 at the first step."""
    return np.diff(times, prepend=times[0])[:, None]


def typical_steps(times: Iterable[np.ndarray]) -> np.ndarray:
    """The median time between the steps of each sequence that has two at least.

    The median, since one long gap is ordinary where times are irregular.

    Args:
        times: of each sequence, `[T]`, increasing.
    """
    with np.errstate(over="ignore"):
        return np.array([np.median(np.diff(own)) for own in times if len(own) > 1])
