"""A Gaussian process that averages over its hyperparameters (Snoek et al. 2012, section 3.1).

The hyperparameters are drawn from their posterior by slice sampling (Neal 2003, figures 3 and 5),
one coordinate after another, and each draw is a member of the ensemble.  An acquisition function is
the mean over the members: the integrated acquisition function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from botorch.models.transforms.input import InputTransform
from botorch.posteriors.fully_bayesian import MCMC_DIM, GaussianMixturePosterior
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from torch import Tensor

from raymeta.search.categorical_gp import (
    LEAST_LENGTHSCALE,
    PRIOR_STD,
    CategoricalGP,
    mean_of_log_lengthscales,
)

NUM_MEMBERS = 8
_BURN_IN, _THINNING = 10, 2  # sweeps over all coordinates
_WIDTH = 1.0  # initial width of a slice, in logarithms
_MOST_STEPS = 8  # largest step out, in widths
_NOISE_MEAN, _NOISE_STD, _LEAST_NOISE = -4.0, 1.0, 1e-4  # prior of the log noise, as in BoTorch

LogDensity = Callable[[np.ndarray], float]


class EnsembleGP(CategoricalGP):
    """A `CategoricalGP` with Matérn-5/2 kernels and several draws of its hyperparameters.

    Args:
        train_X, train_Y, cat_dims, train_Yvar, input_transform: as of `CategoricalGP`, with one
            metric and without batch dimensions.
        seed: seeds the draws.
    """

    _is_ensemble = True
    _supports_batched_models = False
    _is_smooth = False

    def __init__(
        self,
        train_X: Tensor,  # noqa: N803
        train_Y: Tensor,  # noqa: N803
        cat_dims: Sequence[int] = (),
        train_Yvar: Tensor | None = None,  # noqa: N803
        input_transform: InputTransform | None = None,
        seed: int = 0,
    ) -> None:
        self.seed, self.cat_dims = seed, list(cat_dims)
        super().__init__(
            train_X.repeat(NUM_MEMBERS, 1, 1),
            train_Y.repeat(NUM_MEMBERS, 1, 1),
            cat_dims,
            None if train_Yvar is None else train_Yvar.repeat(NUM_MEMBERS, 1, 1),
            input_transform=input_transform,
        )

    @classmethod
    def construct_inputs(cls, *args: Any, seed: int = 0, **keywords: Any) -> dict[str, Any]:
        """Builds the constructor's arguments from Ax's."""
        inputs = super().construct_inputs(*args, **keywords)
        del inputs["likelihood"]
        return {**inputs, "seed": seed}

    def posterior(self, X: Tensor, *args: Any, **keywords: Any) -> GaussianMixturePosterior:
        """The mixture of the members' posteriors at points of shape (..., q, parameters)."""
        found = super().posterior(X.unsqueeze(MCMC_DIM), *args, **keywords)
        assert isinstance(found, GPyTorchPosterior)
        return GaussianMixturePosterior(distribution=found.distribution)

    def custom_fit(self, mll: ExactMarginalLogLikelihood, **_: Any) -> ExactMarginalLogLikelihood:
        """Draws the members' hyperparameters: BoTorch calls this in place of its own fit."""
        mll.eval()
        inputs = self.train_inputs[0][0].detach().cpu().numpy()
        targets = self.train_targets[0].detach().cpu().numpy()
        is_noise_known = isinstance(self.likelihood, FixedNoiseGaussianLikelihood)
        noise = self.likelihood.noise[0].detach().cpu().numpy() if is_noise_known else None
        density = HyperparameterPosterior(inputs, targets, self.cat_dims, noise)
        rng = np.random.default_rng(self.seed)
        draws = slice_sampled(density, density.start, NUM_MEMBERS, rng)
        mll.train()
        density.write(self, torch.as_tensor(np.array(draws)).to(self.train_targets))
        mll.eval()
        return mll


class HyperparameterPosterior:
    """The log density of (logarithms of length scales, mean, logarithm of the noise's variance).

    Args:
        inputs: shape (trials, parameters).
        targets: shape (trials).
        cat_dims: the columns of the choices.
        noise: known variances, shape (trials); None to infer one for all, which then is the last
            coordinate.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        cat_dims: Sequence[int],
        noise: np.ndarray | None,
    ) -> None:
        self._targets, self._noise = targets, noise
        self._choices = list(cat_dims)
        self._numbers = [dim for dim in range(inputs.shape[1]) if dim not in cat_dims]
        differences = inputs[:, None, :] - inputs[None, :, :]
        self._squares = differences[..., self._numbers] ** 2
        self._differ = (np.abs(differences[..., self._choices]) > 0).astype(float)
        centre = mean_of_log_lengthscales(len(self._numbers))
        self._centres = np.array([centre] * len(self._numbers) + [0.0] * len(self._choices))
        rest = [0.0] if noise is not None else [0.0, _NOISE_MEAN]
        self.start = np.concatenate([np.minimum(self._centres, 0.0), rest])

    def __call__(self, at: np.ndarray) -> float:
        """Evaluates a vector of coordinates up to a constant; minus infinity outside the bounds."""
        count, dims = len(self._targets), len(self._centres)
        logs, mean = at[:dims], at[dims]
        scales = np.exp(logs)
        if scales.min(initial=1.0) < LEAST_LENGTHSCALE or scales.max(initial=1.0) > 1e6:
            return -math.inf
        prior = -0.5 * float((((logs - self._centres) / PRIOR_STD) ** 2).sum())
        noise = self._noise
        if noise is None:
            variance = math.exp(at[-1]) if at[-1] < 50 else math.inf
            if not _LEAST_NOISE <= variance < math.inf:
                return -math.inf
            prior -= 0.5 * ((at[-1] - _NOISE_MEAN) / _NOISE_STD) ** 2
            noise = np.full(count, variance)
        try:
            factor = cholesky(self._kernel(scales) + np.diag(noise), lower=True)
        except LinAlgError:
            return -math.inf
        solved = solve_triangular(factor, self._targets - mean, lower=True)
        return prior - 0.5 * float(solved @ solved) - float(np.log(factor.diagonal()).sum())

    def _kernel(self, scales: np.ndarray) -> np.ndarray:
        """Matérn 5/2 over the numbers times the overlap kernel over the choices."""
        kernel = np.ones((len(self._targets),) * 2)
        if self._numbers:
            squares = self._squares @ (1 / scales[: len(self._numbers)] ** 2)
            distance = np.sqrt(5 * squares)
            kernel *= (1 + distance + 5 / 3 * squares) * np.exp(-distance)
        if self._choices:
            weights = 1 / scales[len(self._numbers) :] / len(self._choices)
            kernel *= np.exp(-(self._differ @ weights))
        return kernel

    def write(self, model: EnsembleGP, draws: Tensor) -> None:
        """Writes draws of shape (members, coordinates) to the members' hyperparameters."""
        scales = draws[:, : len(self._centres)].exp()
        for kernel in _kernels(model):
            dims = kernel.active_dims.tolist()
            first = 0 if dims == self._numbers else len(self._numbers)
            kernel.lengthscale = scales[:, None, first : first + len(dims)]
        model.mean_module.initialize(constant=draws[:, len(self._centres)])
        if self._noise is None:
            model.likelihood.noise = draws[:, -1:].exp()


def _kernels(model: EnsembleGP) -> list[Any]:
    covar = model.covar_module
    return list(covar.kernels) if hasattr(covar, "kernels") else [covar]


def slice_sampled(
    density: LogDensity, start: np.ndarray, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draws from a log density, one coordinate at a time (Neal 2003)."""
    at, found = start.copy(), []
    level = density(at)
    for sweep in range(_BURN_IN + count * _THINNING):
        for coordinate in rng.permutation(len(at)):
            level = _moved(density, at, int(coordinate), level, rng)
        if sweep >= _BURN_IN and (sweep - _BURN_IN) % _THINNING == _THINNING - 1:
            found.append(at.copy())
    return found


def _moved(
    density: LogDensity, at: np.ndarray, coordinate: int, level: float, rng: np.random.Generator
) -> float:
    """Moves a coordinate of `at` in place; returns the new log density."""
    before = at[coordinate]
    floor = level - rng.exponential()

    def value(there: float) -> float:
        at[coordinate] = there
        return density(at)

    low = before - _WIDTH * rng.random()
    high = low + _WIDTH
    left = int(rng.integers(_MOST_STEPS + 1))
    right = _MOST_STEPS - left
    while left > 0 and value(low) > floor:
        low, left = low - _WIDTH, left - 1
    while right > 0 and value(high) > floor:
        high, right = high + _WIDTH, right - 1
    while True:
        there = float(rng.uniform(low, high))
        found = value(there)
        if found > floor or there == before:
            return found
        low, high = (there, high) if there < before else (low, there)
