"""Learners with features shared by all episodes and answers in closed form.

No parameter has a copy for each episode, and no gradient step is taken: a meta-gradient is an
ordinary gradient through one pass over the examples of all episodes.

Shape legend: E episodes, N support examples, M query examples, F features, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.episodes import Examples, joined
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import as_leaves
from raymeta.meta.learner import Learner
from raymeta.nn.networks import NetworkSpec, Params, expand_params, is_head
from raymeta.problem import Problem

# Names in an adapted network beside the meta-parameters.
_FEATURES, _TARGETS = "support.features", "support.targets"


@dataclass(frozen=True)
class Embedded:
    """The features of the examples of E episodes.

    `support` is `[E, N, F]` and `query` `[E, M, F]`; `targets` are those of the support set, int64
    `[E, N]` or float `[E, N, O]`.  `num_outputs` is O.
    """

    support: Tensor
    targets: Tensor
    query: Tensor
    num_outputs: int

    @property
    def target_rows(self) -> Tensor:
        """The support's targets as numbers `[E, N, O]`: one-hot rows of classes."""
        if self.targets.is_floating_point():
            return self.targets
        one_hot = torch.nn.functional.one_hot(self.targets, self.num_outputs)
        return one_hot.to(self.support.dtype)


@dataclass(frozen=True, kw_only=True)
class EmbeddingLearner(Learner, ABC):
    """A learner that answers queries from the features of support and query examples."""

    keeps_graphs: ClassVar[bool] = False

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters without its head."""
        del seed
        return {name: value for name, value in params.items() if not is_head(name)}

    @abstractmethod
    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Outputs `[E, M, O]` for the query examples; of classes, logits."""

    def query_losses(
        self,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        embedded: Embedded,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The losses `[E]` that meta-training minimises, and the outputs `[E, M, O]`."""
        outputs = self.answers(meta_params, embedded)
        return problem.loss(outputs, targets), outputs

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
        """The gradient of Σ_episodes L_query; `graph_steps` changes nothing."""
        del graph_steps
        leaves = as_leaves(meta_params)
        with torch.enable_grad():
            embedded = self._embedded(spec, leaves, support, query, masks)
            losses, outputs = self.query_losses(problem, leaves, embedded, query.y)
            grads = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        scores = problem.score(outputs.detach(), query.y)
        return MetaGradient(
            grads={name: grad.double() for name, grad in zip(leaves, grads, strict=True)},
            loss=losses.detach().sum(dtype=torch.float64),
            score=scores.sum(dtype=torch.float64),
            num_episodes=len(losses),
        )

    def query_outputs(
        self,
        spec: NetworkSpec,
        problem: Problem,  # noqa: ARG002
        meta_params: Mapping[str, Tensor],
        support: Examples,
        query: Examples,
        num_steps: int,
    ) -> Iterator[Tensor]:
        """The only outputs: those after the support sets were seen."""
        self._check_steps(num_steps)
        with torch.no_grad():
            embedded = self._embedded(spec, meta_params, support, query, None)
            found = self.answers(meta_params, embedded)
        # Outside the block: a caller may leave the generator open, and must keep its gradient mode.
        yield found

    def adapted_params(
        self,
        spec: NetworkSpec,
        problem: Problem,  # noqa: ARG002
        meta_params: Mapping[str, Tensor],
        support: Examples,
        num_steps: int,
    ) -> Params:
        """The meta-parameters, and the support's features `[E, N, F]` and targets."""
        self._check_steps(num_steps)
        with torch.no_grad():
            features = self.features(spec, meta_params, support.x, support.lengths)
        return {**meta_params, _FEATURES: features, _TARGETS: support.y}

    def task_params(self, adapted: Mapping[str, Tensor], index: int) -> Params:
        """Extracts one episode's features and targets; all episodes share the meta-parameters."""
        own = {k: adapted[k][index : index + 1].clone() for k in (_FEATURES, _TARGETS)}
        return {**adapted, **own}

    def shared_params(self, task: Mapping[str, Tensor]) -> Params:
        """The meta-parameters."""
        return _meta_params(task)

    def adapted_outputs(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], query: Examples
    ) -> Tensor:
        """Computes the queries' features, and from them the answers."""
        own = _meta_params(adapted)
        with torch.no_grad():
            features = self.features(spec, own, query.x, query.lengths)
            return self.adapted_answers(spec, adapted, features)

    def predictive_scale(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], query: Examples
    ) -> Tensor | None:
        """Computes the queries' features, and from them `scale_of`."""
        own = _meta_params(adapted)
        with torch.no_grad():
            features = self.features(spec, own, query.x, query.lengths)
            known = Embedded(adapted[_FEATURES], adapted[_TARGETS], features, spec.num_outputs)
            return self.scale_of(own, known)

    def scale_of(
        self,
        meta_params: Mapping[str, Tensor],  # noqa: ARG002
        embedded: Embedded,  # noqa: ARG002
    ) -> Tensor | None:
        """`predictive_scale` `[E, M, O]` from the features."""
        return None

    def adapted_network(
        self,
        spec: NetworkSpec,  # noqa: ARG002
        adapted: Mapping[str, Tensor],
    ) -> Params:
        """The meta-parameters, the same for all episodes."""
        return expand_params(_meta_params(adapted), len(adapted[_FEATURES]))

    def adapted_answers(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], features: Tensor
    ) -> Tensor:
        """Computes `answers` from the features of the support set and the queries."""
        embedded = Embedded(adapted[_FEATURES], adapted[_TARGETS], features, spec.num_outputs)
        return self.answers(_meta_params(adapted), embedded)

    def support_weights(
        self, spec: NetworkSpec, adapted: Mapping[str, Tensor], features: Tensor
    ) -> Tensor | None:
        """Computes `example_weights` from the features of the support set and the queries."""
        embedded = Embedded(adapted[_FEATURES], adapted[_TARGETS], features, spec.num_outputs)
        return self.example_weights(_meta_params(adapted), embedded)

    def example_weights(
        self,
        meta_params: Mapping[str, Tensor],  # noqa: ARG002
        embedded: Embedded,  # noqa: ARG002
    ) -> Tensor | None:
        """`support_weights` `[E, M, N]` from the features; None if it compares no examples."""
        return None

    def _embedded(
        self,
        spec: NetworkSpec,
        meta_params: Mapping[str, Tensor],
        support: Examples,
        query: Examples,
        masks: list[Tensor] | None,
    ) -> Embedded:
        both = joined(support, query)
        features = self.features(spec, meta_params, both.x, both.lengths, masks)
        num_support = support.y.shape[1]
        return Embedded(
            support=features[:, :num_support],
            targets=support.y,
            query=features[:, num_support:],
            num_outputs=spec.num_outputs,
        )

    def _check_steps(self, num_steps: int) -> None:
        if num_steps:
            raise ValueError(f"{self.name} takes no adaptation steps, but got {num_steps}")


def support_of(adapted: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The support's features `[E, N, F]` and targets in `adapted_params`, if they have any."""
    if _FEATURES not in adapted:
        return None
    return adapted[_FEATURES], adapted[_TARGETS]


def _meta_params(adapted: Mapping[str, Tensor]) -> Params:
    return {name: v for name, v in adapted.items() if name not in {_FEATURES, _TARGETS}}


def logarithm(value: float, like: Tensor) -> Tensor:
    """The meta-parameter `[1]` that starts a learned positive number: its logarithm."""
    return torch.tensor([value], dtype=torch.float64, device=like.device).log().to(like.dtype)
