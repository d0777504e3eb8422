"""The interface of a meta-learner: its start, its meta-gradient and its adaptation.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import (
    Network,
    bind_network,
    episode_masks,
    expand_meta_params,
    gradient_step,
    network_params,
    with_shared_head,
)
from raymeta.meta.settings import LearnerSettings, StepSettings
from raymeta.nn.networks import NetworkSpec, Params, is_head, shared_features
from raymeta.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Learner(LearnerSettings, ABC):
    """A meta-learning algorithm and its settings; pure functions of parameters and episodes.

    To add one: a file in `raymeta/meta/learners/` with a frozen dataclass of this base, a line in
    LEARNERS, and a class of settings in `raymeta/meta/settings.py`. The contract tests run over
    every member of LEARNERS.

    `name` is its key in LEARNERS and in experiment files.  `keeps_graphs` tells whether its
    meta-gradient keeps graphs of adaptation steps, whose memory must be planned; `reads_steps`
    whether its answers need the states of all time steps rather than what is pooled of them.
    """

    name: ClassVar[str]
    keeps_graphs: ClassVar[bool] = True
    reads_steps: ClassVar[bool] = False

    @property
    def remedy(self) -> str:
        """What a user should change if its gradients are not finite."""
        return "lower training.outer_lr"

    @property
    def has_step_losses(self) -> bool:
        """Whether the meta-loss has the query's loss after every adaptation step, not the last."""
        return False

    def at_progress(self, progress: float) -> Learner:
        """The learner at a meta-step; `progress` (0 … 1) is the share of meta-steps before it.

        A learner with a constant meta-gradient returns itself.
        """
        del progress
        return self

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The meta-parameters, given a network's initial parameters; neither has an episode axis.

        A network's parameters keep their names; further learned parameters have names of their own,
        and `seed` draws them.
        """
        del seed
        return dict(params)

    @abstractmethod
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
        """`meta_gradient` as a function of tensors alone: `masks` are those of `episode_masks`."""

    @abstractmethod
    def query_outputs(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        query: Examples,
        num_steps: int,
    ) -> Iterator[Tensor]:
        """Outputs `[E, N, O]` for the query sets after 0 … S adaptation steps, dropout off.

        Args:
            spec: the network.
            problem: whose loss adaptation minimises.
            meta_params: without an episode axis; not differentiated.
            support: what the episodes adapt to.
            query: what is answered.
            num_steps: S, which may be more than `adaptation_steps`; 0 for a learner that takes
                none, whose only outputs are those after it has seen the support sets.
        """

    @abstractmethod
    def adapted_params(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        num_steps: int,
    ) -> Params:
        """The result of adaptation to the support sets, for `adapted_outputs`.

        The arguments are those of `query_outputs`. Tensors that depend on the support set have an
        episode axis.
        """

    def task_params(self, adapted: Mapping[str, Tensor], index: int) -> Params:
        """What `adapted_params` found of one of its episodes, as a batch of that one.

        What is its own is copied: whoever keeps one task must not keep the memory of all.
        """
        return {name: value[index : index + 1].clone() for name, value in adapted.items()}

    @abstractmethod
    def adapted_outputs(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], query: Examples
    ) -> Tensor:
        """The last outputs `[E, N, O]` of `query_outputs`, from `adapted_params`."""

    def predictive_scale(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        adapted: Mapping[str, Tensor],  # noqa: ARG002
        query: Examples,  # noqa: ARG002
    ) -> Tensor | None:
        """The standard deviation `[E, N, O]` that the learner expects of each target.

        None for a learner that expects none.  The arguments are those of `adapted_outputs`.
        """
        return None

    @abstractmethod
    def adapted_network(self, spec: NetworkSpec, adapted: Mapping[str, Tensor]) -> Params:
        """The parameters, with an episode axis, that compute the features of queries."""

    def features(
        self,
        spec: NetworkSpec,
        params: Mapping[str, Tensor],
        x: Tensor,
        lengths: Tensor | None = None,
        masks: list[Tensor] | None = None,
    ) -> Tensor:
        """What `adapted_answers` reads of examples, `[E, N, F]`; see `shared_features`."""
        return shared_features(spec, params, x, lengths, masks)

    @abstractmethod
    def adapted_answers(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], features: Tensor
    ) -> Tensor:
        """`adapted_outputs` from the queries' `features` `[E, N, F]` by `adapted_network`.

        They can be differentiated by the features.
        """

    def support_weights(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        adapted: Mapping[str, Tensor],  # noqa: ARG002
        features: Tensor,  # noqa: ARG002
    ) -> Tensor | None:
        """How near each of S support examples is to the queries, `[E, N, S]`; they add up to one.

        None for a learner that compares queries with no examples.  The arguments are those of
        `adapted_answers`.
        """
        return None

    def meta_gradient(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        episodes: Episodes,
        *,
        graph_steps: int | None = None,
    ) -> MetaGradient:
        """The meta-gradient: sums over the episodes, with dropout.

        Args:
            spec: the network.
            problem: its loss and score.
            meta_params: without an episode axis.
            episodes: one shard of a meta-step.
            graph_steps: adaptation steps whose graph is kept, None for all; no result depends on it
                beyond rounding.
        """
        masks = episode_masks(spec, meta_params, episodes.seeds)
        return self.masked_meta_gradient(
            spec,
            problem,
            meta_params,
            episodes.support,
            episodes.query,
            masks,
            graph_steps=graph_steps,
        )

    def adaptation_scores(
        self,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        episodes: Episodes,
        num_steps: int,
    ) -> Tensor:
        """The score of every query after 0 … S adaptation steps, `[E, N, S + 1]`, dropout off."""
        support, query = episodes.support, episodes.query
        detached = {name: value.detach() for name, value in meta_params.items()}
        outputs = self.query_outputs(spec, problem, detached, support, query, num_steps)
        return torch.stack([problem.query_scores(found, query.y) for found in outputs], dim=2)

    def starts_from(self, meta_params: Params, pretrained: Params) -> None:
        """Overwrites meta-parameters with those of a jointly trained network.

        A head made for the classes of joint training starts from zero instead; a learner without
        a head takes none.
        """
        for name, value in pretrained.items():
            if is_head(name) and name not in meta_params:
                continue
            if is_head(name) and value.shape != meta_params[name].shape:
                meta_params[name].zero_()
            else:
                meta_params[name].copy_(value)


@dataclass(frozen=True, kw_only=True)
class GradientLearner(StepSettings, Learner, ABC):
    """A learner that adapts the network's parameters by gradient steps on the support set."""

    @property
    def remedy(self) -> str:
        """As for every learner."""
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
        """As for every learner."""
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
        """As for every learner."""
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
        """Those of the head."""
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
        """As for every learner; a shared head starts from zero."""
        super().starts_from(meta_params, pretrained)
        if self.shared_head:
            for name in filter(is_head, meta_params):
                meta_params[name].zero_()
