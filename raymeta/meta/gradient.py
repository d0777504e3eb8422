"""The gradient of a loss after adaptation, with a chosen part of the graph in memory.

Shape legend: E episodes, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raymeta.meta.inner import as_leaves
from raymeta.nn.networks import Params

# Steps recomputed per segment on the backward pass: half as many parameter sets to keep as with
# one, for the graph of one step more.
SEGMENT = 2


@dataclass(frozen=True)
class MetaGradient:
    """Sums over the episodes of a shard, so that shards of any size add up to the whole.

    `grads` has the names of the meta-parameters, without episode axis; all are float64.
    """

    grads: Params
    loss: Tensor
    score: Tensor
    num_episodes: int

    @classmethod
    def summed(
        cls, meta_params: Mapping[str, Tensor], grads: Params, losses: Tensor, scores: Tensor
    ) -> MetaGradient:
        """The sums of every episode's gradients `[E, ...]`, losses and scores `[E]`.

        They are added up in float64: the sum of float32 shards then hardly depends on how the
        episodes were dealt out.  The gradients of a shared head's rows are also added up.
        """
        return cls(
            grads={
                name: grads[name].sum(dim=0, dtype=torch.float64).sum_to_size(value.shape)
                for name, value in meta_params.items()
            },
            loss=losses.sum(dtype=torch.float64),
            score=scores.sum(dtype=torch.float64),
            num_episodes=len(losses),
        )


class Step(Protocol):
    """An adaptation step: φ_{s+1} from φ_s."""

    def __call__(self, params: Params, number: int, *, differentiable: bool) -> Params:
        """The parameters after step `number`; its graph is kept if `differentiable`."""


def gradient_through_adaptation(
    take_step: Step,
    losses_of: Callable[[Params], tuple[Tensor, Tensor]],
    theta: Params,
    others: Params,
    adapted: Collection[str],
    *,
    num_steps: int,
    graph_steps: int | None,
    step_weights: Sequence[float] | None = None,
) -> tuple[Params, Tensor, Tensor]:
    """The gradient of each episode's loss by θ and by `others`.

    The loss is that at φ_S or, with `step_weights`, Σ_s w_s L(φ_s) over s = 1 … S.

    Of the last `graph_steps` adaptation steps (None: all) the graph is kept.  The steps before them
    leave nothing but parameters and are recomputed on the backward pass, SEGMENT at a time.  For
    gradient descent with rate α that is

        v_s = v_{s+1} - α ∘ H_s v_{s+1},   H_s the Hessian of the step's loss at φ_s.

    Memory then hardly grows with S; the result is the same.

    Args:
        take_step: the adaptation step.
        losses_of: the losses `[E]` and scores `[E]` of adapted parameters.
        theta: φ_0, leaves with an episode axis.
        others: further leaves that the steps depend on.
        adapted: names of the parameters that the steps change.
        num_steps: S.
        graph_steps: steps whose graph is kept.
        step_weights: w_1 … w_S; None for the loss at φ_S alone.

    Returns:
        The gradients by name, each with an episode axis; losses, and scores at φ_S.
    """
    kept = num_steps if graph_steps is None else min(graph_steps, num_steps)

    weights = step_weights or [0.0] * (num_steps - 1) + [1.0]

    def take_steps(params: Params, numbers: range) -> tuple[Params, list[Tensor]]:
        """The parameters after differentiable steps, and the weighted losses before φ_S."""
        on_the_way = []
        for number in numbers:
            params = take_step(params, number, differentiable=True)
            if number < num_steps - 1 and weights[number] != 0:
                on_the_way.append(weights[number] * losses_of(params)[0])
        return params, on_the_way

    segments = [
        range(first, min(first + SEGMENT, num_steps - kept))
        for first in range(0, num_steps - kept, SEGMENT)
    ]
    # Keep the parameters after each segment in one block: long-lived tensors scattered among
    # short-lived ones would fragment the memory.
    ends = {name: theta[name].new_empty(len(segments), *theta[name].shape) for name in adapted}

    def start_of(number: int) -> Params:
        return theta | {name: ends[name][number - 1] for name in adapted if number > 0}

    for number, segment in enumerate(segments):
        after = start_of(number)
        for step in segment:
            after = take_step(after, step, differentiable=False)
        for name in adapted:
            ends[name][number] = after[name]
        del after
    start = as_leaves(start_of(len(segments))) if segments else theta
    params, on_the_way = take_steps(start, range(num_steps - kept, num_steps))
    losses, scores = losses_of(params)
    if step_weights:
        losses = sum(on_the_way, weights[-1] * losses)
    ones = torch.ones_like(losses)
    grads = vector_jacobian({"loss": losses}, {"loss": ones}, start | others)
    losses, scores = losses.detach(), scores.detach()
    del params, on_the_way, start  # and the graph with them
    for number, segment in reversed(list(enumerate(segments))):
        start = as_leaves(start_of(number))
        after, on_the_way = take_steps(start, segment)
        outputs, cotangents = dict(after), {name: grads[name] for name in after}
        for index, loss in enumerate(on_the_way):
            outputs[f"loss {index}"], cotangents[f"loss {index}"] = loss, ones
            losses = losses + loss.detach()
        earlier = vector_jacobian(outputs, cotangents, start | others)
        for name in others:
            earlier[name] += grads[name]
        grads = earlier
    return grads, losses, scores


def vector_jacobian(outputs: Params, cotangents: Params, inputs: Params) -> Params:
    """Σ_outputs ⟨cotangent, ∂ output / ∂ input⟩ of every input."""
    grads = torch.autograd.grad(
        list(outputs.values()),
        list(inputs.values()),
        [cotangents[name] for name in outputs],
        materialize_grads=True,
    )
    return dict(zip(inputs, grads, strict=True))
