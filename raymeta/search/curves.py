"""Estimates the final value of trials that were stopped early from the curves of all trials.

A value at a low budget is not a value at the full one.  From one budget to the next at which trials
end, the value at the later is modelled as linear in that at the earlier,

    y_{k+1} = y_k + a + b (y_k - m) + ε,   a, b, ε normal, m the mean of y_k,

a Bayesian linear regression on the trials that went through both.  Chained up to the full budget,
it gives the final value as a mean and a standard deviation: what was measured where a trial ended
by itself, and a measurement with honest noise where it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from raymeta.search.records import Curve, TrialRecord

_LEAST_PAIRS = 2  # trials that a link needs at both ends
_SLOPE_STD = 0.5  # prior of b: by and large, ranks persist


def estimates(
    records: Mapping[str, TrialRecord], metrics: Sequence[str], noise_known: Collection[str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Estimates the final values of stopped trials where other trials allow it in all metrics.

    Args:
        records: all trials of the search.
        metrics: to estimate.
        noise_known: the metrics whose standard error every trial reports.

    Returns:
        By trial and metric, mean and standard deviation.
    """
    stopped = [i for i, record in records.items() if record.status == "early_stopped"]
    if not stopped:
        return {}
    finished = [i for i, record in records.items() if record.status == "completed"]
    by_metric = {}
    for number, metric in enumerate(metrics):
        curves = {i: r.curve_of(number, metric) for i, r in records.items()}
        found = final_values(curves, finished, stopped)
        if metric not in noise_known:
            # Without noise of its own, an estimate must not be vaguer than the differences
            # between trials.
            ends = [curves[i][-1][1] for i in finished]
            spread = float(np.std(ends)) if len(ends) > 1 else 0.0
            found = {i: (mean, std) for i, (mean, std) in found.items() if std <= spread}
        by_metric[metric] = found
    return {
        i: {metric: found[i] for metric, found in by_metric.items()}
        for i in stopped
        if all(i in found for found in by_metric.values())
    }


def final_values(
    curves: Mapping[str, Curve], finished: Sequence[str], stopped: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Estimates the final (mean, standard deviation) of stopped trials.

    Args:
        curves: by trial, running ones among them; those without an observation are left out.
        finished: the trials whose last observation is the final one.
        stopped: the trials to estimate.

    Returns:
        Estimates by trial; a trial is missing while too few went further.
    """
    values: dict[str, dict[float, float]] = {
        trial: {step: mean for step, mean, _ in curve} for trial, curve in curves.items()
    }
    values = {trial: by_step for trial, by_step in values.items() if by_step}
    ends: dict[str, float] = {trial: max(by_step) for trial, by_step in values.items()}
    done = {trial for trial in finished if trial in ends}
    # Finished trials may end at different steps: treat them all as the end.
    full = math.inf
    for trial in done:
        values[trial][full] = values[trial][ends[trial]]
    asked = [trial for trial in stopped if trial in ends and trial not in done]
    rungs: list[float] = [*sorted({ends[trial] for trial in asked}), full]
    links: dict[float, tuple[float, _Link] | None] = {}  # from one known rung to the next
    for number, early in enumerate(rungs[:-1]):
        pairs = ((late, _link(values.values(), early, late)) for late in rungs[number + 1 :])
        links[early] = next(((late, link) for late, link in pairs if link is not None), None)
    found = {}
    for trial in asked:
        at: float = ends[trial]
        sem = curves[trial][-1][2] or 0.0
        mean, variance = values[trial][at], sem**2
        while at != full and (step := links[at]) is not None:
            at, link = step
            mean, variance = link.predict(mean, variance)
        if at == full:
            found[trial] = (mean, math.sqrt(variance))
    return found


class _Link:
    """The link from one budget to the next: the posterior of (a, b) and of the noise."""

    def __init__(self, early: np.ndarray, late: np.ndarray) -> None:
        self._centre = early.mean()
        x, gain = early - self._centre, late - early
        spread = max(float(np.std(np.concatenate([early, late]))), 1e-12)
        # `a` has a flat prior; b is held near zero until there are enough data.
        precision = np.diag([1e-6 / spread**2, 1.0 / _SLOPE_STD**2])
        design = np.stack([np.ones_like(x), x], axis=1)
        # The noise comes from residuals of the plain shift, which overstates it, with one degree of
        # freedom less, and is at least a hundredth of the spread.
        noise = max(float(np.sum((gain - gain.mean()) ** 2)) / (len(gain) - 1), (spread / 100) ** 2)
        self._covariance = np.linalg.inv(precision + design.T @ design / noise)
        self._weights = self._covariance @ design.T @ gain / noise
        self._noise = noise

    def predict(self, mean: float, variance: float) -> tuple[float, float]:
        """Predicts mean and variance at the later budget from those at the earlier."""
        row = np.array([1.0, mean - self._centre])
        slope = 1.0 + self._weights[1]
        later = mean + float(row @ self._weights)
        return later, float(
            row @ self._covariance @ row + self._noise + max(slope, 0.0) ** 2 * variance
        )


def _link(values: Collection[Mapping[float, float]], early: float, late: float) -> _Link | None:
    """Fits a link; None if too few trials reached both budgets."""
    pairs = [(by[early], by[late]) for by in values if early in by and late in by]
    if len(pairs) < _LEAST_PAIRS:
        return None
    return _Link(*np.array(pairs).T)
