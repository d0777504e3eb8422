"""Tracks the tried points of a space, and draws untried ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymeta.search.ax_parameters import MOST_LISTED
from raymeta.search.constraints import nearest_feasible
from raymeta.search.sampling import MOST_DRAWS, PointSampler, all_points
from raymeta.search.space import Point, Space


class TriedPoints:
    """The points of a search's trials, compared by value."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._sampler = PointSampler(space)
        self.is_discrete = all(p.num_values is not None for p in space.parameters)
        self._points = all_points(space, MOST_DRAWS)  # of a small discrete space
        self._keys: set[frozenset[tuple[str, Any]]] = set()

    def add(self, point: Point) -> None:
        """Marks a point as tried."""
        self._keys.add(self._key(point))

    def forget(self, point: Point) -> None:
        """Unmarks a point."""
        self._keys.discard(self._key(point))

    def clear(self) -> None:
        """Unmarks all points."""
        self._keys.clear()

    def __contains__(self, point: Point) -> bool:
        return self._key(point) in self._keys

    @property
    def are_all(self) -> bool:
        """Whether every point of a small discrete space has been tried."""
        return self._points is not None and all(point in self for point in self._points)

    def draw(self, rng: np.random.Generator) -> Point:
        """Draws a random point, tried or not."""
        return self._sampler.draw(rng)

    def draw_untried(self, rng: np.random.Generator) -> Point | None:
        """A random point; from a discrete space an untried one, None if none is found."""
        if not self.is_discrete:
            return self._sampler.draw(rng)
        if self._points is None:
            points = (self._sampler.draw(rng) for _ in range(MOST_DRAWS))
            return next((point for point in points if point not in self), None)
        left = [point for point in self._points if point not in self]
        return left[int(rng.integers(len(left)))] if left else None

    def made_feasible(self, point: Point) -> Point:
        """Restores constraints that rounding to whole numbers broke."""
        constraints = self._space.linear_constraints
        if all(constraint.holds(point) for constraint in constraints):
            return point
        return nearest_feasible(point, self._space.parameters, constraints)

    def untried_neighbour(self, point: Point) -> Point | None:
        """The nearest untried point along a wide range of whole numbers or steps.

        To Ax such a range is one of real numbers, of which several are rounded to the same point.
        """
        constraints = self._space.linear_constraints
        for distance in range(1, len(self._keys) + 1):
            for parameter in self._space.parameters:
                count = parameter.num_values or 0
                if parameter.name not in point or parameter.choices or count <= MOST_LISTED:
                    continue
                for way in (distance, -distance):
                    value = point[parameter.name] + way * (parameter.step or 1)
                    near = {**point, parameter.name: parameter.snapped(value)}
                    if near not in self and all(c.holds(near) for c in constraints):
                        return near
        return None

    def _key(self, point: Point) -> frozenset[tuple[str, Any]]:
        return frozenset(
            (p.name, p.exact(point[p.name])) for p in self._space.parameters if p.name in point
        )
