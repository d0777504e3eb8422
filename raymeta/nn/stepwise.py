"""Runs a recurrent network step by step, with the same features as on whole sequences.

Every sequence of a batch is as long as the others so far.  Bidirectional networks cannot run so:
the backward direction must see the end first.

Shape legend: E episodes, N examples, D features, H hidden units, G gates, F features of the last
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.nn.networks import NetworkSpec


@dataclass(frozen=True)
class State:
    """The state after the time steps so far.

    `hidden` and `cells` (LSTM only) are `[E, N, H]` of each layer.  For a mean over time, `total`
    `[E, N, F]` is the sum; for attention it is the weighted sum, `weight` `[E, N, 1]` the sum of
    the weights, both divided by exp(`highest`), the largest score so far, against overflow.
    """

    num_steps: int
    hidden: tuple[Tensor, ...]
    cells: tuple[Tensor, ...]
    total: Tensor
    weight: Tensor
    highest: Tensor


def first_state(spec: NetworkSpec, params: Mapping[str, Tensor], num_examples: int) -> State:
    """The state before the first step.

    Args:
        spec: the network.
        params: with an episode axis.
        num_examples: N.

    Raises:
        ValueError: the network cannot run step by step.
    """
    if spec.bidirectional:
        raise ValueError(
            "a bidirectional network reads a sequence from its end too (one that was trained with "
            "model.bidirectional: false does not)"
        )
    if spec.stacked_steps > 1:
        raise ValueError(
            f"it reads {spec.stacked_steps} time steps at once (one that was trained with "
            "model.stacked_steps: 1 does not)"
        )
    if spec.layer_dtype is not None:
        dtype = str(spec.layer_dtype).removeprefix("torch.")
        raise ValueError(
            f"its layers compute in {dtype} (those of one that was trained with "
            "training.precision: float32 do not)"
        )
    if spec.num_features is None:
        raise ValueError("it reads tokens, not numbers")
    like = params["rnn.weight_hh_l0"]
    zero = like.new_zeros(like.shape[0], num_examples, spec.hidden_size)
    one_each = zero[..., :1]
    layers = (zero,) * spec.num_layers
    return State(
        num_steps=0,
        hidden=layers,
        cells=layers if spec.cell == "lstm" else (),
        total=zero,
        weight=one_each,
        highest=torch.full_like(one_each, -torch.inf),
    )


def next_features(
    spec: NetworkSpec, params: Mapping[str, Tensor], x: Tensor, state: State
) -> tuple[Tensor, State]:
    """Takes one step; returns the head's input `[E, N, F]` and the new state.

    Args:
        spec: the network.
        params: with an episode axis.
        x: the inputs of the step, `[E, N, D]`.
        state: before the step.
    """
    hidden: list[Tensor] = []
    cells: list[Tensor] = []
    for layer in range(spec.num_layers):
        own = {
            name: params[f"rnn.{name}_l{layer}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        before = state.hidden[layer]
        given = torch.baddbmm(own["bias_ih"].unsqueeze(1), x, own["weight_ih"].transpose(1, 2))
        kept = torch.baddbmm(own["bias_hh"].unsqueeze(1), before, own["weight_hh"].transpose(1, 2))
        match spec.cell:
            case "rnn":
                x = (given + kept).tanh()
            case "gru":
                (r, z, n), (kept_r, kept_z, kept_n) = given.chunk(3, -1), kept.chunk(3, -1)
                new = (n + (r + kept_r).sigmoid() * kept_n).tanh()
                x = torch.lerp(new, before, (z + kept_z).sigmoid())
            case "lstm":
                i, f, c, o = (given + kept).chunk(4, -1)
                cells.append(f.sigmoid() * state.cells[layer] + i.sigmoid() * c.tanh())
                x = o.sigmoid() * cells[-1].tanh()
        hidden.append(x)
    num_steps, total = state.num_steps + 1, state.total
    weight, highest = state.weight, state.highest
    match spec.pooling:
        case "last":
            features = x
        case "mean":
            total = total + x
            features = total / num_steps
        case "attention":  # softmax over a growing number of scores (Milakov and Gimelshein 2018)
            score = x @ params["attention.weight"].transpose(1, 2)
            highest = torch.maximum(state.highest, score)
            shrunk, own_weight = (state.highest - highest).exp(), (score - highest).exp()
            total = shrunk * total + own_weight * x
            weight = shrunk * weight + own_weight
            features = total / weight
    return features, State(num_steps, tuple(hidden), tuple(cells), total, weight, highest)
