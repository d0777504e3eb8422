"""The Gaussian process over learning curves of `scripts/curve_gp.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from curve_gp import MOST_PER_TRIAL, CurveData, CurveGP


def matern(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> float:
    """Computes the Matérn kernel of two points."""
    r = np.sqrt(5.0 * (((a - b) / lengths) ** 2).sum())
    return float((1 + r + r**2 / 3) * np.exp(-r))


Known = tuple[np.ndarray, float, int]  # a value's point, share of the budget, trial


def covariance(model: CurveGP, one: Known, other: Known) -> float:
    """Computes the covariance of two values, term by term as the module's docstring has them."""
    a, d, g, h, e, b = np.exp(model.hyperparameters[:6])
    levels, decays = np.split(np.exp(model.hyperparameters[7:]), 2)
    (x, t, i), (y, s, j) = one, other
    decay = b / (t + s + b)
    return float(
        a * matern(x, y, levels)
        + d * b / (t + b) * b / (s + b)
        + (g * matern(x, y, decays) + h * (i == j)) * decay
        + e * (i == j)
    )


def curves(rng: np.random.Generator, count: int, lengths: list[int]) -> list[CurveData]:
    """Levels and decays that depend on the point, with a little noise, up to a share of 1."""
    found = []
    for n in range(count):
        x, length = rng.random(2), lengths[n % len(lengths)]
        t = np.arange(1, length + 1) / 10
        clean = np.sin(3 * x[0]) + x[1] ** 2 - (0.5 + x[1]) * np.exp(-t / (0.15 + 0.2 * x[0]))
        found.append(CurveData(x, t, clean + 0.01 * rng.standard_normal(length)))
    return found


def test_the_posterior_is_that_of_a_plain_gaussian_process() -> None:
    data = curves(np.random.default_rng(0), 4, [3, 5])
    model = CurveGP(data)
    known = [(c.x, t, i) for i, c in enumerate(data) for t in c.t]
    asked = [(data[1].x, 1.0, 1), (np.array([0.2, 0.9]), 1.0, -1)]
    noise = np.exp(model.hyperparameters[6]) + 1e-5
    within = np.array([[covariance(model, p, q) for q in known] for p in known])
    within += noise * np.eye(len(known))
    across = np.array([[covariance(model, p, q) for q in known] for p in asked])
    own = np.array([[covariance(model, p, q) for q in asked] for p in asked])
    z = np.concatenate([model.standard(c.y) for c in data])
    # A constant mean with a flat prior (Rasmussen and Williams 2006, equations 2.41 and 2.42).
    inverse = np.linalg.inv(within)
    ones = np.ones(len(known))
    level = ones @ inverse @ z / (ones @ inverse @ ones)
    mean = level + across @ inverse @ (z - level)
    rest = 1 - across @ inverse @ ones
    spread = own - across @ inverse @ across.T + np.outer(rest, rest) / (ones @ inverse @ ones)
    found, joint = model.joint(np.stack([p[0] for p in asked]), np.ones(2), [1, -1])
    np.testing.assert_allclose(found, mean, atol=1e-6)
    np.testing.assert_allclose(joint, spread, atol=1e-6)


def test_final_values_of_paused_trials_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(1)
    whole = curves(rng, 40, [10])
    seen = [
        CurveData(c.x, c.t[:n], c.y[:n]) for c, n in zip(whole, [10, 2, 4, 3] * 10, strict=True)
    ]
    model = CurveGP(seen)
    paused = [i for i, c in enumerate(seen) if len(c.t) < 10]
    x = np.stack([seen[i].x for i in paused])
    mean, joint = model.joint(x, np.ones(len(x)), paused)
    errors = model.standard(np.array([whole[i].y[-1] for i in paused])) - mean
    noise = np.exp(model.hyperparameters[6])
    std = np.sqrt(np.diag(joint) + noise)
    covered = float(np.mean(np.abs(errors) < 1.96 * std))
    assert covered >= 0.8
    spread = np.std(model.standard(np.array([c.y[-1] for c in whole])))
    assert np.sqrt(np.mean(errors**2)) < 0.25 * spread


def test_ruined_trials_neither_set_the_scale_nor_lose_their_order() -> None:
    data = curves(np.random.default_rng(2), 6, [4])
    ruined = CurveData(np.array([0.5, 0.5]), np.array([0.1]), np.array([-1e6]))
    usual = np.diff(CurveGP(data).standard(np.array([0.0, 1.0])))
    model = CurveGP([*data, ruined])
    assert np.diff(model.standard(np.array([0.0, 1.0]))) > 0.5 * usual
    standard = model.standard(np.array([-1e6, -1e3, 0.0, 1.0]))
    assert np.all(np.diff(standard) > 0)
    assert standard[0] > -30


def test_long_curves_keep_their_first_and_last_observation() -> None:
    t = np.arange(1, 101) / 100
    thin = CurveData(np.zeros(1), t, t).thinned()
    assert len(thin.t) <= MOST_PER_TRIAL
    assert (thin.t[0], thin.t[-1]) == (0.01, 1.0)
