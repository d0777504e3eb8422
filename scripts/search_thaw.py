"""Freeze and thaw (Swersky, Snoek, Adams 2014) against ASHA, on trials that are curves.

The trials are those of `bench_search.py --only curves`: Hartmann-6, to which a trial comes near
slowly or quickly, in nine quanta of budget.  ASHA stops trials and its model is the search's own,
with estimates of what stopped trials would have come to.  Freeze and thaw pauses a trial after each
quantum and goes on with the one that has the most expected improvement a quantum left, at the end
of its budget, by a Gaussian process over curves (`curve_gp.py`); a new trial is one of them, at the
point of the most expected improvement by the same process.  Only values of whole trials count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from curve_gp import CurveData, CurveGP
from scipy.special import log_ndtr, ndtr
from scipy.stats import qmc

from raymeta.search import Space
from raymeta.search.ax_model import AxModel
from raymeta.search.records import Curve, Status, TrialRecord
from raymeta.search.settings import CurveUse, SearchSettings
from raymeta.search.space import Point

NUM_STARTS = 8
RUNGS, KEEP = (1, 3, 9), 3  # budgets of ASHA, and one trial in so many goes on
QUANTA = RUNGS[-1]
SHARE = 0.6  # of ASHA's budget
_REFIT_EVERY = 3  # decisions between fits of the hyperparameters
_SPREADS = (0.1, 0.05, 0.02)  # of steps from the best candidates to better ones

Value = Callable[[Point, int], float]  # of a point after so many quanta


@dataclass
class Path:
    """The best final value after each spending of budget."""

    steps: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def add(self, steps: int, value: float | None) -> None:
        """Adds quanta, and the final value of a trial that has come to its end."""
        before = self.best[-1] if self.best else -np.inf
        self.steps.append((self.steps[-1] if self.steps else 0) + steps)
        self.best.append(before if value is None else max(before, value))

    def best_within(self, budget: int) -> float:
        """The best final value of the first `budget` quanta."""
        return max(b for s, b in zip(self.steps, self.best, strict=True) if s <= budget)


def asha(
    space: Space, value: Value, seed: int, num_trials: int, curves: CurveUse = "extrapolate"
) -> Path:
    """A search whose trials successive halving stops, one trial after another."""
    settings = SearchSettings(
        objectives=(("value", "max"),), num_sobol=NUM_STARTS, seed=seed, curves=curves
    )
    torch.set_num_threads(1)
    model = AxModel(space, settings)
    reached: dict[int, list[float]] = {budget: [] for budget in RUNGS}
    path, changes = Path(), dict[str, TrialRecord]()
    for number in range(num_trials):
        proposal = model.propose(changes)
        assert proposal is not None
        curve: Curve = []
        for budget in RUNGS:
            seen = value(proposal.point, budget)
            curve.append((budget, seen, 0.01))
            reached[budget].append(seen)
            better = sorted(reached[budget], reverse=True)[: max(1, len(reached[budget]) // KEEP)]
            if seen < better[-1]:
                break
        ended = curve[-1][0] == QUANTA
        path.add(int(curve[-1][0]), curve[-1][1] if ended else None)
        status: Status = "completed" if ended else "early_stopped"
        changes = {f"t{number}": TrialRecord(proposal.point, proposal.source, status, curve)}
    return path


class FreezeThaw:
    """Trials on the unit cube, each of which may go on at any time.

    Args:
        space: of ranges from 0 to 1.
        value: of a point after so many quanta.
        seed: of the start points and the candidates.
    """

    def __init__(self, space: Space, value: Value, seed: int) -> None:
        self._names = [parameter.name for parameter in space.parameters]
        self._value, self._rng = value, np.random.default_rng(seed)
        self._starts = qmc.Sobol(len(self._names), seed=seed).random(NUM_STARTS)
        self._start: np.ndarray | None = None  # hyperparameters of the last fit
        self.points: list[np.ndarray] = []
        self.values: list[list[float]] = []
        self.path = Path()

    def run(self, budget: int) -> Path:
        """Spends so many quanta.

        All start points get one quantum, and the one that is then the best its whole budget.
        """
        for start in self._starts:
            self._begin(start)
        first = int(np.argmax([values[0] for values in self.values]))
        while len(self.values[first]) < QUANTA:
            self._go_on(first)
        candidate: np.ndarray | None = None
        decisions = 0
        while self.path.steps[-1] < budget:
            model = self._model(fits=decisions % _REFIT_EVERY == 0)
            decisions += 1
            if candidate is None:
                candidate = self._candidate(model)
            chosen = self._choose(model, candidate, budget - self.path.steps[-1])
            if chosen is not None:
                self._go_on(chosen)
            else:
                self._begin(candidate)
                candidate = None
        return self.path

    def _begin(self, point: np.ndarray) -> None:
        self.points.append(point)
        self.values.append([])
        self._go_on(len(self.points) - 1)

    def _go_on(self, trial: int) -> None:
        point = dict(zip(self._names, map(float, self.points[trial]), strict=True))
        values = self.values[trial]
        values.append(self._value(point, len(values) + 1))
        self.path.add(1, values[-1] if len(values) == QUANTA else None)

    def _model(self, *, fits: bool) -> CurveGP:
        curves = [
            CurveData(point, np.arange(1, len(values) + 1) / QUANTA, np.array(values))
            for point, values in zip(self.points, self.values, strict=True)
        ]
        model = CurveGP(curves, self._start, fits=fits)
        self._start = model.hyperparameters
        return model

    def _choose(self, model: CurveGP, candidate: np.ndarray, left: int) -> int | None:
        """The paused trial to go on with; None for a new one."""
        paused = [i for i, values in enumerate(self.values) if len(values) < QUANTA]
        best = float(model.standard(np.array(self.path.best[-1:]))[0])
        x = np.array([*(self.points[i] for i in paused), candidate])
        gain = _log_gain(*_finals(model, x, [*paused, -1]), best)
        missing = np.array([*(QUANTA - len(self.values[i]) for i in paused), QUANTA])
        rate = gain - np.log(missing)
        rate[missing > left] -= 20.0  # it cannot come to its end any more
        at = int(np.argmax(rate))
        return paused[at] if at < len(paused) else None

    def _candidate(self, model: CurveGP) -> np.ndarray:
        """A new point of great expected improvement on the best final value that is expected."""
        known = np.array(self.points)
        means, _ = _finals(model, known, range(len(known)))
        top = known[np.argsort(-means)[:3]]
        found = np.concatenate([self._rng.random((300, known.shape[1])), self._near(top, 0.1, 30)])
        gains = self._gains(model, found, float(means.max()))
        for spread in _SPREADS:
            top = found[np.argsort(-gains)[:8]]
            found = np.concatenate([top, self._near(top, spread, 10)])
            gains = self._gains(model, found, float(means.max()))
        return np.asarray(found[np.argmax(gains)])

    def _near(self, points: np.ndarray, spread: float, count: int) -> np.ndarray:
        many = np.repeat(points, count, axis=0)
        return np.asarray(np.clip(many + spread * self._rng.standard_normal(many.shape), 0, 1))

    @staticmethod
    def _gains(model: CurveGP, points: np.ndarray, best: float) -> np.ndarray:
        parts = np.array_split(points, max(1, len(points) // 50))
        return np.concatenate(
            [_log_gain(*_finals(model, part, [-1] * len(part)), best) for part in parts]
        )


def _finals(
    model: CurveGP, points: np.ndarray, trials: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the values at the end of the budget."""
    mean, covariance = model.joint(points, np.ones(len(points)), trials)
    return mean, np.sqrt(np.maximum(np.diag(covariance), 1e-12))


def _log_gain(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    """The logarithm of the expected improvement on `best`."""
    u = (mean - best) / std
    density = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    near = np.log(std * np.maximum(density + u * ndtr(u), 1e-300))
    far = np.log(std) - 0.5 * u**2 - np.log(np.sqrt(2 * np.pi) * np.maximum(u**2, 1.0))
    return np.where(u > -8.0, near, np.minimum(far, np.log(std) + log_ndtr(u)))
