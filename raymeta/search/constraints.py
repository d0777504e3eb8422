"""Linear constraints between parameters: parsing, and testing their feasibility."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymeta.errors import SearchError, shown
from raymeta.experiment.parameter import Parameter

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ANY_NAME = r"[^\W\d][\w./]*"
_BOUND = re.compile(rf"\s*(<=|>=)\s*([+-]?{NUMBER})\s*")
_SHRINK = 1e-7  # relative tolerance: the solver may break a bound by as much
_MUCH_NARROWER = 0.1  # smallest fraction of a range that is not cut
_INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True)
class LinearConstraint:
    """Σ weight · parameter ≤ bound; `text` is the user's text."""

    text: str
    weights: Mapping[str, float]
    bound: float

    @classmethod
    def parse(cls, text: str, names: Collection[str]) -> LinearConstraint:
        """Reads a constraint such as `x + 2 * y <= 3`.

        Names are matched exactly, whatever characters they have; where several match at one place,
        the longest is taken.

        Raises:
            SearchError: it is not of this form, or names a parameter that is not searched.
        """
        try:
            weights, bound, sign = _read(text, "|".join(map(re.escape, _longest_first(names))))
        except ValueError:
            try:
                weights, _, _ = _read(text, _ANY_NAME)
            except ValueError:
                raise SearchError(
                    f"the constraint '{text}' must be linear, such as 'x + 2 * y <= 3' or "
                    "'x - y >= 0'"
                ) from None
            unknown = next((name for name in weights if name not in names), next(iter(weights)))
            raise SearchError(
                f"the constraint '{text}' names {unknown}, which is not searched"
            ) from None
        if not all(map(math.isfinite, (bound, *weights.values()))):
            raise SearchError(f"the constraint '{text}' must have finite numbers")
        return cls(text, {name: sign * weight for name, weight in weights.items()}, sign * bound)

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether a point satisfies the constraint, up to rounding errors."""
        total = sum(weight * point[name] for name, weight in self.weights.items())
        return bool(total <= self.bound + 1e-9 * (1 + abs(self.bound)))


def _longest_first(names: Collection[str]) -> Iterator[str]:
    yield from sorted(names, key=len, reverse=True)


def _read(text: str, names: str) -> tuple[dict[str, float], float, int]:
    """Parses weights, bound and the sign that makes it a `<=`; ValueError if it is not linear."""
    if not names:
        raise ValueError(text)
    term = re.compile(
        rf"\s*([+-]?)\s*(?:({NUMBER})\s*\*\s*)?({names})(?=\s*(?:[+-]|<=|>=|$))", re.DOTALL
    )
    weights: dict[str, float] = {}
    at = 0
    while (found := term.match(text, at)) and (found[1] or not weights):
        weight = float(found[2] or 1) * (-1 if found[1] == "-" else 1)
        weights[found[3]] = weights.get(found[3], 0.0) + weight
        at = found.end()
    end = _BOUND.fullmatch(text, at)
    if end is None or not weights:
        raise ValueError(text)
    return weights, float(end[2]), 1 if end[1] == "<=" else -1


def listed(name: str, constraints: Sequence[str]) -> tuple[str, ...]:
    """The constraints as a tuple of texts.

    Raises:
        SearchError: they are one text, of which each character would be a constraint, or no texts.
    """
    if isinstance(constraints, str):
        raise SearchError(f"{name} must be a list of texts, but got {constraints!r}; put it in [ ]")
    for constraint in constraints:
        if not isinstance(constraint, str):
            raise SearchError(
                f"{name} must be texts such as 'x + 2 * y <= 3', but got {shown(constraint)}"
            )
    return tuple(constraints)


def check_feasible(
    parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]
) -> None:
    """Refuses constraints that no point of the space satisfies.

    Raises:
        SearchError: there are some; the message has their text.
    """
    if not constraints or _is_feasible(parameters, constraints):
        return
    conflict = list(constraints)
    for constraint in constraints:  # the rest is jointly infeasible, but no part of it is
        rest = [other for other in conflict if other is not constraint]
        if rest and not _is_feasible(parameters, rest):
            conflict = rest
    texts = " and ".join(f"'{constraint.text}'" for constraint in conflict)
    noun = "constraints" if len(conflict) > 1 else "constraint"
    raise SearchError(f"no point of the search space satisfies the {noun} {texts}")


def nearest_feasible(
    point: Mapping[str, Any],
    parameters: Sequence[Parameter],
    constraints: Sequence[LinearConstraint],
) -> dict[str, Any]:
    """Moves the constrained values of a point as little as the constraints and integers allow.

    Distances are measured as fractions of each parameter's range, and summed.

    Raises:
        SearchError: no point satisfies the constraints.
    """
    involved = _involved(parameters, constraints)
    for shrink in (_SHRINK, 0.0):
        found = _solve(involved, constraints, near=point, shrink=shrink)
        if found is not None:
            values = zip(involved, found, strict=True)
            return {**point, **{p.name: p.snapped(float(value)) for p, value in values}}
    check_feasible(parameters, constraints)
    raise SearchError("no point was found that satisfies the constraints of the search space")


def _involved(
    parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]
) -> list[Parameter]:
    names = {name for constraint in constraints for name in constraint.weights}
    return [parameter for parameter in parameters if parameter.name in names]


def _is_feasible(parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]) -> bool:
    return _solve(_involved(parameters, constraints), constraints) is not None


def _solve(
    parameters: Sequence[Parameter],
    constraints: Sequence[LinearConstraint],
    *,
    near: Mapping[str, Any] | None = None,
    shrink: float = 0.0,
) -> np.ndarray | None:
    """Solves the mixed-integer linear program of the constraints; None where it is infeasible.

    With `near`, it minimises the distance to that point by a variable for each absolute value.
    """
    from scipy.optimize import Bounds, milp  # noqa: PLC0415  (slow to import, and seldom needed)
    from scipy.optimize import LinearConstraint as Rows  # noqa: PLC0415

    number = len(parameters)
    weights, bounds = matrix(parameters, constraints)
    low, high = ends(parameters)
    integers = np.array([parameter.integer for parameter in parameters], dtype=int)
    rows = [Rows(weights, ub=bounds - shrink * (1 + abs(bounds)))]
    cost = np.zeros(number)
    if near is not None:
        at = np.array([float(near[parameter.name]) for parameter in parameters])
        unit = np.eye(number)
        weights = np.hstack([weights, np.zeros_like(weights)])
        rows = [
            Rows(weights, ub=rows[0].ub),
            Rows(np.hstack([unit, -unit]), ub=at),
            Rows(np.hstack([-unit, -unit]), ub=-at),
        ]
        cost = np.concatenate([cost, 1 / (high - low)])
        low, high = np.concatenate([low, np.zeros(number)]), np.concatenate([high, high - low])
        integers = np.concatenate([integers, np.zeros(number, dtype=int)])
    result = milp(cost, constraints=rows, bounds=Bounds(low, high), integrality=integers)
    if result.x is not None:
        return np.asarray(result.x[:number])
    if near is None and result.status != _INFEASIBLE:
        return (low + high) / 2  # the solver cannot tell
    return None


def box(
    parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]
) -> tuple[np.ndarray, np.ndarray]:
    """Narrows the ends of ranges of which the constraints leave little."""
    from scipy.optimize import Bounds, milp  # noqa: PLC0415  (as in `_solve`)
    from scipy.optimize import LinearConstraint as Rows  # noqa: PLC0415

    weights, bounds = matrix(parameters, constraints)
    low, high = ends(parameters)
    integers = np.array([parameter.integer for parameter in parameters], dtype=int)
    box_low, box_high = low.copy(), high.copy()
    for number, cost in enumerate(np.eye(len(parameters))):
        found = [
            milp(
                sign * cost,
                constraints=Rows(weights, ub=bounds),
                bounds=Bounds(low, high),
                integrality=integers,
            ).x
            for sign in (1, -1)
        ]
        if found[0] is None or found[1] is None:
            continue
        least, most = (float(np.clip(x[number], low[number], high[number])) for x in found)
        if integers[number]:
            least, most = round(least), round(most)
        if 0 <= most - least < _MUCH_NARROWER * (high[number] - low[number]):
            box_low[number], box_high[number] = least, most
    return box_low, box_high


def matrix(
    parameters: Sequence[Parameter], constraints: Sequence[LinearConstraint]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights, shape (constraints, parameters), and bounds, shape (constraints)."""
    weights = [[c.weights.get(p.name, 0.0) for p in parameters] for c in constraints]
    return np.array(weights), np.array([constraint.bound for constraint in constraints])


def ends(parameters: Sequence[Parameter]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the low and high ends of ranges."""
    return (
        np.array([float(parameter.ends[0]) for parameter in parameters]),
        np.array([float(parameter.ends[-1]) for parameter in parameters]),
    )
