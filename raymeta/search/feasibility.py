"""Predicts where trials are likely to fail from the trials that failed and succeeded."""

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

_LENGTHS = (1.5, 10.0)  # length scales, in ranges: failing regions are usually large
_SCALES = (10.0, 1e3)  # prior variance: most points surely succeed or surely fail
_MOST_FITTED = 100  # most trials that length scales are fitted to
_LEAST_LIKELY = 0.8  # least probability of success of a point to try
_NEARLY = 0.9  # else this share of the greatest probability
_MOST_REDRAWN = 256  # candidates to replace a point that is likely to fail
_VALUES = {"completed": 1.0, "early_stopped": 1.0, "failed": 0.0}


def successes(records: Mapping[str, TrialRecord]) -> dict[str, float]:
    """Maps each trial to 1 if it gave a value, and 0 if it failed."""
    return {i: _VALUES[record.status] for i, record in records.items() if record.status in _VALUES}


def likelier_to_succeed(
    space: Space,
    labels: Sequence[tuple[Point, float]],
    point: Point,
    tried: TriedPoints,
    rng: np.random.Generator,
) -> Point | None:
    """Finds a point to replace one that is likely to fail; None if there is none.

    It is the nearest random point that is likely to succeed, or nearly the likeliest to.

    Args:
        space: the search space.
        labels: the trials' points, each with 1 for success or 0 for failure.
        point: the point to replace.
        tried: points that were tried and are not chosen again.
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
    """Finds the nearest random untried point that is not known to fail.

    Raises:
        SearchError: all of them are known to fail.
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

    Its length scales, one per parameter, maximise the likelihood in Laplace's approximation
    (Rasmussen and Williams 2006, sections 3.4 and 5.5.1), in fractions of the ranges.

    Args:
        space: the search space.
        succeeded: points of trials that did not fail, at least one.
        failed: points of trials that failed, at least one.
    """

    def __init__(self, space: Space, succeeded: Sequence[Point], failed: Sequence[Point]) -> None:
        # Takes seconds to import, and most searches never need it.
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
            warnings.simplefilter("ignore", ConvergenceWarning)  # about scales at their bounds
            self._model = GaussianProcessClassifier(kernel).fit(rows[few], labels[few])
            if len(few) < len(labels):
                found = self._model.kernel_
                self._model = GaussianProcessClassifier(found, optimizer=None).fit(rows, labels)

    def probabilities(self, points: Sequence[Point]) -> np.ndarray:
        """The probability of success at each point, shape (points)."""
        return np.asarray(self._model.predict_proba(encoded(self._space, points))[:, 1])


def encoded(space: Space, points: Sequence[Point]) -> np.ndarray:
    """Encodes points as fractions of the ranges, shape (points, columns).

    Two different values of an unordered choice have the distance 1.
    """
    rows = [[x for p in space.parameters for x in _columns(p, point)] for point in points]
    return np.array(rows, dtype=float)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The squared distances between rows, shape (rows of a, rows of b)."""
    return np.asarray(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1))


def _columns(parameter: Parameter, point: Point) -> list[float]:
    """A parameter's columns; an inactive parameter gets its middle."""
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
