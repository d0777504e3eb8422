"""Model-agnostic meta-learning (Finn et al. 2017) for task-batched networks.

    φ_0 = θ,   φ_{s+1} = φ_s - α_s ∘ clip(∇_φ L_support(φ_s)),   meta-loss = L_query(φ_S)

First order drops the derivative of the inner gradient (FOMAML); ANIL (Raghu et al. 2020) adapts
the head alone; learned rates α are meta-parameters beside θ (Li et al. 2017; Antoniou et al. 2019).

Shape legend: E episodes, N examples, O outputs, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raymeta.models import NetworkSpec, Params, dropout_masks, expand_params, forward, is_head
from raymeta.tasks.episodes import Episodes, Examples

RATE_PREFIX = "log_inner_lr."
# Adaptation steps that are taken again at a time: half as many parameter sets to keep as with one,
# for the graph of one step more.
SEGMENT = 2

Kind = Literal["classification", "regression"]
# (params with episode axis, examples) -> outputs [E, N, O]
Network = Callable[[Mapping[str, Tensor], Examples], Tensor]


@dataclass(frozen=True, kw_only=True)
class Maml:
    """The settings of the inner loop.

    `inner_lr` is the fixed rate, or the start of the learned ones (`learn_inner_lr`: one rate per
    parameter tensor and step, kept positive as a logarithm).  `inner_clip` bounds the norm of each
    episode's inner gradient over all adapted parameters; None leaves it.  With `shared_head` the
    head of every way starts from one learned row, zero at first: which class got which label then
    makes no difference (Ye and Chao 2022, "How to Train Your MAML to Excel", UNICORN-MAML).
    """

    adaptation_steps: int = 5
    inner_lr: float = 0.1
    learn_inner_lr: bool = False
    first_order: bool = False
    adapt: Literal["all", "head"] = "all"
    inner_clip: float | None = None
    shared_head: bool = False

    def adapts(self, name: str) -> bool:
        """Whether the inner loop changes parameter `name`."""
        return self.adapt == "all" or is_head(name)


def init_meta_params(maml: Maml, params: Mapping[str, Tensor]) -> Params:
    """θ and, where they are learned, the logarithms `[S]` of the inner rates."""
    meta_params = dict(params)
    if maml.shared_head:
        meta_params |= {k: torch.zeros_like(v[:1]) for k, v in params.items() if is_head(k)}
    if maml.learn_inner_lr:
        for name, value in params.items():
            if maml.adapts(name):
                start = torch.full((maml.adaptation_steps,), maml.inner_lr, dtype=torch.float64)
                meta_params[RATE_PREFIX + name] = start.log().to(value)
    return meta_params


def expand_meta_params(
    spec: NetworkSpec, meta_params: Mapping[str, Tensor], num_episodes: int
) -> Params:
    """Gives every meta-parameter an episode axis, and a shared head a row for every way."""
    expanded = expand_params(meta_params, num_episodes)
    for name, value in expanded.items():
        if is_head(name):
            expanded[name] = value.expand(num_episodes, spec.num_outputs, *value.shape[2:])
    return expanded


def network_params(meta_params: Mapping[str, Tensor]) -> Params:
    """θ alone, without learned rates."""
    return {k: v for k, v in meta_params.items() if not k.startswith(RATE_PREFIX)}


def inner_rate(
    maml: Maml, meta_params: Mapping[str, Tensor], name: str, step: int
) -> Tensor | float:
    """α of parameter `name` at `step`, `[E]` where learned; steps never trained repeat the last."""
    if not maml.learn_inner_lr:
        return maml.inner_lr
    log_rates = meta_params[RATE_PREFIX + name]
    return log_rates[:, min(step, log_rates.shape[1] - 1)].exp()


def episode_losses(outputs: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """The mean loss of each episode, `[E]`: cross-entropy, or squared error over all dimensions.

    An example of NO_CLASS counts as one without loss, so that sums over shards weigh all alike.
    """
    if kind == "classification":
        loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return loss.view(targets.shape).mean(dim=1)
    return (outputs - targets).square().mean(dim=(1, 2))


def episode_masks(
    spec: NetworkSpec, meta_params: Mapping[str, Tensor], seeds: Tensor
) -> list[Tensor] | None:
    """The dropout masks of episodes with these `seeds` `[E]`; None without dropout."""
    return dropout_masks(spec, seeds, meta_params) if spec.dropout > 0 else None


def bind_network(spec: NetworkSpec, masks: list[Tensor] | None) -> Network:
    """The network as a function; `masks`, one set an episode, switch dropout on."""

    def network(params: Mapping[str, Tensor], examples: Examples) -> Tensor:
        return forward(spec, params, examples.x, examples.lengths, masks)

    return network


def adaptation_path(
    maml: Maml,
    network: Network,
    kind: Kind,
    meta_params: Mapping[str, Tensor],
    support: Examples,
    *,
    num_steps: int,
    differentiable: bool,
) -> list[Params]:
    """The adapted parameters φ_0 … φ_S (with episode axis) of every episode.

    Args:
        maml: settings of the inner loop.
        network: parameters and examples to outputs.
        kind: of the loss.
        meta_params: θ and learned rates, each with an episode axis (`expand_meta_params`).
        support: what the episodes adapt to.
        num_steps: S.
        differentiable: whether φ is to be differentiated with respect to `meta_params`; without,
            each step's graph is freed at once.
    """
    path = [network_params(meta_params)]
    for step in range(num_steps):
        path.append(
            adaptation_step(
                maml,
                network,
                kind,
                path[-1],
                meta_params,
                support,
                step=step,
                differentiable=differentiable,
            )
        )
    return path


def adaptation_step(
    maml: Maml,
    network: Network,
    kind: Kind,
    params: Params,
    meta_params: Mapping[str, Tensor],
    support: Examples,
    *,
    step: int,
    differentiable: bool,
) -> Params:
    """φ_{step+1} from φ_step (`params`); the other arguments are those of `adaptation_path`."""
    adapted = {k: v for k, v in params.items() if maml.adapts(k)}
    if not differentiable:
        adapted = {k: v.detach().requires_grad_() for k, v in adapted.items()}
    with torch.enable_grad():
        losses = episode_losses(network({**params, **adapted}, support), support.y, kind)
        # Episodes share no parameter copy, so the sum's gradient is every episode's own.
        grads = torch.autograd.grad(
            losses.sum(),
            list(adapted.values()),
            create_graph=differentiable and not maml.first_order,
        )
    if maml.inner_clip is not None:
        grads = clip_per_episode(grads, maml.inner_clip)
    updated = {}
    for (name, value), grad in zip(adapted.items(), grads, strict=True):
        rate = inner_rate(maml, meta_params, name, step)
        if isinstance(rate, Tensor):
            rate = rate.view(-1, *[1] * (grad.dim() - 1))
        updated[name] = value - rate * grad
    if not differentiable:
        updated = {k: v.detach() for k, v in updated.items()}
    return {**params, **updated}


def clip_per_episode(grads: tuple[Tensor, ...], max_norm: float) -> tuple[Tensor, ...]:
    """Scales each episode's gradient, all tensors `[E, ...]` together, to `max_norm` at most."""
    # In float64, in which the squares of float32 gradients do not overflow.
    squared = torch.stack([g.flatten(1).double().square().sum(dim=1) for g in grads]).sum(dim=0)
    # The floor keeps the derivative of the root finite where a gradient vanishes.
    norm = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
    scale = (max_norm / norm).clamp_max(1.0).to(grads[0].dtype)
    return tuple(g * scale.view(-1, *[1] * (g.dim() - 1)) for g in grads)


@dataclass(frozen=True)
class MetaGradient:
    """Sums over the episodes of a shard, so that shards of any size add up to the whole.

    `grads` has the names of the meta-parameters, without episode axis; all are float64.
    """

    grads: Params
    loss: Tensor
    score: Tensor
    num_episodes: int


def meta_gradient(
    maml: Maml,
    spec: NetworkSpec,
    kind: Kind,
    meta_params: Mapping[str, Tensor],
    episodes: Episodes,
    *,
    graph_steps: int | None = None,
) -> MetaGradient:
    """The gradient of Σ_episodes L_query(φ_S) with respect to the meta-parameters, dropout on.

    It is taken for each episode by itself and added up in float64: the sum of float32 shards then
    hardly depends on how the episodes were dealt out.

    Of the last `graph_steps` adaptation steps (None: all) the graph is kept.  The steps before them
    leave nothing but parameters and are taken again on the way back, SEGMENT at a time:

        v_s = v_{s+1} - α ∘ H_s v_{s+1},   H_s the Hessian of L_support at φ_s,

    or its like with clipping.  Memory then hardly grows with S; the result is the same.
    """
    masks = episode_masks(spec, meta_params, episodes.seeds)
    return masked_meta_gradient(
        maml,
        spec,
        kind,
        meta_params,
        episodes.support,
        episodes.query,
        masks,
        graph_steps=graph_steps,
    )


def masked_meta_gradient(
    maml: Maml,
    spec: NetworkSpec,
    kind: Kind,
    meta_params: Mapping[str, Tensor],
    support: Examples,
    query: Examples,
    masks: list[Tensor] | None,
    *,
    graph_steps: int | None = None,
) -> MetaGradient:
    """`meta_gradient` as a function of tensors alone: `masks` are those of `episode_masks`."""
    num_episodes = query.y.shape[0]
    leaves = _as_leaves(expand_meta_params(spec, meta_params, num_episodes))
    rates = {k: v for k, v in leaves.items() if k.startswith(RATE_PREFIX)}
    network = bind_network(spec, masks)
    total = maml.adaptation_steps
    kept = total if graph_steps is None else min(graph_steps, total)

    def steps(params: Params, numbers: range, *, differentiable: bool) -> Params:
        for number in numbers:
            params = adaptation_step(
                maml,
                network,
                kind,
                params,
                rates,
                support,
                step=number,
                differentiable=differentiable,
            )
        return params

    theta = network_params(leaves)
    adapted = [name for name in theta if maml.adapts(name)]
    segments = [
        range(first, min(first + SEGMENT, total - kept))
        for first in range(0, total - kept, SEGMENT)
    ]
    # What the segments end with, in one block: tensors that outlive a step, scattered among all
    # those that do not, would leave holes in the memory.
    ends = {name: theta[name].new_empty(len(segments), *theta[name].shape) for name in adapted}

    def start_of(number: int) -> Params:
        return theta | {name: ends[name][number - 1] for name in adapted if number > 0}

    for number, segment in enumerate(segments):
        after = steps(start_of(number), segment, differentiable=False)
        for name in adapted:
            ends[name][number] = after[name]
        del after
    start = _as_leaves(start_of(len(segments))) if segments else theta
    params = steps(start, range(total - kept, total), differentiable=True)
    outputs = network(params, query)
    losses = episode_losses(outputs, query.y, kind)
    grads = _vector_jacobian({"loss": losses}, {"loss": torch.ones_like(losses)}, start | rates)
    loss, scores = losses.detach(), episode_scores(outputs.detach(), query.y, kind)
    del params, outputs, losses, start  # and the graph with them
    for number, segment in reversed(list(enumerate(segments))):
        start = _as_leaves(start_of(number))
        after = steps(start, segment, differentiable=True)
        cotangents = {name: grads[name] for name in after}
        earlier = _vector_jacobian(after, cotangents, start | rates)
        for name in rates:
            earlier[name] += grads[name]
        grads = earlier
    return MetaGradient(
        grads={
            name: grads[name].sum(dim=0, dtype=torch.float64).sum_to_size(value.shape)
            for name, value in meta_params.items()
        },
        loss=loss.sum(dtype=torch.float64),
        score=scores.sum(dtype=torch.float64),
        num_episodes=num_episodes,
    )


def _as_leaves(params: Mapping[str, Tensor]) -> Params:
    """The same values without a history, to differentiate by."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def _vector_jacobian(outputs: Params, cotangents: Params, inputs: Params) -> Params:
    """Σ_outputs ⟨cotangent, ∂ output / ∂ input⟩ of every input."""
    grads = torch.autograd.grad(
        list(outputs.values()),
        list(inputs.values()),
        [cotangents[name] for name in outputs],
        materialize_grads=True,
    )
    return dict(zip(inputs, grads, strict=True))


def episode_scores(outputs: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """What an episode is judged by, `[E]`: the share of right answers, or the squared error."""
    if kind == "regression":
        return episode_losses(outputs, targets, kind)
    return (outputs.argmax(dim=-1) == targets).to(outputs.dtype).mean(dim=1)


def adaptation_scores(
    maml: Maml,
    spec: NetworkSpec,
    kind: Kind,
    meta_params: Mapping[str, Tensor],
    episodes: Episodes,
    num_steps: int,
) -> Tensor:
    """Query scores of every episode after 0 … S adaptation steps, `[E, S + 1]`, dropout off."""
    detached = {name: value.detach() for name, value in meta_params.items()}
    expanded = expand_meta_params(spec, detached, len(episodes))
    network = bind_network(spec, None)
    path = adaptation_path(
        maml,
        network,
        kind,
        expanded,
        episodes.support,
        num_steps=num_steps,
        differentiable=False,
    )
    with torch.no_grad():
        scores = [
            episode_scores(network(params, episodes.query), episodes.query.y, kind)
            for params in path
        ]
    return torch.stack(scores, dim=1)
