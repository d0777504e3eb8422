"""Where trials are likely to fail, judged by the trials that failed and those that did not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raymeta.experiment.parameter import Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point, Space
from raymeta.search.tried_points import TriedPoints

_POWER = 4  # of the distance: the nearest trials decide, and several failures outvote one success
_LEAST_SQUARE = 1e-12  # of a distance
_LEAST_LIKELY = 0.8  # probability of success of a point that is tried
_MOST_REDRAWN = 256  # points, of which one takes the place of a point that is likely to fail
_VALUES = {"completed": 1.0, "early_stopped": 1.0, "failed": 0.0}


def successes(records: Mapping[str, TrialRecord]) -> dict[str, float]:
    """By trial, 1 where it gave a value and 0 where it failed."""
    return {i: _VALUES[record.status] for i, record in records.items() if record.status in _VALUES}


def likelier_to_succeed(
    space: Space,
    labels: Sequence[tuple[Point, float]],
    point: Point,
    tried: TriedPoints,
    rng: np.random.Generator,
) -> Point | None:
    """A point to try in place of one that is likely to fail; None where there is none.

    It is the nearest of random points that are likely to succeed, the likeliest if none is.

    Args:
        space: the search space.
        labels: the trials' points, each with 1 for success or 0 for failure.
        point: the one to try otherwise.
        tried: the points that were tried, of which none is taken.
        rng: of the random points.
    """
    succeeded = [known for known, value in labels if value]
    failed = [known for known, value in labels if not value]
    if not succeeded or not failed:
        return None
    feasibility = Feasibility(space, succeeded, failed)
    if feasibility.probabilities([point])[0] >= _LEAST_LIKELY:
        return None
    drawn = [tried.draw(rng) for _ in range(_MOST_REDRAWN)]
    points = [p for p in drawn if p not in tried]
    if not points:
        return None
    likely = feasibility.probabilities(points)
    distances = feasibility.distances(points, point)
    if likely.max() < _LEAST_LIKELY:
        return points[int(likely.argmax())]
    distances[likely < _LEAST_LIKELY] = np.inf
    return points[int(distances.argmin())]


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
