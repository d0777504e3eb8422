"""Recurrent networks whose every parameter carries a leading episode axis, differentiable twice.

cuDNN's fused RNNs have no second derivative and `torch.func.vmap` has no rule for them; here one
batched product serves all episodes, and `raymeta.nn.recurrence` has the loop over time.

Shape legend: E episodes, N examples, T time steps, D features, H hidden units, G gates, O outputs.
Parameters are a flat `dict[str, Tensor]`; the recurrent ones keep the names and layout of
`torch.nn.RNN/GRU/LSTM` behind the prefix `rnn.`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raymeta.nn.cells import NUM_GATES, Cell
from raymeta.nn.checks import check_inputs, check_params
from raymeta.nn.recurrence import product, recurrence

Params = dict[str, Tensor]
Pooling = Literal["last", "mean", "attention"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """The architecture of a recurrent network: input → layers → pooling over time → linear head.

    Exactly one of `num_features` (real-valued input `[E, N, T, D]`) and `vocabulary_size` (token
    ids `[E, N, T]` through a learned embedding of `embedding_size`) is set.  `dropout` is the
    probability with which a unit of a layer's output (and of the embedding) is dropped for a whole
    sequence (Gal and Ghahramani 2016).  The recurrent layers compute in `layer_dtype`, if it is not
    that of the parameters; parameters, pooling, head and losses keep theirs.

    The first layer reads `stacked_steps` time steps at once, as one longer vector, and all layers
    and the pooling have so many times fewer steps (frame stacking: Sak et al. 2015, "Fast and
    Accurate Recurrent Neural Network Acoustic Models for Speech Recognition"); zeros fill the last
    stack.
    """

    num_outputs: int
    cell: Cell = "gru"
    num_features: int | None = None
    vocabulary_size: int | None = None
    embedding_size: int = 0
    hidden_size: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    pooling: Pooling = "last"
    layer_dtype: torch.dtype | None = None
    stacked_steps: int = 1

    @property
    def input_size(self) -> int:
        """Features per time step of an example."""
        return self.embedding_size if self.num_features is None else self.num_features

    @property
    def stack_size(self) -> int:
        """Features that the first layer reads at once."""
        return self.input_size * self.stacked_steps

    def num_stacks(self, num_steps: int) -> int:
        """Steps of the layers for an example of `num_steps`."""
        return -(-num_steps // self.stacked_steps)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of a layer's directions in torch's parameter names."""
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def output_size(self) -> int:
        """Features per time step of the last layer's output."""
        return self.hidden_size * len(self.suffixes)


def is_head(name: str) -> bool:
    """Whether parameter `name` belongs to the linear head: what ANIL adapts."""
    return name.startswith("head.")


def init_params(
    spec: NetworkSpec, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Params:
    """Fresh parameters, without an episode axis.

    Input weights are Glorot-uniform, recurrent ones orthogonal per gate, biases zero; an LSTM's
    forget gate starts at 1 (Jozefowicz et al. 2015), against gradients that vanish.
    """

    def glorot(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(6.0 / (rows + columns))
        uniform = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
        return (2 * uniform - 1) * bound

    def orthogonal(size: int) -> Tensor:
        normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        return q * r.diagonal().sign()

    gates, hidden = NUM_GATES[spec.cell], spec.hidden_size
    params: Params = {}
    if spec.vocabulary_size is not None:
        shape = (spec.vocabulary_size, spec.embedding_size)
        params["embedding.weight"] = torch.randn(shape, generator=generator, dtype=torch.float64)
        params["embedding.weight"] *= 0.1
    size = spec.stack_size
    for layer in range(spec.num_layers):
        for suffix in spec.suffixes:
            end = f"l{layer}{suffix}"
            w_ih = [glorot(hidden, size) for _ in range(gates)]
            w_hh = [orthogonal(hidden) for _ in range(gates)]
            params[f"rnn.weight_ih_{end}"] = torch.cat(w_ih)
            params[f"rnn.weight_hh_{end}"] = torch.cat(w_hh)
            params[f"rnn.bias_ih_{end}"] = torch.zeros(gates * hidden, dtype=torch.float64)
            params[f"rnn.bias_hh_{end}"] = torch.zeros(gates * hidden, dtype=torch.float64)
            if spec.cell == "lstm":
                params[f"rnn.bias_ih_{end}"][hidden : 2 * hidden] = 1.0
        size = spec.output_size
    if spec.pooling == "attention":
        params["attention.weight"] = glorot(1, spec.output_size)
    params["head.weight"] = glorot(spec.num_outputs, spec.output_size)
    params["head.bias"] = torch.zeros(spec.num_outputs, dtype=torch.float64)
    return {name: value.to(dtype) for name, value in params.items()}


def expand_params(params: Mapping[str, Tensor], num_episodes: int) -> Params:
    """Gives every parameter a leading episode axis `E`, without copying."""
    return {k: v.unsqueeze(0).expand(num_episodes, *v.shape) for k, v in params.items()}


def dropout_masks(spec: NetworkSpec, seeds: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
    """Scaled keep masks of each episode, one `[E, 1, 1, F]` for each place where dropout acts.

    All examples and time steps of an episode, support and query, share a mask: an episode adapts
    and is scored as one thinned network.  A mask depends on its episode's seed only.
    """
    sizes = [spec.embedding_size] if spec.vocabulary_size is not None else []
    sizes += [spec.output_size] * spec.num_layers
    total = sum(sizes)
    rows = []
    for seed in seeds.tolist():
        uniform = torch.rand(total, generator=torch.Generator().manual_seed(seed))
        rows.append((uniform >= spec.dropout).double() / (1.0 - spec.dropout))
    reference = next(iter(params.values()))
    masks = torch.stack(rows).to(reference)[:, None, None, :]
    return list(torch.split(masks, sizes, dim=-1))


def forward(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None = None,
    masks: list[Tensor] | None = None,
) -> Tensor:
    """Outputs `[E, N, O]` of E networks, each on its own N examples.

    Args:
        spec: the architecture.
        params: as `init_params` names them, each with a leading episode axis.
        x: float `[E, N, T, D]`, or int64 token ids `[E, N, T]`.
        lengths: valid steps of each example, int64 `[E, N]`, from 1 to T; padding changes neither
            outputs nor gradients.
        masks: of `dropout_masks`; None for no dropout.

    Raises:
        ValueError: parameters, features, tokens or lengths do not fit `spec` or each other.  Values
            are checked on the CPU alone: on a GPU every check would wait for it.
    """
    episodes = params["head.weight"].shape[0] if "head.weight" in params else 0
    check_params(param_shapes(spec), params, episodes)
    check_inputs(spec.num_features, spec.vocabulary_size, episodes, x, lengths)
    sequence, valid = recurrent_features(spec, params, x, lengths, masks)
    pooled = pool(spec, params, sequence, valid)
    return torch.baddbmm(
        params["head.bias"].unsqueeze(1), pooled, params["head.weight"].transpose(1, 2)
    )


@functools.lru_cache(maxsize=64)
def param_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, without an episode axis."""
    gates, hidden = NUM_GATES[spec.cell] * spec.hidden_size, spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.vocabulary_size is not None:
        shapes["embedding.weight"] = (spec.vocabulary_size, spec.embedding_size)
    size = spec.stack_size
    for layer in range(spec.num_layers):
        for suffix in spec.suffixes:
            end = f"l{layer}{suffix}"
            shapes[f"rnn.weight_ih_{end}"] = (gates, size)
            shapes[f"rnn.weight_hh_{end}"] = (gates, hidden)
            shapes[f"rnn.bias_ih_{end}"] = shapes[f"rnn.bias_hh_{end}"] = (gates,)
        size = spec.output_size
    if spec.pooling == "attention":
        shapes["attention.weight"] = (1, spec.output_size)
    shapes["head.weight"] = (spec.num_outputs, spec.output_size)
    shapes["head.bias"] = (spec.num_outputs,)
    return shapes


def recurrent_features(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None,
    masks: list[Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """The last layer's states `[E, T, N, F]` and the valid steps `[E, T, N, 1]` (None: all).

    T counts stacks of time steps.
    """
    pending = list(masks or [])
    own_dtype = next(iter(params.values())).dtype
    if spec.layer_dtype is not None:
        dtype = spec.layer_dtype
        params = {k: v.to(dtype) if k.startswith("rnn.") else v for k, v in params.items()}
        pending = [mask.to(dtype) for mask in pending]
    if spec.vocabulary_size is not None:
        x = _embed(params["embedding.weight"], x)
        if pending:
            x = x * pending.pop(0).transpose(1, 2)  # examples come before time steps here
    x = x.to(spec.layer_dtype or own_dtype)
    sequence = x.transpose(1, 2)  # time before examples: each step is then one contiguous slice
    valid = None
    if lengths is not None:
        steps = torch.arange(sequence.shape[1], device=sequence.device)
        valid = (steps[None, :, None] < lengths[:, None, :]).unsqueeze(-1)
        # Padding may hold anything, NaN included; 0 × NaN would reach the gradient.
        sequence = sequence.masked_fill(~valid, 0.0)
    if spec.stacked_steps > 1:
        sequence, valid = _stacks(spec, sequence, valid)
    for layer in range(spec.num_layers):
        sequence = _layer(spec, params, sequence, valid, layer)
        if pending:
            sequence = sequence * pending.pop(0)
    return sequence.to(own_dtype), valid


def _stacks(
    spec: NetworkSpec, sequence: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Steps `[E, T, N, D]` and what is valid, stack by stack: the features of step after step."""
    episodes, steps, examples, size = sequence.shape
    count, stack = spec.num_stacks(steps), spec.stacked_steps
    sequence = torch.nn.functional.pad(sequence, (0, 0, 0, 0, 0, count * stack - steps))
    sequence = sequence.view(episodes, count, stack, examples, size).transpose(2, 3).flatten(3)
    # A stack is valid if its first step is.
    return sequence, None if valid is None else valid[:, ::stack]


def _embed(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows `[E, N, T, F]` of each episode's own table `[E, V, F]`."""
    episodes, vocabulary, size = weight.shape
    offset = torch.arange(episodes, device=tokens.device)[:, None, None] * vocabulary
    flat = weight.reshape(episodes * vocabulary, size)
    return flat.index_select(0, (tokens + offset).flatten()).view(*tokens.shape, size)


def _layer(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    sequence: Tensor,
    valid: Tensor | None,
    layer: int,
) -> Tensor:
    """States `[E, T, N, F]` of one layer; padded steps repeat the state before them.

    Both directions run in one scan, concatenated along the episode axis, the second reversed in
    time: half the small operations of two scans.
    """
    episodes, steps, examples, size = sequence.shape

    def weights(name: str) -> list[Tensor]:
        return [params[f"rnn.{name}_l{layer}{suffix}"] for suffix in spec.suffixes]

    # A GRU needs its recurrent bias inside the reset gate; elsewhere the biases only add up.
    b_ih, b_hh = weights("bias_ih"), None
    if spec.cell == "gru":
        b_hh = _stacked(weights("bias_hh"))
    else:
        b_ih = [one + other for one, other in zip(b_ih, weights("bias_hh"), strict=True)]
    # One product projects the inputs of all time steps.  The bias is the weight of a feature that
    # is always one, which saves a sum over all steps in every derivative.
    ones = sequence.new_ones(()).expand(*sequence.shape[:3], 1)
    sequence = torch.cat([sequence, ones], dim=-1)
    projected = []
    for direction, (weight, bias) in enumerate(zip(weights("weight_ih"), b_ih, strict=True)):
        flat = (sequence.flip(1) if direction else sequence).view(episodes, -1, size + 1)
        w_ih = torch.cat([weight, bias.unsqueeze(-1)], dim=-1)
        gates = product(flat, w_ih.transpose(1, 2))
        projected.append(gates.view(episodes, steps, examples, -1))
    inside = None
    if valid is not None:
        inside = torch.cat([valid, valid.flip(1)][: len(projected)]).squeeze(-1)
    w_hh = _stacked(weights("weight_hh")).transpose(1, 2)
    states = recurrence(spec.cell, _stacked(projected), w_hh, b_hh, inside)
    if not spec.bidirectional:
        return states
    return torch.cat([states[:episodes], states[episodes:].flip(1)], dim=-1)


def _stacked(directions: list[Tensor]) -> Tensor:
    """Concatenates along the episode axis; a single tensor is not copied."""
    return directions[0] if len(directions) == 1 else torch.cat(directions)


def pool(
    spec: NetworkSpec, params: Mapping[str, Tensor], sequence: Tensor, valid: Tensor | None
) -> Tensor:
    """One vector an example, `[E, N, F]`, from the states `[E, T, N, F]`."""
    match spec.pooling:
        case "last":
            # A padded step repeats the state before it, so the last slice is the last valid state;
            # the backward direction has read the whole sequence at its first step.
            if not spec.bidirectional:
                return sequence[:, -1]
            forward_states, backward_states = sequence.chunk(2, dim=-1)
            return torch.cat([forward_states[:, -1], backward_states[:, 0]], dim=-1)
        case "mean":
            if valid is None:
                return sequence.mean(dim=1)
            kept = valid.to(sequence.dtype)
            return (sequence * kept).sum(dim=1) / kept.sum(dim=1)
        case "attention":
            weights = attention_weights(params, sequence, valid)
            return torch.einsum("etn,etnf->enf", weights, sequence)


def attention_weights(
    params: Mapping[str, Tensor], sequence: Tensor, valid: Tensor | None
) -> Tensor:
    """The weights `[E, T, N]` of the steps, from what `recurrent_features` returns.

    The weights of an example add up to one; padding has none.
    """
    score = torch.einsum("etnf,ef->etn", sequence, params["attention.weight"][:, 0])
    if valid is not None:
        score = score.masked_fill(~valid.squeeze(-1), -torch.inf)
    return score.softmax(dim=1)
