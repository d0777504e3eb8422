"""Alignment: a query is compared with a class step by step, in the space of the network's states.

    logit_k = -a d(x, k),   2 d(x, k) = Σ_t u_t m(h_t, k) + 1/n_k Σ_{i in k} Σ_s w_is m'(g_is, x)

    m(h_t, k)   = -1/b log 1/n_k Σ_{i in k} Σ_s w_is exp(-b |h_t - g_is|²)
    m'(g_is, x) = -1/b log Σ_t u_t exp(-b |h_t - g_is|²)

h_t are the states of the query x and u_t the weights that `model.pooling` gives its steps, g_is and
w_is those of support example i.  Every step looks for the ones most like it in the other sequence,
with a minimum that b makes soft, in both directions, as the chamfer distance between sets of points
does (Barrow et al. 1977, "Parametric Correspondence and Chamfer Matching"); that a class is the set
of local descriptors of all its examples is from Li et al. 2019, "Revisiting Local Descriptor based
Image-to-Class Measure for Few-shot Learning".  Unlike warping in time it is indifferent to the
order of the steps, which the states know of.  a and b are learned.  A class without a support
example is never the answer.

Shape legend: E episodes, N support examples, M query examples, S and T time steps of support and
query, F features of a step, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.meta.embedding import Embedded, EmbeddingLearner, logarithm
from raymeta.meta.settings import AlignmentSettings
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.nn.shared import shared_steps

SCALE, SHARPNESS = "log_scale", "log_sharpness"


@dataclass(frozen=True, kw_only=True)
class Alignment(AlignmentSettings, EmbeddingLearner):
    """Alignment of steps; see `AlignmentSettings`."""

    name: ClassVar[str] = "alignment"
    reads_steps: ClassVar[bool] = True

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters without its head, and the logarithms of a and b."""
        like = params["head.weight"]
        return super().init_meta_params(params, seed) | {
            SCALE: logarithm(self.scale, like),
            SHARPNESS: logarithm(self.sharpness, like),
        }

    def features(
        self,
        spec: NetworkSpec,
        params: Mapping[str, Tensor],
        x: Tensor,
        lengths: Tensor | None = None,
        masks: list[Tensor] | None = None,
    ) -> Tensor:
        """The state and the weight of every step, one after the other, `[E, N, T * (F + 1)]`."""
        states, weights = shared_steps(spec, params, x, lengths, masks)
        return torch.cat([states, weights.unsqueeze(-1)], dim=-1).flatten(2)

    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Logits from the distance of each query to each class; see the top of this module."""
        towards, back = self._distances(meta_params, embedded)
        sharpness = meta_params[SHARPNESS].exp()
        members = embedded.target_rows.transpose(1, 2)  # [E, O, N]
        counts = members.sum(dim=-1)
        _, weights = _steps(meta_params, embedded.query)
        # The examples of a class as one set of steps: the logarithm of a mean over them.
        is_other = (members == 0)[:, None, None]  # [E, 1, 1, O, N]
        is_empty = (counts == 0)[:, None, None]
        alike = (-sharpness * towards).unsqueeze(3).masked_fill(is_other, -torch.inf)
        # A sum over nothing has no gradient.
        alike = alike.masked_fill(is_empty.unsqueeze(-1), 0.0).logsumexp(dim=-1)
        nearest = (counts.clamp(min=1).log()[:, None, None] - alike) / sharpness  # [E, M, T, O]
        there = torch.einsum("emt,emto->emo", weights, nearest)
        returns = back @ embedded.target_rows / counts.clamp(min=1).unsqueeze(1)
        logits = -meta_params[SCALE].exp() * (there + returns) / 2
        return logits.masked_fill(is_empty.squeeze(2), -torch.inf)

    def example_weights(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The classes' probabilities if every support example were a class of its own."""
        towards, back = self._distances(meta_params, embedded)
        _, weights = _steps(meta_params, embedded.query)
        there = torch.einsum("emt,emtn->emn", weights, towards)
        return (-meta_params[SCALE].exp() * (there + back) / 2).softmax(dim=-1)

    def _distances(
        self, meta_params: Mapping[str, Tensor], embedded: Embedded
    ) -> tuple[Tensor, Tensor]:
        """Distances m of query to support steps `[E, M, T, N]`, and Σ_s w m' `[E, M, N]`."""
        sharpness = meta_params[SHARPNESS].exp()
        known, known_weights = _steps(meta_params, embedded.support)  # [E, N, S, F], [E, N, S]
        asked, asked_weights = _steps(meta_params, embedded.query)
        flat, own = known.flatten(1, 2), asked.flatten(1, 2)
        squares = own.square().sum(dim=-1).unsqueeze(-1) + flat.square().sum(dim=-1).unsqueeze(1)
        apart = (squares - 2 * own @ flat.transpose(1, 2)).view(*asked.shape[:3], *known.shape[1:3])
        near = -sharpness * apart  # [E, M, T, N, S]
        to_known = (near + _logarithms(known_weights)[:, None, None]).logsumexp(dim=-1)
        to_asked = (near + _logarithms(asked_weights)[..., None, None]).logsumexp(dim=2)
        back = torch.einsum("ens,emns->emn", known_weights, -to_asked / sharpness)
        return -to_known / sharpness, back


def _steps(meta_params: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """The states `[E, N, T, F]` and weights `[E, N, T]` of `Alignment.features`."""
    directions = 2 if "rnn.weight_hh_l0_reverse" in meta_params else 1
    size = directions * meta_params["rnn.weight_hh_l0"].shape[-1]
    steps = features.reshape(*features.shape[:2], -1, size + 1)
    return steps[..., :-1], steps[..., -1]


def _logarithms(weights: Tensor) -> Tensor:
    """The logarithms of weights; minus infinity, without a gradient, at padding."""
    none = weights <= 0
    return weights.masked_fill(none, 1.0).log().masked_fill(none, -torch.inf)
