"""The interface of a meta-learner: its start, its meta-gradient and its adaptation.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import episode_masks
from raymeta.meta.settings import LearnerSettings
from raymeta.nn.networks import NetworkSpec, Params, is_head
from raymeta.nn.shared import shared_features
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
        """Advice for a user whose gradients are not finite: the settings to change."""
        return "lower training.outer_lr"

    @property
    def has_step_losses(self) -> bool:
        """Whether the meta-loss has the query loss after every step, not only the last."""
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
        """Extracts one episode from the result of `adapted_params`, as a batch of one.

        Its tensors are copied, so that a kept task does not keep the memory of all the others.
        """
        return {name: value[index : index + 1].clone() for name, value in adapted.items()}

    def shared_params(
        self,
        task: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Params:
        """What `task_params` has that is the same for all tasks, and has no episode axis."""
        return {}

    def joint_params(self, tasks: Sequence[Mapping[str, Tensor]]) -> Params:
        """The inverse of `task_params`: several tasks as one batch, for `adapted_outputs`.

        Their `shared_params` must be equal, and all others as large.
        """
        if len(tasks) == 1:
            return dict(tasks[0])
        shared = self.shared_params(tasks[0])
        own = tasks[0].keys() - shared.keys()
        return {**shared, **{name: torch.cat([task[name] for task in tasks]) for name in own}}

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
        """The features for `adapted_answers`, `[E, N, F]`; see `shared_features`."""
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
        """The similarity of each query to each of S support examples, `[E, N, S]`; rows sum to one.

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
