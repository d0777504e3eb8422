"""MAML++ (Antoniou et al. 2019, "How to Train Your MAML") without its batch normalisation.

    meta-loss = Σ_s w_s L_query(φ_s),   s = 1 … S                   (their equation 4)

Multi-step loss: all w_s are 1 / S at first; in the first share m of meta-training those before S
fall linearly to zero and w_S rises to one.  Derivative-order annealing: meta-gradients are of first
order in the first share of meta-training.  Every parameter tensor has a learned rate for each step,
positive as a logarithm.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from raymeta.meta.descent import DescentLearner
from raymeta.meta.inner import positive_rate, positive_rates
from raymeta.meta.learner import Learner
from raymeta.meta.settings import MamlPlusPlusSettings
from raymeta.nn.networks import Params


@dataclass(frozen=True, kw_only=True)
class MamlPlusPlus(MamlPlusPlusSettings, DescentLearner):
    """MAML++ at the end of meta-training; see `MamlPlusPlusSettings`."""

    name: ClassVar[str] = "maml_plus_plus"

    def at_progress(self, progress: float) -> Learner:
        """Returns itself once both annealings are over."""
        if progress >= max(self.multi_step_share, self.first_order_share):
            return self
        settings = {field.name: getattr(self, field.name) for field in fields(MamlPlusPlus)}
        return _Annealed(progress=progress, **settings)

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """θ, and the logarithms `[S]` of the rates."""
        theta = super().init_meta_params(params, seed)
        return theta | positive_rates(theta, self.adaptation_steps, self.inner_lr)

    def inner_rate(self, meta_params: Mapping[str, Tensor], name: str, step: int) -> Tensor:
        """The learned rate `[E]`."""
        return positive_rate(meta_params, name, step)


@dataclass(frozen=True, kw_only=True)
class _Annealed(MamlPlusPlus):
    """MAML++ before its end: `progress` is the share of meta-steps that are done."""

    progress: float

    @property
    def first_order(self) -> bool:
        """Whether the first share is not over yet."""
        return self.progress < self.first_order_share

    @property
    def step_weights(self) -> list[float] | None:
        """w_1 … w_S."""
        if self.progress >= self.multi_step_share:
            return None
        others = (1 - self.progress / self.multi_step_share) / self.adaptation_steps
        num_others = self.adaptation_steps - 1
        return [others] * num_others + [1 - num_others * others]

    @property
    def has_step_losses(self) -> bool:
        """True while several steps have weights."""
        return self.step_weights is not None
