"""The gradient of a recurrent network's loss by its parameters, as ONNX nodes.

It is written out as in `raymeta.nn.recurrence`: from the states that a layer gave, the gates of all
time steps are one product; then one adjoint `Scan` goes back in time.

Names, shapes and the order of gates are those of `raymeta.inference.export.network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymeta.inference.export.network import ATTENTION, EMBEDDING, Pass, axis_of
from raymeta.inference.export.nodes import INT64_MAX, Body, Nodes
from raymeta.nn.cells import NUM_GATES
from raymeta.nn.networks import NetworkSpec


def gradient(
    nodes: Nodes, spec: NetworkSpec, params: Mapping[str, str], trace: Pass, by_pooled: str
) -> dict[str, str]:
    """The gradient of a loss by the network's parameters but for the head.

    Args:
        nodes: of the graph.
        spec: the network.
        params: names of the parameters' values.
        trace: of `forward_pass`.
        by_pooled: the loss's gradient by the features, `[N, F]`.
    """
    grads: dict[str, str] = {}
    directions = range(len(spec.suffixes))
    above = nodes.op("Mul", trace.sequence, nodes.constant(0.0))  # [T, N, F]
    last = [nodes.op("Mul", nodes.take(above, 0, 0), nodes.constant(0.0)) for _ in directions]
    last = [nodes.slice(one, 0, spec.hidden_size, 1) for one in last]
    match spec.pooling:
        case "last":
            last = [
                nodes.slice(by_pooled, d * spec.hidden_size, (d + 1) * spec.hidden_size, 1)
                for d in directions
            ]
        case "mean":
            share = nodes.op("Div", trace.valid, nodes.sum(trace.valid, 0, keep=True))
            above = nodes.op("Mul", share, nodes.op("Unsqueeze", by_pooled, axis_of(nodes, 0)))
        case "attention":
            every = nodes.op("Unsqueeze", by_pooled, axis_of(nodes, 0))
            near = nodes.sum(nodes.op("Mul", every, trace.sequence), 2, keep=True)
            mean = nodes.sum(nodes.op("Mul", trace.weights, near), 0, keep=True)
            by_score = nodes.op("Mul", trace.weights, nodes.op("Sub", near, mean))
            product = nodes.sum(nodes.op("Mul", by_score, trace.sequence), 0, 1)
            grads[ATTENTION] = nodes.op("Unsqueeze", product, axis_of(nodes, 0))
            above = nodes.op(
                "Add",
                nodes.op("Mul", trace.weights, every),
                nodes.op("Mul", by_score, params[ATTENTION]),
            )
    zero = nodes.op("Mul", last[0], nodes.constant(0.0))
    for layer in reversed(range(spec.num_layers)):
        below: list[str] = []
        found: dict[str, list[str]] = {"W": [], "R": [], "B": []}
        for direction in directions:
            start, end = direction * spec.hidden_size, (direction + 1) * spec.hidden_size
            own = _direction_gradient(
                nodes,
                spec,
                [nodes.take(params[f"{kind}{layer}"], direction, 0) for kind in "WRB"],
                trace.inputs[layer],
                nodes.take(trace.states[layer], direction, 1),
                trace.valid,
                nodes.slice(above, start, end, 2),
                last[direction],
                is_reverse=direction == 1,
            )
            for kind, value in zip("WRB", own[:3], strict=True):
                found[kind].append(nodes.op("Unsqueeze", value, axis_of(nodes, 0)))
            below.append(own[3])
        for kind, values in found.items():
            grads[f"{kind}{layer}"] = nodes.op("Concat", *values, axis=0)
        above = below[0] if len(below) == 1 else nodes.op("Add", *below)
        last = [zero for _ in directions]
    if trace.tokens:
        grads[EMBEDDING] = _by_embedding(nodes, spec, params[EMBEDDING], trace, above)
    return grads


def _by_embedding(
    nodes: Nodes, spec: NetworkSpec, embedding: str, trace: Pass, by_inputs: str
) -> str:
    """The gradient by the table of tokens: that by the inputs, added up at each token's row."""
    if spec.stacked_steps > 1:
        examples = nodes.op("Transpose", by_inputs, perm=[1, 0, 2])
        steps = nodes.op(
            "Transpose", nodes.reshape(examples, 0, -1, spec.input_size), perm=[1, 0, 2]
        )
        ends = (axis_of(nodes, 0), nodes.size(trace.tokens, 0), axis_of(nodes, 0))
        by_inputs = nodes.op("Slice", steps, *ends)
    # What fills the last stack is no token.
    by_tokens = nodes.reshape(nodes.op("Mul", by_inputs, trace.inside), -1, spec.input_size)
    none = nodes.op("Mul", embedding, nodes.constant(0.0))
    rows = nodes.reshape(trace.tokens, -1, 1)
    return nodes.op("ScatterND", none, rows, by_tokens, reduction="add")


@dataclass(frozen=True)
class _Linearised:
    """A layer linearised about its states, as in `raymeta.nn.recurrence`; all `[T, N, ·]`.

    `by_recurrent` are the coefficients B of the recurrent products, `by_inputs` those of the
    inputs where they differ (GRU), `kept` is k.  `to_cells` and `forgotten` are an LSTM's A and f.
    """

    by_recurrent: str
    kept: str
    by_inputs: str = ""
    to_cells: str = ""
    forgotten: str = ""


def _direction_gradient(
    nodes: Nodes,
    spec: NetworkSpec,
    params: list[str],
    sequence: str,
    states: str,
    valid: str,
    above: str,
    last: str,
    *,
    is_reverse: bool,
) -> tuple[str, str, str, str]:
    """The gradient by W `[GH, ·]`, R `[GH, H]`, B `[2GH]` and the inputs `[T, N, ·]`.

    `above` `[T, N, H]` is the gradient by the states, `last` `[N, H]` that by the last of them.
    """
    weight, recurrent, bias = params
    gates = NUM_GATES[spec.cell]
    size = gates * spec.hidden_size
    zero = nodes.op("Mul", nodes.slice(states, 0, 1, 0), nodes.constant(0.0))
    if is_reverse:
        before = nodes.op("Concat", nodes.slice(states, 1, INT64_MAX, 0), zero, axis=0)
    else:
        before = nodes.op("Concat", zero, nodes.slice(states, 0, -1, 0), axis=0)

    def projected(values: str, matrix: str, start: int) -> str:
        product = nodes.op("MatMul", values, nodes.op("Transpose", matrix, perm=[1, 0]))
        return nodes.op("Add", product, nodes.slice(bias, start, start + size, 0))

    p, q = projected(sequence, weight, 0), projected(before, recurrent, size)
    match spec.cell:
        case "rnn":
            layer = _linearised_rnn(nodes, states, valid)
        case "gru":
            layer = _linearised_gru(nodes, p, q, before, valid)
        case "lstm":
            layer = _linearised_lstm(nodes, nodes.op("Add", p, q), zero, valid, is_reverse)
    by_q, totals = _adjoint(nodes, layer, recurrent, gates, above, last, backwards=not is_reverse)
    by_p = by_q
    if layer.by_inputs:
        by_p = nodes.op("Mul", layer.by_inputs, nodes.op("Concat", *[totals] * gates, axis=2))

    def outer(left: str, right: str) -> str:
        left, right = (nodes.op("Flatten", value, axis=2) for value in (left, right))
        return nodes.op("MatMul", nodes.op("Transpose", left, perm=[1, 0]), right)

    biases = nodes.op("Concat", nodes.sum(by_p, 0, 1), nodes.sum(by_q, 0, 1), axis=0)
    below = nodes.op("MatMul", by_p, weight)
    return outer(by_p, sequence), outer(by_q, before), biases, below


def _times(nodes: Nodes, *values: str) -> str:
    result = values[0]
    for value in values[1:]:
        result = nodes.op("Mul", result, value)
    return result


def _without(nodes: Nodes, value: str) -> str:
    """1 - value."""
    return nodes.op("Sub", nodes.constant(1.0), value)


def _slope(nodes: Nodes, gate: str) -> str:
    """The derivative of a sigmoid, from its value `gate`."""
    return _times(nodes, gate, _without(nodes, gate))


def _tanh_slope(nodes: Nodes, value: str) -> str:
    return _without(nodes, _times(nodes, value, value))


def _linearised_rnn(nodes: Nodes, states: str, valid: str) -> _Linearised:
    kept = nodes.op("Expand", _without(nodes, valid), nodes.op("Shape", states))
    return _Linearised(_times(nodes, valid, _tanh_slope(nodes, states)), kept)


def _linearised_gru(nodes: Nodes, p: str, q: str, before: str, valid: str) -> _Linearised:
    (p_z, p_r, p_n), (q_z, q_r, q_n) = (
        nodes.ops("Split", value, num_outputs=3, axis=2) for value in (p, q)
    )
    z = nodes.op("Sigmoid", nodes.op("Add", p_z, q_z))
    r = nodes.op("Sigmoid", nodes.op("Add", p_r, q_r))
    n = nodes.op("Tanh", nodes.op("Add", p_n, _times(nodes, r, q_n)))
    of_n = _times(nodes, valid, _without(nodes, z), _tanh_slope(nodes, n))
    of_r = _times(nodes, of_n, q_n, _slope(nodes, r))
    of_z = _times(nodes, valid, nodes.op("Sub", before, n), _slope(nodes, z))
    return _Linearised(
        by_recurrent=nodes.op("Concat", of_z, of_r, _times(nodes, of_n, r), axis=2),
        kept=nodes.op("Add", _times(nodes, valid, z), _without(nodes, valid)),
        by_inputs=nodes.op("Concat", of_z, of_r, of_n, axis=2),
    )


def _linearised_lstm(
    nodes: Nodes, sums: str, zero: str, valid: str, is_reverse: bool
) -> _Linearised:
    i, o, f, c = nodes.ops("Split", sums, num_outputs=4, axis=2)
    i, o, f = (nodes.op("Sigmoid", gate) for gate in (i, o, f))
    g = nodes.op("Tanh", c)
    cells_before, cells = _cells(nodes, f, _times(nodes, valid, i, g), zero, is_reverse)
    out = nodes.op("Tanh", cells)
    coefficients = [
        _times(nodes, valid, g, _slope(nodes, i)),
        _times(nodes, valid, out, _slope(nodes, o)),
        _times(nodes, valid, cells_before, _slope(nodes, f)),
        _times(nodes, valid, i, _tanh_slope(nodes, g)),
    ]
    padded = _without(nodes, valid)
    return _Linearised(
        by_recurrent=nodes.op("Concat", *coefficients, axis=2),
        kept=padded,
        to_cells=_times(nodes, valid, o, _tanh_slope(nodes, out)),
        forgotten=nodes.op("Add", _times(nodes, valid, f), padded),
    )


def _adjoint(
    nodes: Nodes,
    layer: _Linearised,
    recurrent: str,
    gates: int,
    above: str,
    last: str,
    *,
    backwards: bool,
) -> tuple[str, str]:
    """The adjoint scan: gradients by the recurrent products `[T, N, GH]` and states `[T, N, H]`."""
    is_lstm = bool(layer.to_cells)
    start = [last, nodes.op("Mul", last, nodes.constant(0.0))] if is_lstm else [last]
    sequences = [layer.by_recurrent, layer.kept, above]
    sequences += [layer.to_cells, layer.forgotten] if is_lstm else []
    body = Body(nodes, ["float"] * (len(start) + len(sequences)))
    inner = body.nodes
    if is_lstm:
        by_state, by_cell, b, k, own, a, f = body.inputs
        total = inner.op("Add", by_state, own)
        of_cell = inner.op("Add", by_cell, inner.op("Mul", a, total))
        spread, after = [of_cell, total, of_cell, of_cell], [inner.op("Mul", f, of_cell)]
    else:
        by_state, b, k, own = body.inputs
        total = inner.op("Add", by_state, own)
        spread, after = [total] * gates, []
    by_q = inner.op("Mul", b, inner.op("Concat", *spread, axis=1))
    carried = inner.op("Add", inner.op("Mul", k, total), inner.op("MatMul", by_q, recurrent))
    values = [carried, *after, by_q, total]
    body.ends_with(values, ["float"] * len(values))
    *_, by_q_all, totals = nodes.scan(body, start, sequences, backwards=backwards)
    return by_q_all, totals


def _cells(nodes: Nodes, forget: str, added: str, zero: str, is_reverse: bool) -> tuple[str, str]:
    """An LSTM's cells before and after each step, `[T, N, H]`; ONNX gives the last ones alone."""
    body = Body(nodes, ["float"] * 3)
    before, f, own = body.inputs
    after = body.nodes.op("Add", body.nodes.op("Mul", f, before), own)
    body.ends_with([after, before, after], ["float"] * 3)
    first = nodes.take(zero, 0, 0)
    _, all_before, all_after = nodes.scan(body, [first], [forget, added], backwards=is_reverse)
    return all_before, all_after
