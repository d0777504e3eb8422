"""Ridge regression on recurrent features (Bertinetto et al. 2019, "Meta-learning with
Differentiable Closed-form Solvers", R2-D2).

    W = argmin |X W - Y|² + λ |W|² = Xᵀ (X Xᵀ + λ 1)⁻¹ Y          (their equation 6)

with X `[N, F + 1]` the support's features and a one, Y its targets, one-hot rows of classes.  λ is
learned; class scores are multiplied by a learned factor s, since a squared error leaves their scale
open (their section 3.2).

With `learned_prior` the weights are drawn to a learned mean W₀, the network's head, not to zero:

    W = argmin |X W - Y|² + λ |W - W₀|² = W₀ + argmin |X D - (Y - X W₀)|² + λ |D|²

which is ALPaCA's posterior mean (Harrison et al. 2018, equation 10, with K₀ = W₀ and Λ₀ = λ 1).
For classes W₀ gives logits, which leave Y - softmax(X W₀) to be explained: the logits of queries
are X (W₀ + s D), one step from W₀ up the likelihood of the labels with a bound of its curvature
(Böhning 1992, "Multinomial Logistic Regression Algorithm"; s = 2).  λ → ∞ is a network without
adaptation, as of joint training on all tasks, and W₀ = 0 is R2-D2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.meta.embedding import Embedded, EmbeddingLearner, logarithm
from raymeta.meta.settings import RidgeSettings
from raymeta.nn.networks import Params, is_head

PENALTY, SCALE = "log_penalty", "log_scale"


@dataclass(frozen=True, kw_only=True)
class Ridge(RidgeSettings, EmbeddingLearner):
    """Ridge regression in closed form; see `RidgeSettings`."""

    name: ClassVar[str] = "ridge"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters, and the logarithms of λ and the factor.

        Only a learned prior has the network's head.
        """
        like = params["head.weight"]
        prior = {k: v for k, v in params.items() if is_head(k)} if self.learned_prior else {}
        return (
            super().init_meta_params(params, seed)
            | prior
            | {PENALTY: logarithm(self.penalty, like), SCALE: logarithm(self.scale, like)}
        )

    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Solves a ridge regression on the support set and applies it to the queries."""
        # In float64: a small λ makes the equations of near features badly conditioned.
        support, query = with_ones(embedded.support.double()), with_ones(embedded.query.double())
        rows, is_real = embedded.target_rows.double(), embedded.targets.is_floating_point()
        mean = None
        if self.learned_prior:
            mean = with_bias(meta_params["head.weight"], meta_params["head.bias"]).double()
            explained = support @ mean
            rows = rows - (explained if is_real else explained.softmax(dim=-1))
        penalty = meta_params[PENALTY].double().exp()
        num_support, size = support.shape[1:]
        across = support.transpose(1, 2)
        if num_support <= size:  # the smaller of two systems with the same solution
            one = torch.eye(num_support, dtype=support.dtype, device=support.device)
            weights = across @ _solved(support @ across + penalty * one, rows)
        else:
            one = torch.eye(size, dtype=support.dtype, device=support.device)
            weights = _solved(across @ support + penalty * one, across @ rows)
        found = (query @ weights).to(embedded.query.dtype)
        if not is_real:
            found = meta_params[SCALE].exp() * found
        return found if mean is None else found + (query @ mean).to(found.dtype)


def _solved(matrices: Tensor, rows: Tensor) -> Tensor:
    """Solves every episode's equations; NaN where they have no solution."""
    found, failure = torch.linalg.solve_ex(matrices, rows)
    return found.masked_fill((failure != 0).view(-1, 1, 1), torch.nan)


def with_ones(features: Tensor) -> Tensor:
    """The features with one more, which is always one: its weight is the bias."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """A head's weights `[O, F]` and biases `[O]` as the weights `[F + 1, O]` of `with_ones`."""
    return torch.cat([weight, bias.unsqueeze(-1)], dim=-1).T
