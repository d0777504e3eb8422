"""The uncertainty of a mean score over the units that are new at deployment.

A query belongs to an episode and to one unit of every axis: a writer and a shape, say.  Queries of
one unit are right or wrong together, so that thousands of queries by two writers say little about a
third.

Shape legend: E episodes, M queries of an episode, Q = E * M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

HALVES = ("_half_a", "_half_b")  # suffixes of a metric's means over the two halves of the units


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and the degrees of freedom of the latter."""

    mean: float
    standard_error: float
    degrees_of_freedom: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval, by Student's t."""
        if self.standard_error == 0:
            return 0.0
        return float(stdtrit(self.degrees_of_freedom, 0.975)) * self.standard_error


@dataclass(frozen=True)
class _Axis:
    """The unit `[Q]` of every query, numbered from 0, and the number of units."""

    of_query: np.ndarray
    num_units: int

    @classmethod
    def of(cls, ids: np.ndarray) -> _Axis:
        names, codes = np.unique(ids, return_inverse=True)
        return cls(codes.reshape(-1), len(names))

    def tiled(self, count: int) -> _Axis:
        """Repeats the units of the queries `[Q]`, `[count * Q]`."""
        return _Axis(np.tile(self.of_query, count), self.num_units)

    def is_within(self, other: _Axis) -> bool:
        """Whether each unit lies in one unit of the other axis."""
        pairs = self.of_query * other.num_units + other.of_query
        return len(np.unique(pairs)) == self.num_units

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum of the values `[Q]` of each unit."""
        return np.bincount(self.of_query, values, self.num_units)

    def variance(self, residuals: np.ndarray) -> float:
        """The cluster-robust variance of the mean over this axis."""
        count = self.num_units
        squares = float(np.square(self.sums(residuals)).sum())
        return count / (count - 1) * squares / len(residuals) ** 2

    def without_means(self, values: np.ndarray) -> np.ndarray:
        """The values minus the mean of their unit."""
        counts = np.bincount(self.of_query, minlength=self.num_units)
        means: np.ndarray = self.sums(values) / counts
        return values - means[self.of_query]


class Units:
    """The units of E episodes of M queries, and the standard errors over them."""

    def __init__(self, ids: Mapping[str, np.ndarray], num_episodes: int, num_queries: int) -> None:
        """Reads which unit every query belongs to.

        Args:
            ids: integers `[E, M]` by the name of their axis; empty if no axis is known, so that
                every episode is a unit of its own.
            num_episodes: E, at least 2.
            num_queries: M.
        """
        episodes = np.arange(num_episodes).repeat(num_queries)
        named = {name: _Axis.of(values) for name, values in ids.items()}
        self.counts = {name: axis.num_units for name, axis in named.items()}
        self._set_axes([*named.values(), _Axis.of(episodes)])
        known = [axis for axis in named.values() if axis.num_units > 1]
        self._rarest = min(known, key=lambda axis: axis.num_units) if known else self._all[-1]

    def of_trainings(self, count: int) -> Units:
        """The same units where R trainings have answered every query, values `[R, E, M]`.

        The training is one more axis, crossed with all others.
        """
        if count == 1:
            return self
        repeated = copy(self)
        training = np.arange(count).repeat(len(self._rarest.of_query))
        axes = [axis.tiled(count) for axis in self._all]
        repeated._set_axes([*axes, _Axis.of(training)])  # noqa: SLF001  (of this class)
        repeated._rarest = self._rarest.tiled(count)  # noqa: SLF001
        return repeated

    def _set_axes(self, every: list[_Axis]) -> None:
        axes = [axis for axis in every if axis.num_units > 1]
        self._all = axes
        self._crossed = [
            axis
            for number, axis in enumerate(axes)
            if not any(
                axis.is_within(other) and not (place > number and other.is_within(axis))
                for place, other in enumerate(axes)
                if place != number
            )
        ]

    @property
    def single(self) -> tuple[str, ...]:
        """The axes with one unit: nothing can be said about other units of theirs."""
        return tuple(name for name, count in self.counts.items() if count == 1)

    @property
    def are_enough(self) -> bool:
        """Whether an axis has two or more units, or no axis is known."""
        return not self.counts or len(self.single) < len(self.counts)

    def halves(self, values: np.ndarray) -> tuple[float, float]:
        """The means of the values `[E, M]` over two halves of the units.

        The axis with the fewest units is halved: what holds for one of two writers may not hold for
        the other.  Episodes are halved if no axis has two units.
        """
        is_first = self._rarest.of_query % 2 == 0
        flat = values.reshape(-1)
        return float(flat[is_first].mean()), float(flat[~is_first].mean())

    def estimate(self, values: np.ndarray) -> Estimate:
        """The mean of the values `[E, M]` with its standard error over units and episodes.

        Values of several trainings are `[R, E, M]`; see `of_trainings`.

        The variance is the sum of the one-way cluster-robust variances of all axes (Cameron,
        Gelbach and Miller 2011, "Robust inference with multiway clustering", equation 2.9, each
        with its factor G / (G - 1)).  Each of them counts the noise of single queries; all but one
        of these counts are taken off, as in a crossed analysis of variance.  What axes have in
        common beyond that counts several times, which makes intervals wider than they need be
        (Davezies, D'Haultfœuille and Guyonvarch 2021).  An axis whose units lie within units of
        another one is covered by it.  The result is at least the variance over any single axis.

        The degrees of freedom are Satterthwaite's (1946), at least those of the axis with the
        fewest units, as for few readers in Hillis (2007).
        """
        flat = values.reshape(-1).astype(np.float64)
        mean = float(flat.mean())
        residuals = flat - mean
        parts = [axis.variance(residuals) for axis in self._crossed]
        noise, freedom = residuals, len(flat) - 1
        for axis in self._crossed:
            noise, freedom = axis.without_means(noise), freedom - (axis.num_units - 1)
        overlap = float(np.square(noise).sum()) / freedom / len(flat) if freedom > 0 else 0.0
        least = max(axis.variance(residuals) for axis in self._all)
        variance = max(sum(parts) - (len(parts) - 1) * overlap, least)
        if not math.isfinite(variance) or variance == 0:
            return Estimate(mean, math.sqrt(variance), 1.0)
        pairs = list(zip(parts, self._crossed, strict=True))
        spread = sum(part**2 / (axis.num_units - 1) for part, axis in pairs)
        fewest = min(axis.num_units for axis in self._crossed) - 1
        satterthwaite = variance**2 / spread if spread > 0 else math.inf
        return Estimate(mean, math.sqrt(variance), max(float(fewest), satterthwaite))
