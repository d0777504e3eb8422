"""The inner loop: gradient descent on the support sets of many episodes at once.

Shape legend: E episodes, N examples, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.nn.networks import NetworkSpec, Params, dropout_masks, expand_params, forward, is_head
from raymeta.problem import Problem

LOG_PREFIX = "log_"  # of meta-parameters that are logarithms of what they stand for
SIGNED_RATE_PREFIX = "inner_lr."  # of learned rates, one for each element of a parameter
RATE_PREFIX = f"{LOG_PREFIX}{SIGNED_RATE_PREFIX}"  # of the logarithms of positive ones

# (params with episode axis, examples) -> outputs [E, N, O]
Network = Callable[[Mapping[str, Tensor], Examples], Tensor]


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


def with_shared_head(params: Mapping[str, Tensor]) -> Params:
    """The parameters with one head row of zeros, which `expand_meta_params` gives to every way."""
    return dict(params) | {k: torch.zeros_like(v[:1]) for k, v in params.items() if is_head(k)}


def expand_meta_params(
    spec: NetworkSpec, meta_params: Mapping[str, Tensor], num_episodes: int
) -> Params:
    """Gives every meta-parameter an episode axis, and a shared head a row for every way."""
    expanded = expand_params(meta_params, num_episodes)
    for name, value in expanded.items():
        if is_head(name):
            expanded[name] = value.expand(num_episodes, spec.num_outputs, *value.shape[2:])
    return expanded


def is_rate(name: str) -> bool:
    """Whether meta-parameter `name` is a learned rate of the inner loop, or its logarithm."""
    return name.startswith((RATE_PREFIX, SIGNED_RATE_PREFIX))


def is_decayed(name: str) -> bool:
    """Whether weight decay shrinks meta-parameter `name`: a weight, no rate and no logarithm."""
    return not (name.startswith(LOG_PREFIX) or is_rate(name))


def network_params(meta_params: Mapping[str, Tensor]) -> Params:
    """The network's own parameters, without learned rates."""
    return {k: v for k, v in meta_params.items() if not is_rate(k)}


def positive_rates(params: Mapping[str, Tensor], num_steps: int, start: float) -> Params:
    """Meta-parameters `[S]` for the rates of these parameters, one a tensor and step.

    They are logarithms, which keep the rates positive.
    """
    rates = torch.full((num_steps,), start, dtype=torch.float64)
    return {RATE_PREFIX + name: rates.log().to(value) for name, value in params.items()}


def positive_rate(meta_params: Mapping[str, Tensor], name: str, step: int) -> Tensor:
    """The learned rate `[E]` of a parameter; steps beyond the last one repeat it."""
    log_rates = meta_params[RATE_PREFIX + name]
    return log_rates[:, min(step, log_rates.shape[1] - 1)].exp()


def gradient_step(
    network: Network,
    problem: Problem,
    params: Params,
    examples: Examples,
    *,
    rates: Mapping[str, Tensor | float],
    max_norm: float | None,
    differentiable: bool,
    first_order: bool = False,
) -> Params:
    """One step of gradient descent on every episode's own loss.

    Args:
        network: parameters and examples to outputs.
        problem: whose loss is minimised.
        params: each with an episode axis.
        examples: of every episode.
        rates: the learning rate of every parameter to adapt, a number, `[E]`, or one for each of
            its elements; other parameters stay.
        max_norm: bound on the norm of each episode's gradient; None for no bound.
        differentiable: whether the result can be differentiated by `params` and `rates`; if not,
            the step's graph is freed at once.
        first_order: leaves the derivative of the gradient out of a differentiable step.
    """
    adapted = {k: v for k, v in params.items() if k in rates}
    if not differentiable:
        adapted = as_leaves(adapted)
    with torch.enable_grad():
        losses = problem.loss(network({**params, **adapted}, examples), examples.y)
        # Episodes share no parameter copy, so the sum's gradient is every episode's own.
        grads = torch.autograd.grad(
            losses.sum(),
            list(adapted.values()),
            create_graph=differentiable and not first_order,
        )
    if max_norm is not None:
        grads = clip_per_episode(grads, max_norm)
    updated = {}
    for (name, value), grad in zip(adapted.items(), grads, strict=True):
        rate = rates[name]
        if isinstance(rate, Tensor) and rate.dim() == 1:
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


def as_leaves(params: Mapping[str, Tensor]) -> Params:
    """The same values without a history, to differentiate by."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}
