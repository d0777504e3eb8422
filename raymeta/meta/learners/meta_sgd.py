"""Meta-SGD (Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning").

    φ_{s+1} = φ_s - α ∘ ∇_φ L_support(φ_s)          (their equation 3, one step after another)

α has a rate for each element of θ and is learned together with it.  A rate may become negative: the
direction of a step is learned, too.  With a shared head the rows of all ways share their rates.

Shape legend: E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.meta.descent import DescentLearner
from raymeta.meta.inner import SIGNED_RATE_PREFIX
from raymeta.meta.settings import MetaSgdSettings
from raymeta.nn.networks import Params


@dataclass(frozen=True, kw_only=True)
class MetaSgd(MetaSgdSettings, DescentLearner):
    """Meta-SGD; see `MetaSgdSettings`."""

    name: ClassVar[str] = "meta_sgd"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """θ, and a rate for each of its elements."""
        theta = super().init_meta_params(params, seed)
        rates = {
            SIGNED_RATE_PREFIX + name: torch.full_like(value, self.inner_lr)
            for name, value in theta.items()
        }
        return theta | rates

    def inner_rate(
        self,
        meta_params: Mapping[str, Tensor],
        name: str,
        step: int,  # noqa: ARG002
    ) -> Tensor:
        """The learned rates `[E, ...]` of the parameter's elements."""
        return meta_params[SIGNED_RATE_PREFIX + name]
