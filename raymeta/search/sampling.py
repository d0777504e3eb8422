"""Random points of a search space, uniform under its constraints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import null_space
from scipy.optimize import linprog

from raymeta.experiment.parameter import Parameter
from raymeta.search.constraints import LinearConstraint, box, matrix, nearest_feasible
from raymeta.search.space import Point, Space

MOST_DRAWS = 10_000  # draws that break a constraint before the polytope is sampled
_STEPS_PER_DIMENSION = 20  # steps of hit-and-run between two points
_LARGEST_INTEGER = 2**63 - 2  # of numpy's


class PointSampler:
    """Draws points by rejection, or by hit-and-run if few draws meet the constraints."""

    def __init__(self, space: Space) -> None:
        self._space = space
        names = {name for constraint in space.linear_constraints for name in constraint.weights}
        self._constrained = [p for p in space.parameters if p.name in names]
        self._polytope: _Polytope | None = None

    def draw(self, rng: np.random.Generator) -> Point:
        """A point of the space.

        Raises:
            SearchError: no point satisfies the constraints.
        """
        constraints = self._space.linear_constraints
        if self._polytope is None:
            for _ in range(MOST_DRAWS):
                point = self._unconstrained(rng)
                if all(constraint.holds(point) for constraint in constraints):
                    return self._space.tidied(point)
            self._polytope = _Polytope(self._constrained, constraints)
        point = self._unconstrained(rng)
        values = self._polytope.draw(rng)
        relaxed = {p.name: float(v) for p, v in zip(self._constrained, values, strict=True)}
        found = self._space.tidied({**point, **relaxed})
        if all(constraint.holds(found) for constraint in constraints):
            return found
        # Rounding to whole numbers broke a constraint.
        return nearest_feasible({**found, **relaxed}, self._constrained, constraints)

    def _unconstrained(self, rng: np.random.Generator) -> Point:
        point: Point = {}
        for parameter in self._space.in_order:
            if parameter.exists_in(point):
                point[parameter.name] = _random_value(parameter, rng)
        return point


def _random_value(parameter: Parameter, rng: np.random.Generator) -> Any:
    if parameter.choices is not None:
        return parameter.choices[rng.integers(len(parameter.choices))]
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.log:
        return parameter.snapped(math.exp(rng.uniform(math.log(low), math.log(high))))
    if parameter.integer and parameter.step is None and max(-low, high) <= _LARGEST_INTEGER:
        return int(rng.integers(round(low), round(high) + 1))
    return parameter.snapped(rng.uniform(low, high))


class _Polytope:
    """Hit-and-run (Smith 1984) in the polytope of the constraints, in units of the ranges.

    Whole numbers are taken as real ones, half a step beyond their ends.
    """

    def __init__(
        self, parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]
    ) -> None:
        weights, bounds = matrix(parameters, constraints)
        low, high = box(parameters, constraints)
        self._low, self._width = low, high - low
        rows = weights * self._width
        scale = np.abs(rows).max(axis=1)
        scale[scale == 0] = 1.0
        margin = np.array([0.49 if p.integer else 0.0 for p in parameters])
        margin = np.divide(margin, self._width, out=np.zeros(len(low)), where=self._width > 0)
        unit = np.eye(len(parameters))
        self._rows = np.vstack([rows / scale[:, None], unit, -unit])
        slack = (bounds - weights @ low) / scale
        slack[~rows.any(axis=1)] = 1.0  # this constraint has no free parameter
        self._bounds = np.concatenate([slack, 1 + margin, margin])
        self._at, equal = self._relative_interior()
        self._free = ~equal
        # Keep directions along which every equality stays satisfied.
        self._basis = null_space(self._rows[equal]) if equal.any() else unit

    def _relative_interior(self) -> tuple[np.ndarray, np.ndarray]:
        """Finds a point with slack in every row that can have any, and the rows without slack.

        max Σ s  with  A x + s <= b t,  0 <= s <= 1 <= t;  the point is x / t (Freund et al. 1985).
        """
        number, dims = self._rows.shape
        cost = np.concatenate([np.zeros(dims), -np.ones(number), [0.0]])
        left = np.hstack([self._rows, np.eye(number), -self._bounds[:, None]])
        limits = [(None, None)] * dims + [(0, 1)] * number + [(1, None)]
        result = linprog(cost, A_ub=left, b_ub=np.zeros(number), bounds=limits)
        if result.x is None:
            raise ValueError(result.message)
        point = result.x[:dims] / result.x[-1]
        equal = result.x[dims:-1] < 0.5
        if equal.any():  # project onto the equalities: the solver is not exact
            rows = self._rows[equal]
            point -= np.linalg.pinv(rows) @ (rows @ point - self._bounds[equal])
        return point, equal

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A point, shape (parameters)."""
        rows, bounds = self._rows[self._free], self._bounds[self._free]
        for _ in range(_STEPS_PER_DIMENSION * self._basis.shape[1]):
            direction = self._basis @ rng.standard_normal(self._basis.shape[1])
            speed, slack = rows @ direction, np.maximum(bounds - rows @ self._at, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                until = slack / speed
            ahead, behind = until[speed > 0], until[speed < 0]
            if len(ahead) and len(behind):
                self._at = self._at + rng.uniform(behind.max(), ahead.min()) * direction
        return np.asarray(self._low + self._at * self._width)


def all_points(space: Space, most: int) -> list[Point] | None:
    """Lists all points of a discrete space; None if there may be more than `most`."""
    counts = [parameter.num_values for parameter in space.parameters]
    if math.prod(count or most + 1 for count in counts) > most:
        return None
    lists = {parameter.name: parameter.listed(most) or [] for parameter in space.parameters}
    points = (
        space.tidied(dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    )
    # Drop duplicates: points may differ only in inactive parameters.
    distinct = {frozenset(point.items()): point for point in points}
    constraints = space.linear_constraints
    return [p for p in distinct.values() if all(c.holds(p) for c in constraints)]
