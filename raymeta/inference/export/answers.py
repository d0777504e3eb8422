"""The answers of learners from features, as ONNX nodes.

Shape legend: N support examples, M queries, F features, K classes, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from raymeta.errors import DataError
from raymeta.inference.export.network import BIAS, WEIGHT, Pass, onnx_form
from raymeta.inference.export.nodes import Body, Nodes
from raymeta.inference.heads import needs_unit_length
from raymeta.inference.trained import Trained
from raymeta.meta.embedding import EmbeddingLearner
from raymeta.meta.learner import Learner
from raymeta.meta.learners.alignment import SHARPNESS, Alignment
from raymeta.meta.learners.alpaca import NOISE, PRECISION, Alpaca
from raymeta.meta.learners.matching import QUERY, SUPPORT, Matching
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.learners.ridge import PENALTY, SCALE, Ridge
from raymeta.nn.networks import NetworkSpec

Arrays = Mapping[str, np.ndarray]


def normalised(nodes: Nodes, values: str) -> str:
    """Rows divided by their length, as `torch.nn.functional.normalize` does."""
    length = nodes.op("Sqrt", nodes.sum(nodes.op("Mul", values, values), 1, keep=True))
    return nodes.op("Div", values, nodes.op("Max", length, nodes.constant(1e-12)))


def head(nodes: Nodes, features: str, weights: str, bias: str) -> str:
    """`features` `[M, F]` times `weights` `[O, F]`, and `bias` `[O]`."""
    return nodes.op("Gemm", features, weights, bias, transB=1)


def features_of(nodes: Nodes, learner: Learner, trace: Pass) -> str:
    """`Learner.features` `[N, F]` of examples that went through the network."""
    if not learner.reads_steps:
        return trace.pooled
    weights = trace.weights
    if not weights:
        weights = nodes.op("Div", trace.valid, nodes.sum(trace.valid, 0, keep=True))
    steps = nodes.op("Concat", trace.sequence, weights, axis=2)  # [T, N, F + 1]
    return nodes.reshape(nodes.op("Transpose", steps, perm=[1, 0, 2]), 0, -1)


def is_closed_form(learner: Learner) -> bool:
    """Whether `closed_form` serves the learner."""
    return isinstance(learner, EmbeddingLearner)


def closed_form(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    """The outputs `[M, O]` of a learner without adaptation steps; of classes, logits.

    Args:
        nodes: of the graph.
        trained: the learner.
        params: meta-parameters.
        support: features `[N, F]`.
        rows: the support's targets `[N, O]`, one-hot rows of classes.
        query: features `[M, F]`.
    """
    learner = trained.recipe.learner
    forms: dict[type, Callable[..., str]] = {
        Prototypes: _prototypes,
        Ridge: _ridge,
        Alpaca: _alpaca,
        Matching: _matching,
        Alignment: _alignment,
    }
    if type(learner) not in forms:
        raise DataError(
            f"learner {learner.name} cannot be exported: its answers have no ONNX form yet"
        )
    return forms[type(learner)](nodes, trained, params, support, rows, query)


def prototypes(nodes: Nodes, support: str, rows: str) -> tuple[str, str]:
    """The mean features `[K, F]` of each class, and how many examples it has, `[K, 1]`."""
    members = nodes.op("Transpose", rows, perm=[1, 0])
    counts = nodes.sum(members, 1, keep=True)
    total = nodes.op("MatMul", members, support)
    return nodes.op("Div", total, nodes.op("Max", counts, nodes.constant(1.0))), counts


def without_empty(nodes: Nodes, values: str, counts: str) -> str:
    """`values` `[…, K]`, minus infinity for classes without an example."""
    empty = nodes.op("Equal", nodes.reshape(counts, -1), nodes.constant(0.0))
    return nodes.op("Where", empty, nodes.constant(-np.inf), values)


def _prototypes(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    centres, counts = prototypes(nodes, support, rows)
    is_cosine = needs_unit_length(trained.recipe.learner)
    if is_cosine:
        centres, query = normalised(nodes, centres), normalised(nodes, query)
    near = nodes.op("MatMul", query, nodes.op("Transpose", centres, perm=[1, 0]))
    if not is_cosine:
        squares = nodes.sum(nodes.op("Mul", centres, centres), 1)
        near = nodes.op("Sub", nodes.op("Mul", near, nodes.constant(2.0)), squares)
    scale = nodes.constant(np.exp(params[SCALE].astype(np.float64)))
    return without_empty(nodes, nodes.op("Mul", near, scale), counts)


def _with_ones(nodes: Nodes, features: str) -> str:
    """The features and a one, in float64."""
    exact = nodes.cast(features, "double")
    column = nodes.op("Mul", nodes.slice(exact, 0, 1, 1), nodes.constant(0.0, np.float64))
    one = nodes.op("Add", column, nodes.constant(1.0, np.float64))
    return nodes.op("Concat", exact, one, axis=1)


def _solved(nodes: Nodes, matrix: str, right: str) -> str:
    """Solves `matrix` `[N, N]`, symmetric and positive definite, for `right` `[N, O]`; float64.

    Gauss-Jordan elimination, which needs no pivots there; ONNX has no operation that solves.
    """
    size = nodes.size(matrix, 0)
    both = nodes.op("Concat", matrix, right, axis=1)
    body = Body(nodes, ["double", "int64"])
    (state, row), inner = body.inputs, body.nodes
    pivot_row = inner.op("Gather", state, row, axis=0)
    column = inner.op("Gather", state, row, axis=1)
    pivot = inner.op("Gather", column, row, axis=0)
    scaled = inner.op("Div", pivot_row, pivot)
    unit = inner.cast(inner.op("Equal", inner.numbers(inner.size(state, 0)), row), "double")
    factor = inner.reshape(inner.op("Sub", column, unit), -1, 1)
    after = inner.op("Sub", state, inner.op("Mul", factor, inner.reshape(scaled, 1, -1)))
    body.ends_with([after], ["double"])
    (done,) = nodes.scan(body, [both], [nodes.numbers(size)], backwards=False)
    ends = [size, nodes.constant([np.iinfo(np.int64).max], np.int64), nodes.constant([1], np.int64)]
    return nodes.op("Slice", done, *ends)


def _ridge(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    left, asked = _with_ones(nodes, support), _with_ones(nodes, query)
    across = nodes.op("Transpose", left, perm=[1, 0])
    gram = nodes.op("MatMul", left, across)
    one = nodes.op("EyeLike", gram)
    penalty = nodes.constant(np.exp(params[PENALTY].astype(np.float64)), np.float64)
    matrix = nodes.op("Add", gram, nodes.op("Mul", one, penalty))
    learner, wanted = trained.recipe.learner, nodes.cast(rows, "double")
    assert isinstance(learner, Ridge)
    start = None
    if learner.learned_prior:
        mean = nodes.constant(_head_of(params), np.float64)
        explained = nodes.op("MatMul", left, mean)
        if trained.is_classification:
            explained = nodes.op("Softmax", explained, axis=1)
        wanted = nodes.op("Sub", wanted, explained)
        start = nodes.cast(nodes.op("MatMul", asked, mean), "float")
    found = _solved(nodes, matrix, wanted)
    answers = nodes.op("MatMul", nodes.op("MatMul", asked, across), found)
    answers = nodes.cast(answers, "float")
    if trained.is_classification:
        scale = nodes.constant(np.exp(params[SCALE].astype(np.float64)))
        answers = nodes.op("Mul", answers, scale)
    return answers if start is None else nodes.op("Add", start, answers)


def _alpaca(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    del trained
    assert NOISE in params, "the noise does not change the mean"
    left, asked = _with_ones(nodes, support), _with_ones(nodes, query)
    across = nodes.op("Transpose", left, perm=[1, 0])
    precision = np.exp(params[PRECISION].astype(np.float64))
    prior = _head_of(params)
    matrix = nodes.op(
        "Add", nodes.op("MatMul", across, left), nodes.constant(np.diag(precision), np.float64)
    )
    start = nodes.constant(precision[:, None] * prior, np.float64)
    right = nodes.op("Add", nodes.op("MatMul", across, nodes.cast(rows, "double")), start)
    found = nodes.op("MatMul", asked, _solved(nodes, matrix, right))
    return nodes.cast(found, "float")


def _head_of(params: Arrays) -> np.ndarray:
    """The head's weights for features and a one, `[F + 1, O]` in float64."""
    return np.concatenate([params[WEIGHT], params[BIAS][:, None]], axis=1).T.astype(np.float64)


def _matching(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    learner = trained.recipe.learner
    assert isinstance(learner, Matching)
    if learner.full_context:
        support = _support_in_context(nodes, params, support)
        query = _query_in_context(nodes, params, query, support, learner.read_steps)
    across = nodes.op("Transpose", normalised(nodes, support), perm=[1, 0])
    cosines = nodes.op("MatMul", normalised(nodes, query), across)
    scale = nodes.constant(np.exp(params[SCALE].astype(np.float64)))
    attention = nodes.op("Softmax", nodes.op("Mul", cosines, scale), axis=1)
    found = nodes.op("MatMul", attention, rows)
    return nodes.op("Log", found) if trained.is_classification else found


def _alignment(
    nodes: Nodes, trained: Trained, params: Arrays, support: str, rows: str, query: str
) -> str:
    size = trained.recipe.spec.output_size
    known, asked = (nodes.reshape(one, 0, -1, size + 1) for one in (support, query))
    known_weights, asked_weights = (nodes.take(one, size, 2) for one in (known, asked))
    flat, own = (nodes.reshape(nodes.slice(one, 0, size, 2), -1, size) for one in (known, asked))
    squares = nodes.op(
        "Add",
        nodes.sum(nodes.op("Mul", own, own), 1, keep=True),
        nodes.sum(nodes.op("Mul", flat, flat), 1),
    )
    product = nodes.op("MatMul", own, nodes.op("Transpose", flat, perm=[1, 0]))
    apart = nodes.op("Sub", squares, nodes.op("Mul", product, nodes.constant(2.0)))
    sizes = [nodes.size(one, axis) for one in (asked, known) for axis in (0, 1)]
    apart = nodes.op("Reshape", apart, nodes.op("Concat", *sizes, axis=0))  # [M, T, N, S]
    sharpness, scale = (np.exp(params[k].astype(np.float64)) for k in (SHARPNESS, SCALE))
    near = nodes.op("Mul", apart, nodes.constant(-sharpness))
    alike = _log_sum(nodes, nodes.op("Add", near, _logarithms(nodes, known_weights)), 3)
    axes = nodes.constant([2, 3], np.int64)
    weighted = nodes.op("Unsqueeze", _logarithms(nodes, asked_weights), axes)
    returns = _log_sum(nodes, nodes.op("Add", near, weighted), 1)  # [M, N, S]

    members = nodes.op("Transpose", rows, perm=[1, 0])  # [K, N]
    counts = nodes.sum(members, 1, keep=True)
    some = nodes.op("Max", nodes.reshape(counts, -1), nodes.constant(1.0))
    none, two = nodes.constant(0.0), nodes.constant([2], np.int64)
    of_class = nodes.op(
        "Where",
        nodes.op("Equal", members, none),
        nodes.constant(-np.inf),
        nodes.op("Unsqueeze", alike, two),
    )  # [M, T, K, N]
    of_class = nodes.op("Where", nodes.op("Equal", counts, none), none, of_class)
    nearest = nodes.op("Sub", _log_sum(nodes, of_class, 3), nodes.op("Log", some))
    there = nodes.sum(nodes.op("Mul", nearest, nodes.op("Unsqueeze", asked_weights, two)), 1)
    back = nodes.sum(nodes.op("Mul", returns, known_weights), 2)  # [M, N]
    back = nodes.op("Div", nodes.op("MatMul", back, rows), some)
    factor = nodes.constant(scale / (2 * sharpness))
    return without_empty(nodes, nodes.op("Mul", nodes.op("Add", there, back), factor), counts)


def _logarithms(nodes: Nodes, weights: str) -> str:
    """The logarithms of weights; minus infinity at padding."""
    none = nodes.op("LessOrEqual", weights, nodes.constant(0.0))
    known = nodes.op("Log", nodes.op("Where", none, nodes.constant(1.0), weights))
    return nodes.op("Where", none, nodes.constant(-np.inf), known)


def _log_sum(nodes: Nodes, values: str, axis: int) -> str:
    """The logarithm of the sum of exponentials along an axis."""
    highest = nodes.op("ReduceMax", values, axes=[axis], keepdims=1)
    total = nodes.sum(nodes.op("Exp", nodes.op("Sub", values, highest)), axis, keep=True)
    found = nodes.op("Add", nodes.op("Log", total), highest)
    return nodes.op("Squeeze", found, nodes.constant([axis], np.int64))


def _lstm(params: Arrays, prefix: str, *, bidirectional: bool, size: int) -> dict[str, np.ndarray]:
    spec = NetworkSpec(
        num_outputs=1, cell="lstm", num_features=1, hidden_size=size, bidirectional=bidirectional
    )
    own = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
    return onnx_form(spec, own)


def _support_in_context(nodes: Nodes, params: Arrays, support: str) -> str:
    size = params[f"{SUPPORT}rnn.weight_hh_l0"].shape[1]
    own = _lstm(params, SUPPORT, bidirectional=True, size=size)
    sequence = nodes.op("Unsqueeze", support, nodes.constant([1], np.int64))  # [N, 1, F]
    states = nodes.op(
        "LSTM",
        sequence,
        *(nodes.constant(own[f"{kind}0"]) for kind in "WRB"),
        hidden_size=size,
        direction="bidirectional",
    )
    return nodes.op("Add", support, nodes.sum(states, 1, 2))


def _query_in_context(
    nodes: Nodes, params: Arrays, query: str, support: str, num_steps: int
) -> str:
    size = params[f"{QUERY}rnn.weight_hh_l0"].shape[1]
    own = _lstm(params, QUERY, bidirectional=False, size=size)
    weights = [nodes.constant(own[f"{kind}0"]) for kind in "WRB"]
    zero = nodes.op("Mul", query, nodes.constant(0.0))
    first = nodes.constant([0], np.int64)
    hidden = read = zero
    cell = nodes.op("Unsqueeze", zero, first)
    across = nodes.op("Transpose", support, perm=[1, 0])
    for _ in range(num_steps):
        step = nodes.op("Unsqueeze", nodes.op("Concat", query, read, axis=1), first)
        start = nodes.op("Unsqueeze", hidden, first)
        _, found, cell = nodes.ops(
            "LSTM", step, *weights, "", start, cell, num_outputs=3, hidden_size=size
        )
        hidden = nodes.op("Add", nodes.take(found, 0, 0), query)
        attention = nodes.op("Softmax", nodes.op("MatMul", hidden, across), axis=1)
        read = nodes.op("MatMul", attention, support)
    return hidden
