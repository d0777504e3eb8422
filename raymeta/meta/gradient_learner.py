"""A learner that adapts a network by gradient steps, whatever its meta-gradient is.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.meta.inner import (
    Network,
    bind_network,
    expand_meta_params,
    gradient_step,
    network_params,
    with_shared_head,
)
from raymeta.meta.learner import Learner
from raymeta.meta.settings import StepSettings
from raymeta.nn.networks import NetworkSpec, Params, is_head
from raymeta.problem import Problem


@dataclass(frozen=True, kw_only=True)
class GradientLearner(StepSettings, Learner, ABC):
    """A learner that adapts the network's parameters by gradient steps on the support set."""

    @property
    def remedy(self) -> str:
        """Advice for gradients that are not finite, with the settings of the inner loop."""
        return f"lower {self.name}.inner_lr or training.outer_lr, or set {self.name}.inner_clip"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters, with one head row for all ways if the head is shared."""
        del seed
        return with_shared_head(params) if self.shared_head else dict(params)

    def bind(self, spec: NetworkSpec, masks: list[Tensor] | None) -> Network:
        """The network as a function of φ; `masks`, one set an episode, switch dropout on."""
        return bind_network(spec, masks)

    def episode_params(
        self,
        spec: NetworkSpec,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        masks: list[Tensor] | None,
    ) -> Params:
        """The parts of φ_0 that are functions of the meta-parameters and the support set.

        Arguments and result have an episode axis; the result can be differentiated.
        """
        del spec, meta_params, support, masks
        return {}

    def adapts(self, name: str) -> bool:  # noqa: ARG002
        """Whether the inner loop changes parameter `name`."""
        return True

    def inner_rate(
        self,
        meta_params: Mapping[str, Tensor],  # noqa: ARG002
        name: str,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> Tensor | float:
        """α of parameter `name` at `step`: a number, `[E]`, or one for each element.

        It is `inner_lr` unless it is learned.  Steps beyond those of meta-training repeat the last.
        """
        return self.inner_lr

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
        """φ_{step+1} from φ_step (`params`); the other arguments are those of `adaptation_path`."""
        return gradient_step(
            network,
            problem,
            params,
            support,
            rates={k: self.inner_rate(meta_params, k, step) for k in params if self.adapts(k)},
            max_norm=self.inner_clip,
            differentiable=differentiable,
            first_order=self.first_order,
        )

    def adaptation_path(
        self,
        network: Network,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        *,
        num_steps: int,
        differentiable: bool = False,
    ) -> list[Params]:
        """The adapted parameters φ_0 … φ_S of every episode.

        Args:
            network: parameters and examples to outputs.
            problem: whose loss is minimised.
            meta_params: each with an episode axis (`expand_meta_params`).
            support: what the episodes adapt to.
            num_steps: S; may be more than `adaptation_steps`.
            differentiable: whether φ is to be differentiated by `meta_params`; if not, each step's
                graph is freed at once.
        """
        path = [network_params(meta_params)]
        for step in range(num_steps):
            path.append(
                self.adaptation_step(
                    network,
                    problem,
                    path[-1],
                    meta_params,
                    support,
                    step=step,
                    differentiable=differentiable,
                )
            )
        return path

    def query_outputs(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        query: Examples,
        num_steps: int,
    ) -> Iterator[Tensor]:
        """Yields the outputs for the query sets after 0 … S gradient steps, dropout off."""
        for params in self._path(spec, problem, meta_params, support, num_steps):
            yield self.adapted_outputs(spec, params, query)

    def adapted_params(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        num_steps: int,
    ) -> Params:
        """The parameters φ_S of every episode."""
        return self._path(spec, problem, meta_params, support, num_steps)[-1]

    def adapted_outputs(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], query: Examples
    ) -> Tensor:
        """The outputs of the adapted network, dropout off."""
        with torch.no_grad():
            return self.bind(spec, None)(adapted, query)

    def adapted_network(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        adapted: Mapping[str, Tensor],
    ) -> Params:
        """The adapted parameters."""
        return dict(adapted)

    def adapted_answers(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        adapted: Mapping[str, Tensor],
        features: Tensor,
    ) -> Tensor:
        """Applies the adapted head to the features."""
        weight = adapted["head.weight"].transpose(1, 2)
        return torch.baddbmm(adapted["head.bias"].unsqueeze(1), features, weight)

    def _path(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        num_steps: int,
    ) -> list[Params]:
        """φ_0 … φ_S, dropout off."""
        expanded = expand_meta_params(spec, meta_params, len(support.y))
        with torch.no_grad():
            expanded |= self.episode_params(spec, expanded, support, None)
        network = self.bind(spec, None)
        return self.adaptation_path(network, problem, expanded, support, num_steps=num_steps)

    def starts_from(self, meta_params: Params, pretrained: Params) -> None:
        """Copies a jointly trained network's parameters; a shared head starts from zero."""
        super().starts_from(meta_params, pretrained)
        if self.shared_head:
            for name in filter(is_head, meta_params):
                meta_params[name].zero_()
