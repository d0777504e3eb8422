"""The recurrent network as ONNX nodes: its layers are ONNX's own `RNN`, `GRU` and `LSTM`.

Parameters are named as ONNX has them: `W0`, `R0`, `B0` of the first layer, its directions stacked,
gates in ONNX's order (update, reset, new; input, output, forget, cell).

Shape legend: N examples, T time steps, D directions, H hidden units, G gates, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raymeta.inference.export.nodes import INT64_MAX, Nodes
from raymeta.nn.networks import NetworkSpec

ATTENTION, WEIGHT, BIAS = "attention.weight", "head.weight", "head.bias"
EMBEDDING = "embedding.weight"
_ALIKE = (EMBEDDING, ATTENTION, WEIGHT, BIAS)  # in ONNX as in torch
# torch's gate of each of ONNX's gates
_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


def in_onnx_order(spec: NetworkSpec, value: np.ndarray) -> np.ndarray:
    """The gates of a parameter's first axis in ONNX's order; one row for all stays as it is."""
    order = _ORDER[spec.cell]
    if value.ndim == 2 and len(value) == 1 and len(order) * spec.hidden_size > 1:
        return value
    parts = np.split(value, len(order))
    return np.concatenate([parts[gate] for gate in order])


def onnx_form(spec: NetworkSpec, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters (or what belongs to them element by element) by ONNX's names and in its order.

    A weight may be `[1, 1]`, one number for all its elements.
    """
    found = {name: params[name] for name in _ALIKE if name in params}

    def of_directions(name: str) -> list[np.ndarray]:
        return [in_onnx_order(spec, params[f"rnn.{name}{suffix}"]) for suffix in spec.suffixes]

    for layer in range(spec.num_layers):
        if f"rnn.weight_ih_l{layer}" not in params:
            continue
        found[f"W{layer}"] = np.stack(of_directions(f"weight_ih_l{layer}"))
        found[f"R{layer}"] = np.stack(of_directions(f"weight_hh_l{layer}"))
        biases = [of_directions(f"bias_{kind}_l{layer}") for kind in ("ih", "hh")]
        found[f"B{layer}"] = np.concatenate([np.stack(one) for one in biases], axis=1)
    return found


@dataclass(frozen=True)
class Pass:
    """The results of a forward pass: `pooled` `[N, F]`, and the values that its gradient needs.

    `inputs` `[T, N, ·]` and `states` `[T, D, N, H]` are those of each layer, `valid` `[T, N, 1]` is
    1 within an example; `weights` are of the attention, `[T, N, 1]`.  Of texts there are also the
    `tokens` `[T, N]`, and `inside` `[T, N, 1]`, which is `valid` before steps are stacked.
    """

    pooled: str
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    sequence: str
    valid: str
    weights: str = ""
    tokens: str = ""
    inside: str = ""


def recurrent_layer(
    nodes: Nodes,
    spec: NetworkSpec,
    params: Mapping[str, str],
    layer: int,
    sequence: str,
    *,
    lengths: str = "",
    start: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """States `[T, D, N, H]`, the last ones `[D, N, H]`, and an LSTM's last cells."""
    attributes = {"linear_before_reset": 1} if spec.cell == "gru" else {}
    return nodes.ops(
        spec.cell.upper(),
        sequence,
        *(params[f"{kind}{layer}"] for kind in "WRB"),
        lengths,
        *start,
        num_outputs=3 if spec.cell == "lstm" else 2,
        hidden_size=spec.hidden_size,
        direction="bidirectional" if spec.bidirectional else "forward",
        **attributes,
    )


def forward_pass(
    nodes: Nodes, spec: NetworkSpec, params: Mapping[str, str], x: str, lengths: str
) -> Pass:
    """The features of examples.

    Args:
        nodes: of the graph.
        spec: the network.
        params: names of the parameters' values.
        x: float `[N, T, C]`, or token ids int64 `[N, T]`.
        lengths: int64 `[N]`.
    """
    tokens = ""
    if spec.vocabulary_size is None:
        sequence = nodes.op("Transpose", x, perm=[1, 0, 2])
    else:
        tokens = nodes.op("Transpose", x, perm=[1, 0])
        sequence = nodes.op("Gather", params[EMBEDDING], tokens, axis=0)
    steps = nodes.reshape(nodes.numbers(nodes.size(sequence, 0)), -1, 1, 1)
    is_valid = nodes.op("Less", steps, nodes.reshape(lengths, 1, -1, 1))
    valid = inside = nodes.cast(is_valid, "float")
    # Padding may hold anything, NaN included.
    sequence = nodes.op("Where", is_valid, sequence, nodes.constant(0.0))
    if spec.stacked_steps > 1:
        sequence, is_valid, lengths = _stacks(nodes, spec, sequence, is_valid, lengths)
        valid = nodes.cast(is_valid, "float")
    short = nodes.cast(lengths, "int32")
    inputs, states, last = [], [], ""
    for layer in range(spec.num_layers):
        inputs.append(sequence)
        found, last = recurrent_layer(nodes, spec, params, layer, sequence, lengths=short)[:2]
        states.append(found)
        sequence = nodes.reshape(nodes.op("Transpose", found, perm=[0, 2, 1, 3]), 0, 0, -1)
    weights = ""
    match spec.pooling:
        case "last":
            pooled = nodes.reshape(nodes.op("Transpose", last, perm=[1, 0, 2]), 0, -1)
        case "mean":  # ONNX's states are zero beyond an example's length
            pooled = nodes.op("Div", nodes.sum(sequence, 0), nodes.sum(valid, 0))
        case "attention":
            across = nodes.op("Transpose", params[ATTENTION], perm=[1, 0])
            score = nodes.op("MatMul", sequence, across)
            score = nodes.op("Where", is_valid, score, nodes.constant(-np.inf))
            weights = nodes.op("Softmax", score, axis=0)
            pooled = nodes.sum(nodes.op("Mul", weights, sequence), 0)
    return Pass(pooled, tuple(inputs), tuple(states), sequence, valid, weights, tokens, inside)


def _stacks(
    nodes: Nodes, spec: NetworkSpec, sequence: str, is_valid: str, lengths: str
) -> tuple[str, str, str]:
    """The steps `[T, N, ·]`, the valid ones and the lengths, stack by stack."""
    stack = nodes.constant([spec.stacked_steps], np.int64)
    less = nodes.constant([spec.stacked_steps - 1], np.int64)

    def num_stacks(num_steps: str) -> str:
        return nodes.op("Div", nodes.op("Add", num_steps, less), stack)

    end = nodes.op("Mul", num_stacks(nodes.size(sequence, 0)), stack)
    pads = nodes.constant([0, 0, 0, spec.stacked_steps - 1, 0, 0], np.int64)
    padded = nodes.op("Pad", sequence, pads)
    whole = nodes.op("Slice", padded, nodes.constant([0], np.int64), end, axis_of(nodes, 0))
    examples = nodes.op("Transpose", whole, perm=[1, 0, 2])
    stacks = nodes.op("Transpose", nodes.reshape(examples, 0, -1, spec.stack_size), perm=[1, 0, 2])
    ends = (nodes.constant([place], np.int64) for place in (0, INT64_MAX, 0))
    return stacks, nodes.op("Slice", is_valid, *ends, stack), num_stacks(lengths)


def axis_of(nodes: Nodes, axis: int) -> str:
    """An axis as an operation takes it: a list of one."""
    return nodes.constant([axis], np.int64)
