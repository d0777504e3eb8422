"""Bayesian linear regression on recurrent features with a learned prior (Harrison et al. 2018,
"Meta-Learning Priors for Efficient Online Bayesian Regression", ALPaCA).

    prior W ~ N(K₀, Λ₀⁻¹ ⊗ Σ),   targets y = Wᵀ φ(x) + ε,  ε ~ N(0, Σ)
    Λ = Φᵀ Φ + Λ₀,   K = Λ⁻¹ (Φᵀ Y + Λ₀ K₀)                        (their equations 9 and 10)
    y | x ~ N(Kᵀ φ(x), (1 + φ(x)ᵀ Λ⁻¹ φ(x)) Σ)                      (their equation 11)

with φ the features and a one.  K₀ is the network's head; Λ₀ and Σ are diagonal.  Meta-training
minimises the negative logarithm of the query targets' density (their equation 12).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.meta.embedding import Embedded, EmbeddingLearner, logarithm
from raymeta.meta.learners.ridge import with_bias, with_ones
from raymeta.meta.settings import AlpacaSettings
from raymeta.nn.networks import Params, is_head
from raymeta.problem import Problem

PRECISION, NOISE = "log_precision", "log_noise"


@dataclass(frozen=True, kw_only=True)
class Alpaca(AlpacaSettings, EmbeddingLearner):
    """Bayesian linear regression in closed form; see `AlpacaSettings`."""

    name: ClassVar[str] = "alpaca"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """All of the network's parameters, log Λ₀ `[F + 1]` and log Σ `[O]`."""
        head = params["head.weight"]
        num_outputs, size = head.shape
        return (
            super().init_meta_params(params, seed)
            | {name: value for name, value in params.items() if is_head(name)}
            | {
                PRECISION: logarithm(1 / self.prior, head).repeat(size + 1),
                NOISE: logarithm(self.noise, head).repeat(num_outputs),
            }
        )

    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The posterior means `[E, M, O]`."""
        return self.posterior(meta_params, embedded)[0]

    def scale_of(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The posterior standard deviations `[E, M, O]`."""
        return self.posterior(meta_params, embedded)[1].sqrt()

    def posterior(
        self, meta_params: Mapping[str, Tensor], embedded: Embedded
    ) -> tuple[Tensor, Tensor]:
        """Means and variances `[E, M, O]` of the query targets."""
        support, query = with_ones(embedded.support.double()), with_ones(embedded.query.double())
        across = support.transpose(1, 2)
        precision = meta_params[PRECISION].double().exp()
        mean = with_bias(meta_params["head.weight"], meta_params["head.bias"]).double()
        start = precision.unsqueeze(-1) * mean  # Λ₀ K₀, [F + 1, O]
        factor, failure = torch.linalg.cholesky_ex(across @ support + precision.diag())
        factor = factor.masked_fill(
            (failure != 0).view(-1, 1, 1), torch.nan
        )  # never a wrong number
        weights = torch.cholesky_solve(across @ embedded.targets.double() + start, factor)
        half = torch.linalg.solve_triangular(factor, query.transpose(1, 2), upper=False)
        spread = 1 + half.square().sum(dim=1).unsqueeze(-1)  # [E, M, 1]
        variances = spread * meta_params[NOISE].double().exp()
        dtype = embedded.query.dtype
        return (query @ weights).to(dtype), variances.to(dtype)

    def query_losses(
        self,
        problem: Problem,  # noqa: ARG002
        meta_params: Mapping[str, Tensor],
        embedded: Embedded,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The mean negative log density of the query targets, and the posterior means."""
        means, variances = self.posterior(meta_params, embedded)
        squares = (targets - means).square() / variances
        losses = 0.5 * (squares + variances.log() + math.log(2 * math.pi))
        return losses.mean(dim=(1, 2)), means
