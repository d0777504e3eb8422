"""Implicit MAML (Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients").

    φ* = argmin_φ L_support(φ) + λ/2 |φ - θ|²                    (their equation 3)
    meta-gradient = Σ_episodes (1 + H/λ)⁻¹ ∇L_query(φ*)          (their lemma 1)

with H the Hessian of the support's loss at φ*.  The path that leads to φ* leaves no trace in the
meta-gradient, so that memory does not grow with the adaptation steps.  φ* is approached by gradient
descent, and the system solved by conjugate gradients, as in the paper.  Where 1 + H/λ is not
positive in a direction that an episode's solution would take, the solution ends before it
(Steihaug 1983): conjugate gradients could run off to anywhere.

Shape legend: E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.gradient_learner import GradientLearner
from raymeta.meta.inner import Network, as_leaves, bind_network, expand_meta_params
from raymeta.meta.settings import ImamlSettings
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Imaml(ImamlSettings, GradientLearner):
    """Implicit MAML; see `ImamlSettings`."""

    name: ClassVar[str] = "imaml"
    keeps_graphs: ClassVar[bool] = False

    @property
    def remedy(self) -> str:
        """Advice for gradients that are not finite; a larger proximity helps as well."""
        return f"{super().remedy}, or raise imaml.proximity"

    def adaptation_step(
        self,
        network: Network,
        problem: Problem,
        params: Params,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        *,
        step: int,
        differentiable: bool,
    ) -> Params:
        """A step down the support's loss and the distance from θ; `inner_clip` bounds the first."""
        after = super().adaptation_step(
            network,
            problem,
            params,
            meta_params,
            support,
            step=step,
            differentiable=differentiable,
        )
        pull = self.inner_lr * self.proximity
        return {k: after[k] - pull * (v - meta_params[k]) for k, v in params.items()}

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
        """Σ_episodes (1 + H/λ)⁻¹ ∇L_query at the end of the path; `graph_steps` changes nothing."""
        del graph_steps
        network = bind_network(spec, masks)
        detached = {name: value.detach() for name, value in meta_params.items()}
        start = expand_meta_params(spec, detached, query.y.shape[0])
        end = self.adaptation_path(
            network, problem, start, support, num_steps=self.adaptation_steps
        )[-1]
        leaves = as_leaves(end)
        values = list(leaves.values())
        with torch.enable_grad():
            outputs = network(leaves, query)
            losses = problem.loss(outputs, query.y)
            of_query = torch.autograd.grad(losses.sum(), values, materialize_grads=True)
            of_support = torch.autograd.grad(
                problem.loss(network(leaves, support), support.y).sum(),
                values,
                create_graph=True,
                materialize_grads=True,
            )

        def regularised(vectors: Params) -> Params:
            """(1 + H/λ) v."""
            products = torch.autograd.grad(
                of_support,
                values,
                list(vectors.values()),
                retain_graph=True,
                materialize_grads=True,
            )
            return {
                name: vector + product / self.proximity
                for (name, vector), product in zip(vectors.items(), products, strict=True)
            }

        grads = conjugate_gradients(
            regularised, dict(zip(leaves, of_query, strict=True)), self.solver_steps
        )
        scores = problem.score(outputs.detach(), query.y)
        return MetaGradient.summed(meta_params, grads, losses.detach(), scores)


def conjugate_gradients(
    multiply: Callable[[Params], Params], wanted: Params, num_steps: int
) -> Params:
    """Solves A x = b for every episode by itself (Hestenes & Stiefel 1952), from x = 0.

    An episode that meets a direction d with d · A d ≤ 0 keeps the solution it has; before the first
    step that is b itself, the solution where A is the identity.

    Args:
        multiply: vectors with an episode axis to A times them; A symmetric, episodes apart.
        wanted: b.
        num_steps: iterations.
    """

    def dot(left: Params, right: Params) -> Tensor:  # [E], in float64
        parts = [(left[k].double() * right[k].double()).flatten(1).sum(dim=1) for k in left]
        return torch.stack(parts).sum(dim=0)

    def add(left: Params, factor: Tensor, right: Params) -> Params:
        def of(value: Tensor) -> Tensor:
            return factor.to(value.dtype).view(-1, *[1] * (value.dim() - 1))

        return {k: v + of(right[k]) * right[k] for k, v in left.items()}

    residual = direction = wanted
    squared = dot(residual, residual)
    solution = {k: torch.zeros_like(v) for k, v in wanted.items()}
    is_open = torch.ones_like(squared, dtype=torch.bool)
    for number in range(num_steps):
        product = multiply(direction)
        curvature = dot(direction, product)
        if number == 0:
            # If even b is a direction of negative curvature, b itself is the solution.
            fallback = (curvature <= 0).to(squared.dtype)
            solution = add(solution, fallback, wanted)
        is_open = is_open & ~(curvature <= 0)  # NaN continues and shows in the sum
        length = torch.where(is_open, squared / curvature, 0.0)
        solution = add(solution, length, direction)
        residual = add(residual, -length, product)
        before, squared = squared, dot(residual, residual)
        # A vanished residual needs no further steps.
        ratio = torch.where(before > 0, squared / before, 0.0)
        direction = add(residual, ratio, direction)
    return solution
