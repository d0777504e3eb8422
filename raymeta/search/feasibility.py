"""Where trials are likely to fail, judged by the trials that failed and those that did not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymeta.experiment.parameter import Parameter
from raymeta.search.space import Point, Space

_POWER = 4  # of the distance: the nearest trials decide, and several failures outvote one success
_LEAST_SQUARE = 1e-12  # of a distance


class Feasibility:
    """The probability that a trial at a point succeeds: inverse distance weighting (Shepard 1968).

    Distances are those between the parameters' fractions of their ranges; two different values of
    an unordered choice have the distance 1.

    Args:
        space: the search space.
        succeeded: the points of the trials that did not fail, at least one.
        failed: the points of those that failed, at least one.
    """

    def __init__(self, space: Space, succeeded: Sequence[Point], failed: Sequence[Point]) -> None:
        self._parameters = space.parameters
        self._rows = self._encoded([*succeeded, *failed])
        self._labels = np.array([1.0] * len(succeeded) + [0.0] * len(failed))

    def probabilities(self, points: Sequence[Point]) -> np.ndarray:
        """The probability of success at each point, shape (points)."""
        squares = self._squares(self._encoded(points), self._rows)
        # Relative to the nearest trial, so that no power of a small distance overflows.
        nearest = squares.min(axis=1, keepdims=True)
        weights = (nearest / squares) ** (_POWER / 2)
        return np.asarray(weights @ self._labels / weights.sum(axis=1))

    def distances(self, points: Sequence[Point], point: Point) -> np.ndarray:
        """The distance of each point from one, shape (points)."""
        return np.asarray(
            np.sqrt(self._squares(self._encoded(points), self._encoded([point]))[:, 0])
        )

    def _squares(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        differences = a[:, None, :] - b[None, :, :]
        return np.maximum((differences**2).sum(axis=-1), _LEAST_SQUARE)

    def _encoded(self, points: Sequence[Point]) -> np.ndarray:
        rows = [[x for p in self._parameters for x in _columns(p, point)] for point in points]
        return np.array(rows, dtype=float)


def _columns(parameter: Parameter, point: Point) -> list[float]:
    """A parameter's columns; those of one that does not exist in the point are its middle."""
    exists = parameter.name in point
    choices = parameter.choices
    if choices is None:
        return [_fraction(parameter, point[parameter.name]) if exists else 0.5]
    at = choices.index(parameter.exact(point[parameter.name])) if exists else None
    if parameter.is_ordered:
        return [0.5 if at is None else at / max(len(choices) - 1, 1)]
    return [math.sqrt(0.5) * (number == at) for number in range(len(choices))]


def _fraction(parameter: Parameter, value: float) -> float:
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)
