"""Proto-MAML (Triantafillou et al. 2020, "Meta-Dataset", section 3).

    w_k = 2 c_k,   b_k = -|c_k|²,   c_k = mean of the features of class k's support examples

With this head a linear layer gives the logits of a prototypical network up to a constant; MAML's
steps adapt it and the body from there, each along the partial derivatives by both.  The
meta-gradient goes through the prototypes.  A class without a support example is never the answer.

Shape legend: E episodes, N support examples, F features, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from raymeta.episodes import Examples
from raymeta.meta.descent import DescentLearner
from raymeta.meta.settings import ProtoMamlSettings
from raymeta.nn.networks import NetworkSpec, Params, forward, is_head


@dataclass(frozen=True, kw_only=True)
class ProtoMaml(ProtoMamlSettings, DescentLearner):
    """Proto-MAML; see `ProtoMamlSettings`."""

    name: ClassVar[str] = "proto_maml"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters without its head."""
        theta = super().init_meta_params(params, seed)
        return {name: value for name, value in theta.items() if not is_head(name)}

    def episode_params(
        self,
        spec: NetworkSpec,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        masks: list[Tensor] | None,
    ) -> Params:
        """The head `[E, O, F]` and `[E, O]` of every episode's prototypes."""
        features = _features(spec, meta_params, support, masks)
        members = one_hot(support.y, spec.num_outputs).to(features.dtype).transpose(1, 2)
        counts = members.sum(dim=-1)  # [E, O]
        prototypes = members @ features / counts.clamp(min=1).unsqueeze(-1)
        bias = -prototypes.square().sum(dim=-1)
        return {
            "head.weight": 2 * prototypes,
            "head.bias": bias.masked_fill(counts == 0, -torch.inf),
        }


def _features(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    examples: Examples,
    masks: list[Tensor] | None,
) -> Tensor:
    """The head's input, `[E, N, F]`: the outputs of an identity head.

    Every episode has a copy of the body, the gradients of which are kept apart.
    """
    size, like = spec.output_size, params["rnn.weight_hh_l0"]
    one = torch.eye(size, dtype=like.dtype, device=like.device)
    head = {
        "head.weight": one.expand(len(like), size, size),
        "head.bias": like.new_zeros(len(like), size),
    }
    return forward(
        replace(spec, num_outputs=size), {**params, **head}, examples.x, examples.lengths, masks
    )
