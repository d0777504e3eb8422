"""Learners that descend the support's loss, and the exact gradient through their steps.

    φ_0 = θ,   φ_{s+1} = φ_s - α_s ∘ clip(∇_φ L_support(φ_s)),   meta-loss = L_query(φ_S)

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.meta.gradient import MetaGradient, gradient_through_adaptation, vector_jacobian
from raymeta.meta.gradient_learner import GradientLearner
from raymeta.meta.inner import as_leaves, expand_meta_params, is_rate, network_params
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.problem import Problem


@dataclass(frozen=True, kw_only=True)
class DescentLearner(GradientLearner, ABC):
    """A gradient learner whose meta-gradient goes through its adaptation steps."""

    @property
    def step_weights(self) -> list[float] | None:
        """The weights of the query's losses after 1 … S steps; None for the last one alone."""
        return None

    def masked_meta_gradient(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        query: Examples,
        masks: list[Tensor] | None,
        *,
        graph_steps: int | None = None,
    ) -> MetaGradient:
        """The gradient of Σ_episodes L_query(φ_S), or of `step_weights`, by the meta-parameters."""
        leaves = as_leaves(expand_meta_params(spec, meta_params, query.y.shape[0]))
        rates = {k: v for k, v in leaves.items() if is_rate(k)}
        with torch.no_grad():
            made = as_leaves(self.episode_params(spec, leaves, support, masks))
        theta = network_params(leaves) | made
        network = self.bind(spec, masks)

        def take_step(params: Params, number: int, *, differentiable: bool) -> Params:
            return self.adaptation_step(
                network,
                problem,
                params,
                rates,
                support,
                step=number,
                differentiable=differentiable,
            )

        def losses_of(params: Params) -> tuple[Tensor, Tensor]:
            outputs = network(params, query)
            return problem.loss(outputs, query.y), problem.score(outputs.detach(), query.y)

        grads, losses, scores = gradient_through_adaptation(
            take_step,
            losses_of,
            theta,
            rates,
            [name for name in theta if self.adapts(name)],
            num_steps=self.adaptation_steps,
            graph_steps=graph_steps,
            step_weights=self.step_weights,
        )
        # Recompute these: keeping their graph would have cost memory all the time.
        again = self.episode_params(spec, leaves, support, masks)
        again = {name: value for name, value in again.items() if value.requires_grad}
        if again:
            for name, grad in vector_jacobian(again, grads, leaves).items():
                grads[name] = grads[name] + grad
        return MetaGradient.summed(meta_params, grads, losses, scores)
