"""The Gaussian process of the search: BoTorch's, with a kernel for unordered choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from botorch.models import SingleTaskGP
from botorch.models.kernels.categorical import CategoricalKernel
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.utils.datasets import SupervisedDataset
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

PRIOR_STD = math.sqrt(3)  # of a log length scale, as in BoTorch's kernel for numbers
LEAST_LENGTHSCALE = 0.025


class CategoricalGP(SingleTaskGP):
    """A Gaussian process over numbers and unordered choices.

    The covariance is that of `SingleTaskGP` over the numbers times exp(-mean_i [c_i != c'_i] / l_i)
    over the choices (the overlap kernel of Wan et al. 2021); where there are none, it is that of
    `SingleTaskGP`.  BoTorch's `MixedSingleTaskGP` adds a sum of the two, and has no priors for the
    choices, which makes its fits slow.

    Args:
        train_X: shape (trials, parameters); choices are columns of whole numbers.
        train_Y: shape (trials, metrics); each metric has length scales of its own.
        cat_dims: the columns of the choices.
        train_Yvar: as `train_Y`, squared standard errors; None to infer the noise.
        likelihood, outcome_transform, input_transform: as of `SingleTaskGP`.
    """

    _is_smooth = True  # squared exponentials over the numbers; otherwise Matérn 5/2

    def __init__(
        self,
        train_X: Tensor,  # noqa: N803  (as BoTorch calls them)
        train_Y: Tensor,  # noqa: N803
        cat_dims: Sequence[int] = (),
        train_Yvar: Tensor | None = None,  # noqa: N803
        likelihood: Likelihood | None = None,
        outcome_transform: OutcomeTransform | None = None,
        input_transform: InputTransform | None = None,
    ) -> None:
        self._ignore_X_dims_scaling_check = list(cat_dims)  # choices are not in the unit cube
        numbers = [dim for dim in range(train_X.shape[-1]) if dim not in cat_dims]
        _, batch = self.get_batch_dimensions(train_X=train_X, train_Y=train_Y)
        kernels: list[Kernel] = [_kernel_of_choices(cat_dims, batch)] if cat_dims else []
        if numbers:
            kernels.append(
                get_covar_module_with_dim_scaled_prior(
                    ard_num_dims=len(numbers),
                    batch_shape=batch,
                    use_rbf_kernel=self._is_smooth,
                    active_dims=numbers,
                )
            )
        super().__init__(
            train_X,
            train_Y,
            train_Yvar,
            likelihood=likelihood,
            covar_module=math.prod(kernels[1:], start=kernels[0]),
            outcome_transform=outcome_transform,
            input_transform=input_transform,
        )

    @classmethod
    def construct_inputs(
        cls,
        training_data: SupervisedDataset,
        *,
        categorical_features: Sequence[int] = (),
        likelihood: Likelihood | None = None,
    ) -> dict[str, Any]:
        """Builds the constructor's arguments from Ax's."""
        inputs: dict[str, Any] = super().construct_inputs(training_data=training_data)
        return {**inputs, "cat_dims": list(categorical_features), "likelihood": likelihood}


def mean_of_log_lengthscales(num_numbers: int) -> float:
    """The prior's mean log length scale for numbers (Hvarfner et al. 2024, as in BoTorch)."""
    return math.sqrt(2) + 0.5 * math.log(max(num_numbers, 1))


def _kernel_of_choices(dims: Sequence[int], batch: torch.Size) -> Kernel:
    """Makes the kernel of choices: exp(-1) between points that differ in all, at scale 1."""
    return CategoricalKernel(
        batch_shape=batch,
        ard_num_dims=len(dims),
        active_dims=list(dims),
        lengthscale_prior=LogNormalPrior(0.0, PRIOR_STD),
        lengthscale_constraint=GreaterThan(LEAST_LENGTHSCALE, transform=None, initial_value=1.0),
    )
