"""Model-agnostic meta-learning (Finn et al. 2017) for task-batched networks.

    φ_0 = θ,   φ_{s+1} = φ_s - α_s ∘ clip(∇_φ L_support(φ_s)),   meta-loss = L_query(φ_S)

First order drops the derivative of the inner gradient (FOMAML); ANIL (Raghu et al. 2020) adapts
the head alone, BOIL (Oh et al. 2021) all but the head; learned rates α are meta-parameters beside θ
(Li et al. 2017; Antoniou et al. 2019).

`raymeta.meta.descent` has the steps and the gradient through them.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from raymeta.meta.descent import DescentLearner
from raymeta.meta.inner import positive_rate, positive_rates
from raymeta.meta.settings import MamlSettings
from raymeta.nn.networks import Params, is_head


@dataclass(frozen=True, kw_only=True)
class Maml(MamlSettings, DescentLearner):
    """MAML, FOMAML, ANIL, BOIL, learned rates and shared heads; see `MamlSettings`."""

    name: ClassVar[str] = "maml"

    def adapts(self, name: str) -> bool:
        """The head alone for ANIL, all else for BOIL."""
        return self.adapt == "all" or is_head(name) == (self.adapt == "head")

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """θ and, where they are learned, the logarithms `[S]` of the inner rates."""
        meta_params = super().init_meta_params(params, seed)
        if self.learn_inner_lr:
            adapted = {name: value for name, value in params.items() if self.adapts(name)}
            meta_params |= positive_rates(adapted, self.adaptation_steps, self.inner_lr)
        return meta_params

    def inner_rate(self, meta_params: Mapping[str, Tensor], name: str, step: int) -> Tensor | float:
        """`inner_lr`, or the learned rate `[E]`."""
        return positive_rate(meta_params, name, step) if self.learn_inner_lr else self.inner_lr
