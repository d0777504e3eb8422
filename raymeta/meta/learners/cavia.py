"""CAVIA (Zintgraf et al. 2019, "Fast Context Adaptation via Meta-Learning").

    c_0 = 0,   c_{s+1} = c_s - α ∇_c L_support(c_s, θ)              (their equation 3)

The context c is given to the network as further inputs of its first layer, the same at every time
step (their section 3.4); θ, shared by all episodes, is learned in the outer loop alone.  The first
layer's product with c is added to its bias, which is the same as a longer input.

Shape legend: E episodes, C context parameters, G gates, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.meta.descent import DescentLearner
from raymeta.meta.inner import Network, bind_network
from raymeta.meta.settings import CaviaSettings
from raymeta.nn.networks import NetworkSpec, Params

CONTEXT = "context"
WEIGHT, BIAS, CONTEXT_WEIGHT = "rnn.weight_ih_l0", "rnn.bias_ih_l0", "context.weight_ih_l0"


@dataclass(frozen=True, kw_only=True)
class Cavia(CaviaSettings, DescentLearner):
    """CAVIA; see `CaviaSettings`."""

    name: ClassVar[str] = "cavia"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """θ with the weights `[G H, C]` of the context, Glorot-uniform as those of other inputs."""
        meta_params = super().init_meta_params(params, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, value in params.items():
            if name.startswith(WEIGHT):
                rows, num_inputs = value.shape
                hidden = params[name.replace("_ih_", "_hh_")].shape[1]
                bound = math.sqrt(6 / (hidden + num_inputs + self.context_size))
                uniform = torch.rand(
                    rows, self.context_size, generator=generator, dtype=torch.float64
                )
                own = CONTEXT_WEIGHT + name.removeprefix(WEIGHT)
                meta_params[own] = (bound * (2 * uniform - 1)).to(value)
        return meta_params

    def adapts(self, name: str) -> bool:
        """The context alone."""
        return name == CONTEXT

    def episode_params(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        meta_params: Mapping[str, Tensor],
        support: Examples,
        masks: list[Tensor] | None,  # noqa: ARG002
    ) -> Params:
        """The context `[E, C]`, zero at first."""
        like = meta_params[WEIGHT]
        return {CONTEXT: like.new_zeros(len(support.y), self.context_size)}

    def bind(self, spec: NetworkSpec, masks: list[Tensor] | None) -> Network:
        """The network with the context in the first layer's bias."""
        network = bind_network(spec, masks)

        def in_context(params: Mapping[str, Tensor], examples: Examples) -> Tensor:
            return network(self.adapted_network(spec, params), examples)

        return in_context

    def adapted_network(self, spec: NetworkSpec, adapted: Mapping[str, Tensor]) -> Params:
        """The adapted parameters with the context in the first layer's bias."""
        own = dict(adapted)
        for suffix in spec.suffixes:
            weights = adapted[CONTEXT_WEIGHT + suffix]
            more = torch.einsum("egc,ec->eg", weights, adapted[CONTEXT])
            own[BIAS + suffix] = adapted[BIAS + suffix] + more
        return own
