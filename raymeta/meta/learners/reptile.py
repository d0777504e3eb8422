"""Reptile (Nichol et al. 2018, "On First-Order Meta-Learning Algorithms"), its batched version.

    φ_0 = θ,   φ_{s+1} = φ_s - α clip(∇_φ L(φ_s)),   meta-gradient = Σ_episodes (θ - φ_S)

with L the loss of all examples of an episode, support and query alike: Reptile does not split a
task.  The paper's equation 11 moves θ by ε times the mean of φ_S - θ, and its section 2 hands the
difference to an adaptive optimiser in place of a gradient, as is done here.  Adaptation to a new
episode takes the same steps on the support set alone.  No derivative of a gradient is ever taken.

Shape legend: E episodes, N examples, T time steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Examples, joined
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.gradient_learner import GradientLearner
from raymeta.meta.inner import (
    bind_network,
    expand_meta_params,
)
from raymeta.meta.settings import ReptileSettings
from raymeta.nn.networks import NetworkSpec
from raymeta.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Reptile(ReptileSettings, GradientLearner):
    """Reptile; see `ReptileSettings`."""

    name: ClassVar[str] = "reptile"
    keeps_graphs: ClassVar[bool] = False

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
        """Σ_episodes (θ - φ_S); loss and score are those of the query sets at φ_S.

        `graph_steps` changes nothing: there is no graph to keep.
        """
        del graph_steps
        network = bind_network(spec, masks)
        detached = {name: value.detach() for name, value in meta_params.items()}
        start = expand_meta_params(spec, detached, query.y.shape[0])
        path = self.adaptation_path(
            network, problem, start, joined(support, query), num_steps=self.adaptation_steps
        )
        end = path[-1]
        with torch.no_grad():
            outputs = network(end, query)
            losses, scores = problem.loss(outputs, query.y), problem.score(outputs, query.y)
        grads = {name: value - end[name] for name, value in start.items()}
        return MetaGradient.summed(meta_params, grads, losses, scores)
