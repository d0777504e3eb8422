"""The ensemble over hyperparameters: its density against GPyTorch's, its draws, its posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood

from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.ensemble_gp import (
    NUM_MEMBERS,
    EnsembleGP,
    HyperparameterPosterior,
    _kernels,
    slice_sampled,
)


class MaternGP(CategoricalGP):
    _is_smooth = False


def data(count: int = 9) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    x[:, 1] = torch.arange(count) % 3
    y = torch.sin(4 * x[:, :1]) + 0.3 * x[:, 1:2]
    return {"train_X": x, "train_Y": (y - y.mean()) / y.std(), "cat_dims": [1]}


@pytest.mark.parametrize("is_noise_known", [False, True])
def test_the_density_is_gpytorchs(is_noise_known: bool) -> None:
    given = data()
    if is_noise_known:
        given["train_Yvar"] = torch.linspace(0.01, 0.2, 9, dtype=torch.float64)[:, None]
    model = MaternGP(**given)
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    noise = given["train_Yvar"][:, 0].numpy() if is_noise_known else None
    y = given["train_Y"][:, 0].numpy()
    density = HyperparameterPosterior(given["train_X"].numpy(), y, [1], noise)

    def reference(at: np.ndarray) -> float:
        scales = torch.tensor(np.exp(at[:3]))
        for kernel in _kernels(model):
            first, end = (0, 2) if kernel.active_dims.tolist() == [0, 2] else (2, 3)
            kernel.lengthscale = scales[None, first:end]
        model.mean_module.initialize(constant=float(at[3]))
        jacobian = at[:3].sum()
        if not is_noise_known:
            model.likelihood.noise = torch.tensor([np.exp(at[4])])
            jacobian += at[4]
        model.train()
        value = mll(model(given["train_X"]), model.train_targets)
        return float(value) * 9 + float(jacobian)

    rng = np.random.default_rng(1)
    points = [density.start + 0.4 * rng.standard_normal(len(density.start)) for _ in range(4)]
    found = [density(p) - density(points[0]) for p in points]
    expected = [reference(p) - reference(points[0]) for p in points]
    # GPyTorch rounds the constants of its priors to float32.
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
    assert density(np.full(len(density.start), -9.0)) == -np.inf  # below the least length scale


def test_slice_sampling_draws_from_the_density() -> None:
    def density(at: np.ndarray) -> float:
        return -0.5 * float((at[0] - 1) ** 2 / 4 + (at[1] - at[0]) ** 2)

    draws = np.array(slice_sampled(density, np.zeros(2), 6000, np.random.default_rng(0)))
    np.testing.assert_allclose(draws.mean(axis=0), [1, 1], atol=0.2)
    np.testing.assert_allclose(np.cov(draws.T), [[4, 4], [4, 5]], rtol=0.15)


def test_the_posterior_is_the_mixture_of_members_with_different_hyperparameters() -> None:
    given = data()
    model = EnsembleGP(**given, seed=3)
    model.custom_fit(ExactMarginalLogLikelihood(model.likelihood, model))
    numbers = next(k for k in _kernels(model) if k.active_dims.tolist() == [0, 2])
    assert len({round(x, 6) for x in numbers.lengthscale[:, 0, 0].tolist()}) > NUM_MEMBERS // 2
    at = torch.rand(5, 1, 3, dtype=torch.float64)
    at[..., 1] = 1
    posterior = model.posterior(at)
    assert posterior.mean.shape == (5, NUM_MEMBERS, 1, 1)
    for member in range(NUM_MEMBERS):
        alone = MaternGP(**given)
        for kernel, own in zip(_kernels(alone), _kernels(model), strict=True):
            kernel.lengthscale = own.lengthscale[member]
        alone.mean_module.initialize(constant=float(model.mean_module.constant[member]))
        alone.likelihood.noise = model.likelihood.noise[member]
        expected = alone.posterior(at).mean
        torch.testing.assert_close(posterior.mean[:, member], expected, rtol=1e-6, atol=1e-6)
    mixture = posterior.mixture_mean
    torch.testing.assert_close(mixture, posterior.mean.mean(dim=1))
