"""The three ONNX graphs: an adapted network, one that adapts itself, and one time step.

All compute in float32.  Examples come in as their user has them, double `[N, T, C]` with
int64 `lengths` `[N]`; the preparation of the training is part of the graph.  What `Adapted.predict`
refuses (NaN, sequences longer than in training) a graph cannot refuse: it answers something.

Categories come in as int64 codes `categories` `[N, T, K]` (`support_categories` of the support),
whose meaning the metadata `categories` has, and times, where the network reads them, as double
`times` `[N, T]`: see `raymeta.inference.export.tables`.  Texts come in as the numbers of their
tokens, int64 `x` `[N, T]`: see `raymeta.inference.export.texts`.

Shape legend: N examples, T time steps, C channels, K classes, O outputs, L layers, H hidden units.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from raymeta.errors import DataError
from raymeta.inference.export.adaptation import Adaptation
from raymeta.inference.export.answers import (
    closed_form,
    features_of,
    head,
    is_closed_form,
    normalised,
)
from raymeta.inference.export.network import (
    ATTENTION,
    BIAS,
    WEIGHT,
    forward_pass,
    onnx_form,
    recurrent_layer,
)
from raymeta.inference.export.nodes import Nodes
from raymeta.inference.export.preparation import (
    check_exportable,
    input_notes,
    raw_input,
    standardised,
)
from raymeta.inference.heads import affine_head
from raymeta.inference.stream import Stream
from raymeta.inference.trained import Trained
from raymeta.meta.embedding import support_of
from raymeta.nn.networks import Params


def adapted_graph(
    trained: Trained, networks: Sequence[Params], labels: np.ndarray | None, *, temperature: float
) -> bytes:
    """An adapted network: `x` (and `lengths`) to `prediction`, and `probabilities` of classes.

    Raises:
        DataError: the network has no ONNX form; with the reason.
    """
    check_exportable(trained)
    nodes = Nodes()
    examples = raw_input(nodes, trained, "", "examples")
    spec, answers = trained.recipe.spec, []
    for params in networks:
        network = _constants(nodes, trained, params)
        trace = forward_pass(nodes, spec, network, examples.x, examples.lengths)
        features = features_of(nodes, trained.recipe.learner, trace)
        answers.append(_answers(nodes, trained, params, features))
    _finish(nodes, trained, answers, labels, temperature)
    return nodes.model(_notes(trained, labels))


def stream_graph(
    trained: Trained, networks: Sequence[Params], labels: np.ndarray | None, *, temperature: float
) -> bytes:
    """One time step of N sequences, as `Adapted.stream` takes it.

    Inputs are `x`, double `[N, C]`, and the state before the step; outputs are those of
    `adapted_graph`, and the state after it, each as `next_…` of its input.  For every network there
    are `hidden`, float `[L, N, H]`, for an LSTM `cells`, for a mean `total` `[N, H]` and `count`
    `[N, 1]`, for attention `total`, `weight` and `highest` `[N, 1]`; further networks of an
    ensemble have them with a number.  All are zero at first but `highest`, which is -3e38.

    Raises:
        DataError: the network has no ONNX form, or none that goes step by step.
    """
    check_exportable(trained)
    num_classes = None if labels is None else len(labels)
    # It refuses what has no steps.
    Stream(trained.recipe, trained.inputs, networks, num_classes, 1)
    spec, nodes = trained.recipe.spec, Nodes()
    x = nodes.input("x", "double", ["streams", len(trained.inputs.channels)])
    x = nodes.cast(standardised(nodes, trained, x), "float")
    step = nodes.op("Unsqueeze", x, nodes.constant([0], np.int64))
    answers = []
    for number, params in enumerate(networks):
        end = f"_{number + 1}" if number else ""
        network = _constants(nodes, trained, params)
        shape: list[int | str] = [spec.num_layers, "streams", spec.hidden_size]
        names = ["hidden", "cells"][: 2 if spec.cell == "lstm" else 1]
        states = [nodes.input(name + end, "float", shape) for name in names]
        sequence, found = step, []
        for layer in range(spec.num_layers):
            start = tuple(nodes.slice(state, layer, layer + 1, 0) for state in states)
            _, *last = recurrent_layer(nodes, spec, network, layer, sequence, start=start)
            found.append(last)
            sequence = last[0]
        for name, values in zip(names, zip(*found, strict=True), strict=True):
            after = nodes.op("Concat", *values, axis=0)
            nodes.output(after, f"next_{name}{end}", "float", shape)
        features = _pooled_so_far(nodes, trained, network, nodes.take(sequence, 0, 0), end)
        answers.append(_answers(nodes, trained, params, features))
    _finish(nodes, trained, answers, labels, temperature, axis="streams")
    return nodes.model(_notes(trained, labels))


def adapting_graph(
    trained: Trained, networks: Sequence[Params], *, is_open: bool, temperature: float
) -> bytes:
    """A network that adapts itself: support examples, their targets and queries to predictions.

    Inputs are `support_x`, `support_lengths`, `support_y` (int64 `[N]`, classes from 0 up to K - 1,
    each of which has an example; for regression float `[N, O]`), `x` and `lengths`.  Outputs are
    `probabilities` `[M, K]` and `prediction` `[M]`, the class's number, or for regression the value
    `[M, O]`.  Adaptation takes the gradient steps of the meta-test.

    Raises:
        DataError: the network or its learner has no ONNX form; with the reason.
    """
    recipe = trained.recipe
    check_exportable(trained)
    nodes = Nodes()
    support = raw_input(nodes, trained, "support_", "support")
    spec, learner, answers = recipe.spec, recipe.learner, []
    num_classes = wide = None
    y = ""
    if trained.is_classification:
        y = nodes.input("support_y", "int64", ["support"])
        size = nodes.op("ReduceMax", y, axes=[0], keepdims=1)
        num_classes = nodes.op("Add", size, nodes.constant([1], np.int64))
        wide = num_classes if is_open else nodes.constant([spec.num_outputs], np.int64)
        ends = nodes.constant([0.0, 1.0])
        rows = nodes.op("OneHot", y, wide, ends, axis=-1)
    else:
        rows = nodes.input("support_y", "float", ["support", spec.num_outputs])
        if trained.inputs.target_scale is not None:
            level, unit = trained.inputs.target_scale
            exact = nodes.op("Sub", nodes.cast(rows, "double"), nodes.constant(level, np.float64))
            rows = nodes.cast(nodes.op("Div", exact, nodes.constant(unit, np.float64)), "float")
    queries = raw_input(nodes, trained, "", "examples")
    for params in networks:
        if is_closed_form(learner):
            network = _constants(nodes, trained, params)
            known, asked = (
                features_of(nodes, learner, forward_pass(nodes, spec, network, one.x, one.lengths))
                for one in (support, queries)
            )
            if y:  # class after class, as in an episode
                known, own_rows = _sorted(nodes, y, known, rows)
            else:
                own_rows = rows
            arrays = {name: value.numpy() for name, value in params.items()}
            found = closed_form(nodes, trained, arrays, known, own_rows, asked)
        else:
            after = Adaptation(
                nodes, trained, params, support, rows, wide if is_open else None
            ).params
            features = forward_pass(nodes, spec, after, queries.x, queries.lengths).pooled
            found = head(nodes, features, after[WEIGHT], after[BIAS])
        if num_classes is not None:
            first, axis = nodes.constant([0], np.int64), nodes.constant([1], np.int64)
            found = nodes.op("Slice", found, first, num_classes, axis)
        answers.append(found)
    _finish(nodes, trained, answers, None, temperature)
    fixed = np.array(trained.inputs.classes) if trained.inputs.classes else None
    return nodes.model(_notes(trained, fixed))


def _constants(nodes: Nodes, trained: Trained, params: Params) -> dict[str, str]:
    """The network's parameters, by which features are made, as constants."""
    recipe = trained.recipe
    own = recipe.learner.adapted_network(recipe.spec, params) if _is_adapted(params) else params
    arrays = {
        name: (value[0] if _is_adapted(params) else value).numpy() for name, value in own.items()
    }
    return {
        name: nodes.constant(value)
        for name, value in onnx_form(recipe.spec, arrays).items()
        if name not in (WEIGHT, BIAS)
    }


def _is_adapted(params: Params) -> bool:
    """Whether the parameters are those of an adapted network, which have an axis of episodes."""
    return support_of(params) is not None or params["rnn.weight_hh_l0"].dim() == 3


def _answers(nodes: Nodes, trained: Trained, params: Params, features: str) -> str:
    """The outputs `[N, O]` of an adapted network."""
    learner = trained.recipe.learner
    affine = affine_head(learner, trained.recipe.spec, params)
    if affine is not None:
        if affine.has_unit_length:
            features = normalised(nodes, features)
        weights, bias = nodes.constant(affine.weight.T), nodes.constant(affine.bias)
        return head(nodes, features, weights, bias)
    embedded = support_of(params)
    if embedded is None:
        raise DataError(
            f"learner {learner.name} cannot be exported: its answers have no known ONNX form"
        )
    support, targets = (value[0] for value in embedded)
    rows = targets.numpy()
    if trained.is_classification:
        rows = np.eye(trained.recipe.spec.num_outputs)[rows]
    arrays = {name: value.numpy() for name, value in params.items()}
    known = nodes.constant(support.numpy())
    return closed_form(nodes, trained, arrays, known, nodes.constant(rows), features)


def _pooled_so_far(
    nodes: Nodes, trained: Trained, network: dict[str, str], state: str, end: str
) -> str:
    """The features `[N, F]` after one more step; see `raymeta.nn.stepwise`."""
    size, pooling = trained.recipe.spec.output_size, trained.recipe.spec.pooling
    if pooling == "last":
        return state

    def kept(name: str, width: int) -> str:
        return nodes.input(name + end, "float", ["streams", width])

    def keep(value: str, name: str, width: int) -> str:
        nodes.output(value, f"next_{name}{end}", "float", ["streams", width])
        return value

    before = kept("total", size)
    if pooling == "mean":
        count = nodes.op("Add", kept("count", 1), nodes.constant(1.0))
        total = keep(nodes.op("Add", before, state), "total", size)
        return nodes.op("Div", total, keep(count, "count", 1))
    score = nodes.op("MatMul", state, nodes.op("Transpose", network[ATTENTION], perm=[1, 0]))
    weight_before, highest_before = kept("weight", 1), kept("highest", 1)
    highest = nodes.op("Max", highest_before, score)
    shrunk = nodes.op("Exp", nodes.op("Sub", highest_before, highest))
    own = nodes.op("Exp", nodes.op("Sub", score, highest))
    total = nodes.op("Add", nodes.op("Mul", shrunk, before), nodes.op("Mul", own, state))
    weight = nodes.op("Add", nodes.op("Mul", shrunk, weight_before), own)
    keep(highest, "highest", 1)
    return nodes.op("Div", keep(total, "total", size), keep(weight, "weight", 1))


def _sorted(nodes: Nodes, y: str, *values: str) -> list[str]:
    """Rows in the order of their classes; within a class in their own."""
    count = nodes.size(y, 0)
    key = nodes.op("Add", nodes.op("Mul", y, count), nodes.numbers(count))
    _, order = nodes.ops("TopK", key, count, num_outputs=2, axis=0, largest=0)
    return [nodes.op("Gather", value, order, axis=0) for value in values]


def _finish(
    nodes: Nodes,
    trained: Trained,
    answers: list[str],
    labels: np.ndarray | None,
    temperature: float,
    axis: str = "examples",
) -> None:
    """The mean of the networks' answers as the outputs of the graph."""
    num_outputs = trained.recipe.spec.num_outputs
    if trained.is_classification:
        if labels is not None:  # what is left was of ways that this task has not
            answers = [nodes.slice(value, 0, len(labels), 1) for value in answers]
        divisor = nodes.constant(temperature)
        answers = [nodes.op("Softmax", nodes.op("Div", v, divisor), axis=1) for v in answers]
    mean = answers[0] if len(answers) == 1 else nodes.op("Mean", *answers)
    if not trained.is_classification:
        if trained.inputs.target_scale is not None:
            level, unit = trained.inputs.target_scale
            exact = nodes.op("Mul", nodes.cast(mean, "double"), nodes.constant(unit, np.float64))
            mean = nodes.cast(nodes.op("Add", exact, nodes.constant(level, np.float64)), "float")
        nodes.output(mean, "prediction", "float", [axis, num_outputs])
        return
    nodes.output(
        mean, "probabilities", "float", [axis, "classes" if labels is None else len(labels)]
    )
    number = nodes.op("ArgMax", mean, axis=1, keepdims=0)
    if labels is None:
        nodes.output(number, "prediction", "int64", [axis])
        return
    kind = "int64" if labels.dtype.kind in "iub" else "string"
    named = nodes.constant(labels, np.int64 if kind == "int64" else object)
    nodes.output(nodes.op("Gather", named, number, axis=0), "prediction", kind, [axis])


def _notes(trained: Trained, labels: np.ndarray | None) -> dict[str, str]:
    """The metadata of the file, for its readers."""
    notes = {
        "raymeta_version": version("raymeta"),
        "experiment": trained.experiment.name,
        "learner": trained.recipe.learner.name,
        **input_notes(trained),
    }
    if labels is not None:
        notes["labels"] = json.dumps(labels.tolist(), ensure_ascii=False)
    return notes
