"""Bounds by its model how much a search can still gain, to decide when to stop.

The bound is that of Makarova et al. 2022 (Automatic termination for hyperparameter optimization,
equation 3), written for a metric to be maximised: the greatest upper confidence bound anywhere,
less the greatest lower confidence bound at a point that was tried.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from ax.adapter.torch import TorchAdapter
from ax.core.observation import Observation, ObservationData, ObservationFeatures
from ax.core.search_space import SearchSpaceDigest
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from ax.generators.torch.botorch_modular.generator import BoTorchGenerator
from ax.generators.torch_base import TorchOptConfig
from botorch.acquisition.analytic import UpperConfidenceBound
from torch import Tensor

_RISK = 0.1  # delta and the divisor of beta are those of the paper's experiments
_SHRINKAGE = 5.0


def gain_bound(adapter: TorchAdapter, optimizer_options: dict[str, Any]) -> float:
    """Bounds the gain of one more trial with high probability, in the metric's own units.

    Args:
        adapter: Ax's model, fitted, with one objective.
        optimizer_options: for the maximisation of the upper bound.

    Returns:
        At least 0; infinity if no trial is known to satisfy the outcome constraints.
    """
    generator = adapter.generator
    assert isinstance(generator, BoTorchGenerator)
    digest, config = model_space(adapter)
    count = len(generator.surrogate.training_data[0].X)
    beta = confidence(len(digest.feature_names), count)

    def bound(*, upper: bool) -> Acquisition:
        options = {"beta": beta, "maximize": upper}
        return Acquisition(
            generator.surrogate, digest, config, UpperConfidenceBound, botorch_acqf_options=options
        )

    upper, lower = bound(upper=True), bound(upper=False)
    tried = upper.X_observed
    if tried is None:
        return math.inf
    _, highest, _ = upper.optimize(
        n=1,
        search_space_digest=digest,
        inequality_constraints=_at_least(config.linear_constraints),
        fixed_features=config.fixed_features,
        optimizer_options=dict(optimizer_options),
    )
    with torch.no_grad():
        ucb = torch.cat([highest.reshape(-1), upper.acqf(tried[:, None])]).max().item()
        lcb = -lower.acqf(tried[:, None]).min().item()
    sign = float(config.objective_weights.sum().sign())
    best, least = (_in_own_units(adapter, sign * value) for value in (ucb, lcb))
    return max(0.0, sign * (best - least))


def model_space(adapter: TorchAdapter) -> tuple[SearchSpaceDigest, TorchOptConfig]:
    """Gets the space and objective in a fitted model's terms; Ax has no public way."""
    args = adapter._get_transformed_gen_args(search_space=adapter._search_space)  # noqa: SLF001
    return adapter._get_transformed_model_gen_args(  # noqa: SLF001
        search_space=args.search_space,
        pending_observations={},
        fixed_features=args.fixed_features,
        optimization_config=args.optimization_config,
    )


def _at_least(
    constraints: tuple[Tensor, Tensor] | None,
) -> list[tuple[Tensor, Tensor, float]] | None:
    """Converts Ax's A x <= b to BoTorch's form: indices, weights and lower bounds."""
    if constraints is None:
        return None
    return [
        (row.nonzero()[:, 0], -row[row != 0], -end.item())
        for row, end in zip(*constraints, strict=True)
    ]


def confidence(num_parameters: int, num_trials: int) -> float:
    """Computes beta: the bounds lie sqrt(beta) standard deviations from the mean.

    Theorem 1 of Srinivas et al. 2010 with the number of parameters in place of the number of
    points, divided by 5, as in Makarova et al. 2022.
    """
    inner = num_parameters * num_trials**2 * math.pi**2 / (6 * _RISK)
    return 2 * math.log(inner) / _SHRINKAGE


def _in_own_units(adapter: TorchAdapter, value: float) -> float:
    """Undoes the model's monotone transforms of a value of the objective."""
    (metric,) = adapter._optimization_config.objective.metric_signatures  # noqa: SLF001
    data = ObservationData([metric], np.array([value]), np.zeros((1, 1)))
    observations = [Observation(data=data, features=ObservationFeatures({}))]
    for transform in reversed(list(adapter.transforms.values())):
        observations = transform.untransform_observations(observations)
    return float(observations[0].data.means[0])
