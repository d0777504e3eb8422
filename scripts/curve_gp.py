"""A Gaussian process over learning curves: values at any budget, of any point, with uncertainty.

After Swersky, Snoek and Adams 2014 (arXiv 1406.3896): a curve is a final level plus a part that
decays, and both are alike for like points.  With x a point, t the share of the budget that a trial
has used, i its trial, and k a Matérn-5/2 kernel over points, the covariance of two values is

    s_a k(x, x') + s_d q(t) q(t') + (s_g k(x, x') + s_h [i = i']) r(t, t') + s_e [i = i'],
    r(t, t') = b / (t + t' + b),    q(t) = b / (t + b):

level, decay that all trials share, decay of a point and of a trial, level of a trial.  `r` is the
mixture of exp(-λ (t + t')) over rates λ of a Gamma(1, b) distribution (their equation 6).
Hyperparameters are the most probable ones under log-normal priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

MOST_PER_TRIAL = 8  # observations of a curve that are fitted; the last one is among them
_LOG_VARIANCES = (0.0, 0.0, -1.0, -3.0, -3.0, -1.5, -6.0)  # prior means: a, d, g, h, e, b, noise
_STD = 1.0  # of the prior of each of these logarithms
_LOG_LENGTH, _LENGTH_STD = 0.0, 1.0  # of log length scales, in ranges of the parameters
_LEAST_NOISE = 1e-5
_COMPRESSED_BELOW = -2.0  # standard values below count by their logarithm: ruined trials
_NUM_ITERATIONS = 25


@dataclass(frozen=True)
class CurveData:
    """The curve of one trial: its point as fractions of the ranges, shares of the budget, values.

    Greater values are better.
    """

    x: np.ndarray  # (columns)
    t: np.ndarray  # (observations), in (0, 1]
    y: np.ndarray  # (observations)

    def thinned(self) -> CurveData:
        """Leaves observations at about equal ratios of the budget."""
        count = len(self.t)
        if count <= MOST_PER_TRIAL:
            return self
        at = np.unique(np.geomspace(1, count, MOST_PER_TRIAL).round().astype(int)) - 1
        return CurveData(self.x, self.t[at], self.y[at])


class CurveGP:
    """The posterior of learning curves.

    Args:
        curves: of all trials, at least one with an observation.
        start: hyperparameters to begin the fit with, those of an earlier model.
        fits: whether to fit hyperparameters, or to take `start` as it is.
    """

    def __init__(
        self, curves: Sequence[CurveData], start: np.ndarray | None = None, *, fits: bool = True
    ) -> None:
        kept = [curve.thinned() for curve in curves]
        self._x = torch.tensor(np.concatenate([np.tile(c.x, (len(c.t), 1)) for c in kept]))
        self._t = torch.tensor(np.concatenate([c.t for c in kept]), dtype=torch.float64)
        self._trial = torch.tensor(np.repeat(np.arange(len(kept)), [len(c.t) for c in kept]))
        y = np.concatenate([c.y for c in kept])
        last = np.array([c.y[-1] for c in kept if len(c.y)])
        self._centre = float(np.median(last))
        # Ruined trials must not set the scale: quartiles do.
        low, high = np.quantile(y, [0.25, 0.75])
        self._scale = float(high - low) / 1.35 or float(np.std(y)) or 1.0
        self._z = torch.tensor(self.standard(y))
        columns = self._x.shape[1]
        self._means = torch.tensor([*_LOG_VARIANCES, *[_LOG_LENGTH] * 2 * columns]).double()
        self._stds = torch.tensor(
            [_STD] * len(_LOG_VARIANCES) + [_LENGTH_STD] * 2 * columns
        ).double()
        self.hyperparameters: np.ndarray = self._fitted(start) if start is None or fits else start
        self._prepare()

    def standard(self, y: np.ndarray) -> np.ndarray:
        """Standardises values; compresses very bad ones."""
        z = (np.asarray(y, dtype=float) - self._centre) / self._scale
        low = np.minimum(z - _COMPRESSED_BELOW, 0.0)
        return np.where(low < 0, _COMPRESSED_BELOW - np.log1p(-low), z)

    def joint(
        self, x: np.ndarray, t: np.ndarray, trials: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicts standard values without noise.

        Args:
            x: points, shape (values, columns).
            t: shares of the budget, shape (values).
            trials: each one's trial by its place in `curves`; negative for a new one.

        Returns:
            Means, shape (values), and their covariance, shape (values, values).
        """
        own = torch.tensor(
            [i if i >= 0 else -1 - n for n, i in enumerate(trials)], dtype=torch.long
        )
        at = (torch.tensor(x), torch.tensor(t, dtype=torch.float64), own)
        with torch.no_grad():
            theta = torch.tensor(self.hyperparameters)
            cross = self._covariance(theta, at, (self._x, self._t, self._trial))
            half = torch.linalg.solve_triangular(self._root, cross.T, upper=False)
            mean = self._mean + cross @ self._weights
            covariance = self._covariance(theta, at, at) - half.T @ half
            ones = torch.ones_like(self._z)
            left = 1.0 - cross @ torch.cholesky_solve(ones[:, None], self._root)[:, 0]
            covariance = covariance + torch.outer(left, left) * self._mean_variance
        return mean.numpy(), covariance.numpy()

    # ------------------------------------------------------------------- within

    def _covariance(
        self,
        theta: Tensor,
        one: tuple[Tensor, Tensor, Tensor],
        other: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        a, d, g, h, e, b, _ = theta[: len(_LOG_VARIANCES)].exp()
        levels, decays = theta[len(_LOG_VARIANCES) :].exp().chunk(2)
        same = (one[2][:, None] == other[2][None, :]).double()
        times = b / (one[1][:, None] + other[1][None, :] + b)
        shared = torch.outer(b / (one[1] + b), b / (other[1] + b))
        level, decay = _matern(one[0], other[0], levels), _matern(one[0], other[0], decays)
        return a * level + d * shared + (g * decay + h * same) * times + e * same

    def _solved(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The root of the covariance, the constant mean and its variance."""
        own = (self._x, self._t, self._trial)
        noise = theta[len(_LOG_VARIANCES) - 1].exp() + _LEAST_NOISE
        covariance = self._covariance(theta, own, own) + noise * torch.eye(len(self._z))
        root = torch.linalg.cholesky(covariance)
        ones = torch.ones_like(self._z)
        solved = torch.cholesky_solve(torch.stack([ones, self._z], dim=1), root)
        variance = 1.0 / (ones @ solved[:, 0])
        return root, variance * (ones @ solved[:, 1]), variance

    def _loss(self, theta: Tensor) -> Tensor:
        root, mean, _ = self._solved(theta)
        white = torch.linalg.solve_triangular(root, (self._z - mean)[:, None], upper=False)
        prior = ((theta - self._means) / self._stds).square().sum()
        return 0.5 * (white.square().sum() + prior) + root.diagonal().log().sum()

    def _fitted(self, start: np.ndarray | None) -> np.ndarray:
        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.tensor(values, requires_grad=True)
            try:
                found = self._loss(theta)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return 1e10, np.zeros_like(values)
            found.backward()  # type: ignore[no-untyped-call]
            assert theta.grad is not None
            return float(found.detach()), theta.grad.numpy()

        means = self._means.numpy()
        with torch.enable_grad():
            found = minimize(
                loss,
                means if start is None else start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(m - 6.0, m + 6.0) for m in means],
                options={"maxiter": _NUM_ITERATIONS},
            )
        return np.asarray(found.x)

    def _prepare(self) -> None:
        with torch.no_grad():
            self._root, self._mean, self._mean_variance = self._solved(
                torch.tensor(self.hyperparameters)
            )
            centred = (self._z - self._mean)[:, None]
            self._weights = torch.cholesky_solve(centred, self._root)[:, 0]


def _matern(one: Tensor, other: Tensor, lengths: Tensor) -> Tensor:
    """The Matérn-5/2 kernel, shape (rows of one, rows of other)."""
    difference = (one / lengths)[:, None, :] - (other / lengths)[None, :, :]
    distance = (5.0 * difference.square().sum(-1) + 1e-12).sqrt()
    return (1.0 + distance + distance.square() / 3.0) * (-distance).exp()
