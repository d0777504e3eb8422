"""The kernel of the search's model, against its formula and BoTorch's own model."""

from __future__ import annotations

import math

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.datasets import SupervisedDataset
from gpytorch.mlls import ExactMarginalLogLikelihood

from raymeta.search.categorical_gp import CategoricalGP

NOISE = 1e-4


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes points of two numbers and, between them, a choice of four."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(12, 3, generator=generator, dtype=torch.float64)
    x[:, 1] = torch.arange(12) % 4
    return x, torch.randn(12, 1, generator=generator, dtype=torch.float64)


def test_the_covariance_is_that_of_the_formula() -> None:
    x, y = data()
    x = torch.cat([x, (x[:, 1:2] * 3) % 2], dim=1)  # a second choice
    model = CategoricalGP(x, y, [1, 3], torch.full_like(y, NOISE))
    choices, numbers = model.covar_module.kernels
    choices.lengthscale = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    numbers.lengthscale = torch.tensor([[0.7, 1.3]], dtype=torch.float64)
    found = model.covar_module(x).to_dense()
    for i, j in ((0, 1), (2, 6), (5, 5), (3, 8)):
        a, b = x[i].tolist(), x[j].tolist()
        square = ((a[0] - b[0]) / 0.7) ** 2 + ((a[2] - b[2]) / 1.3) ** 2
        overlap = (float(a[1] != b[1]) / 0.5 + float(a[3] != b[3]) / 2.0) / 2
        expected = math.exp(-square / 2) * math.exp(-overlap)
        assert math.isclose(found[i, j].item(), expected, rel_tol=1e-9)


def test_the_names_of_the_choices_mean_nothing() -> None:
    x, y = data()
    renamed = x.clone()
    renamed[:, 1] = torch.tensor([2.0, 0.0, 3.0, 1.0], dtype=torch.float64)[x[:, 1].long()]
    found = [
        CategoricalGP(points, y, [1]).covar_module(points).to_dense() for points in (x, renamed)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_without_choices_it_is_botorchs_model() -> None:
    x, y = data()
    inputs = CategoricalGP.construct_inputs(
        SupervisedDataset(x, y, feature_names=[*"abc"], outcome_names=["y"])
    )
    models = [CategoricalGP(**inputs), SingleTaskGP(x, y, outcome_transform=None)]
    for model in models:
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    means = [model.posterior(x + 0.01).mean for model in models]
    torch.testing.assert_close(*means, rtol=1e-9, atol=1e-12)


def test_a_space_of_one_choice_is_learned() -> None:
    x = (torch.arange(9, dtype=torch.float64) % 3)[:, None]
    y = torch.tensor([0.0, 5.0, -5.0], dtype=torch.float64)[x[:, 0].long()][:, None]
    model = CategoricalGP(x, y, [0], torch.full_like(y, NOISE))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    mean = model.posterior(x[:3]).mean
    torch.testing.assert_close(mean, y[:3], rtol=0, atol=0.05)


def test_every_metric_has_length_scales_of_its_own() -> None:
    x, _ = data()
    ys = torch.cat([x[:, :1], (x[:, 1:2] == 2).double()], dim=1)  # a number, a choice
    model = CategoricalGP(x, ys, [1], torch.full_like(ys, NOISE))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    choices, numbers = model.covar_module.kernels
    assert choices.lengthscale[0].item() > 10 * choices.lengthscale[1].item()
    assert numbers.lengthscale[0, 0, 0].item() < numbers.lengthscale[1, 0, 0].item()
    torch.testing.assert_close(model.posterior(x).mean, ys, rtol=0, atol=0.05)
