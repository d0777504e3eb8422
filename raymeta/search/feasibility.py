"""Where trials are likely to fail, judged by the trials that failed and those that did not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point, Space
from raymeta.search.tried_points import TriedPoints

_LENGTHS = (1.5, 10.0)  # of the classifier, in ranges: regions that fail are large, as a rule
_SCALES = (10.0, 1e3)  # its prior variance: success is certain nearly everywhere, or failure
_MOST_FITTED = 100  # trials that the classifier's length scales are fitted to
_LEAST_LIKELY = 0.8  # probability of success of a point that is tried
_NEARLY = 0.9  # of the greatest probability, where none is as likely as that
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

    It is the nearest of random points that are likely to succeed, or are nearly the likeliest.

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
    distances = _squares(encoded(space, points), encoded(space, [point]))[:, 0]
    distances[likely < min(_LEAST_LIKELY, _NEARLY * likely.max())] = np.inf
    return points[int(distances.argmin())]


def nearest_allowed(
    space: Space,
    point: Point,
    tried: TriedPoints,
    rng: np.random.Generator,
    why_not: Callable[[Point], str],
) -> Point:
    """The nearest of random untried points that is not known to fail.

    Raises:
        SearchError: all of them are.
    """
    drawn = [tried.draw(rng) for _ in range(_MOST_REDRAWN)]
    distances = _squares(encoded(space, drawn), encoded(space, [point]))[:, 0]
    nearest = (drawn[number] for number in np.argsort(distances, kind="stable"))
    found = next((p for p in nearest if p not in tried and not why_not(p)), None)
    if found is None:
        raise SearchError(
            f"none of {_MOST_REDRAWN} random points of the search space may be tried; the one that "
            f"was asked for may not since {why_not(point)}"
        )
    return found


class Feasibility:
    """The probability that a trial at a point succeeds, by a Gaussian process classifier.

    Its length scales, one a parameter, are those of the greatest likelihood in Laplace's
    approximation (Rasmussen and Williams 2006, sections 3.4 and 5.5.1), in fractions of the ranges.

    Args:
        space: the search space.
        succeeded: the points of the trials that did not fail, at least one.
        failed: the points of those that failed, at least one.
    """

    def __init__(self, space: Space, succeeded: Sequence[Point], failed: Sequence[Point]) -> None:
        # Seconds to import, which most searches never need.
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
        from sklearn.gaussian_process import GaussianProcessClassifier  # noqa: PLC0415
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern  # noqa: PLC0415

        self._space = space
        rows = encoded(space, [*succeeded, *failed])
        labels = np.array([1] * len(succeeded) + [0] * len(failed))
        scale = Matern(np.ones(rows.shape[1]), length_scale_bounds=_LENGTHS, nu=2.5)
        kernel = ConstantKernel(_SCALES[0], _SCALES) * scale
        few = np.linspace(0, len(labels) - 1, min(len(labels), _MOST_FITTED)).round().astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound is no fault
            self._model = GaussianProcessClassifier(kernel).fit(rows[few], labels[few])
            if len(few) < len(labels):
                found = self._model.kernel_
                self._model = GaussianProcessClassifier(found, optimizer=None).fit(rows, labels)

    def probabilities(self, points: Sequence[Point]) -> np.ndarray:
        """The probability of success at each point, shape (points)."""
        return np.asarray(self._model.predict_proba(encoded(self._space, points))[:, 1])


def encoded(space: Space, points: Sequence[Point]) -> np.ndarray:
    """The points as rows of fractions of the ranges, shape (points, columns).

    Two different values of an unordered choice have the distance 1.
    """
    rows = [[x for p in space.parameters for x in _columns(p, point)] for point in points]
    return np.array(rows, dtype=float)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The squared distances between rows, shape (rows of a, rows of b)."""
    return np.asarray(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1))


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
