"""Prepares raw examples for the network as training does, in ONNX nodes.

Shape legend: N examples, T time steps (raw), P points (prepared), C channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymeta.errors import DataError
from raymeta.inference.export.nodes import INT64_MAX, Nodes
from raymeta.inference.export.tables import table_features
from raymeta.inference.export.texts import text_input, text_notes
from raymeta.inference.trained import Trained
from raymeta.tasks.pen import context_places
from raymeta.tasks.settings import PenTasks, SentenceTasks
from raymeta.tasks.table_settings import TableTasks


@dataclass(frozen=True)
class RawInput:
    """The inputs of a graph for examples, and what the network reads of them.

    `x` is float `[N, T, D]`, or token ids int64 `[N, T]`; `lengths` are int64 `[N]`.
    """

    x: str
    lengths: str


def check_exportable(trained: Trained) -> None:
    """Refuses what has no form in ONNX.

    Raises:
        DataError: with the reason.
    """
    settings, spec = trained.experiment.tasks, trained.recipe.spec
    if trained.recipe.problem.name not in ("classification", "regression"):
        raise DataError(
            f"ONNX export serves classes and numbers, not {trained.recipe.problem.name}"
        )
    if spec.layer_dtype is not None:
        raise DataError(
            "a network with training.precision bfloat16 cannot be exported: ONNX runtimes have no "
            "bfloat16 layers on CPUs, and float32 would give other answers"
        )
    if trained.inputs.scaling is None and not isinstance(settings, PenTasks | SentenceTasks):
        raise DataError(
            f"a network of the source {settings.source!r} cannot be exported: its preparation has "
            "no ONNX form yet"
        )


def raw_input(nodes: Nodes, trained: Trained, prefix: str, axis: str) -> RawInput:
    """Adds the inputs `{prefix}x`, double `[N, T, C]`, and `{prefix}lengths`, int64 `[N]`.

    They take what `Model.adapt` and `Adapted.predict` take, padded to one length by anything.  A
    source whose examples are one time step has no lengths.  For what tables have besides numbers,
    see `raymeta.inference.export.tables`; for texts `raymeta.inference.export.texts`.

    Args:
        nodes: of the graph.
        trained: what the preparation is.
        prefix: of the inputs' names.
        axis: what the axis of examples is called.
    """
    settings, inputs = trained.experiment.tasks, trained.inputs
    if isinstance(settings, SentenceTasks):
        return RawInput(*text_input(nodes, trained, settings, prefix, axis))
    is_one_step = inputs.stream_steps == 1
    steps: int | str = 1 if is_one_step else f"{prefix}steps"
    channels = number_channels(trained)
    x = nodes.input(f"{prefix}x", "double", [axis, steps, len(channels)]) if channels else ""
    if is_one_step:
        lengths = nodes.op("Expand", nodes.constant(1, np.int64), nodes.size(x, 0))
    else:
        lengths = nodes.input(f"{prefix}lengths", "int64", [axis])
    if isinstance(settings, PenTasks):
        points = _strokes(nodes, x, lengths, settings.num_points, settings.context_grid)
        full = nodes.op("Expand", nodes.constant(settings.num_points, np.int64), nodes.size(x, 0))
        return RawInput(points, full)
    if isinstance(settings, TableTasks):
        x, lengths = table_features(nodes, trained, settings, x, lengths, prefix, axis)
    return RawInput(nodes.cast(standardised(nodes, trained, x), "float"), lengths)


def number_channels(trained: Trained) -> tuple[str, ...]:
    """The names of the numbers that `x` has at a time step."""
    return tuple(name for name in trained.inputs.channels if name not in trained.inputs.levels)


def input_notes(trained: Trained) -> dict[str, str]:
    """The metadata that say how the inputs are made, as JSON.

    `channels` are those of `x`, in their order; `categories`, where there are any, have the levels
    of each in the order of their codes, and `times`, where the network reads times, their column
    and whether they are dates: see `raymeta.inference.export.tables`; for what there is of texts,
    see `raymeta.inference.export.texts`.
    """
    settings = trained.experiment.tasks
    found: dict[str, Any] = {"channels": number_channels(trained)}
    if isinstance(settings, SentenceTasks):
        found = text_notes(trained, settings)
    if trained.inputs.levels:
        found["categories"] = {name: list(own) for name, own in trained.inputs.levels.items()}
    if trained.inputs.is_timed:
        named = {"column": trained.inputs.time, "are_dates": trained.inputs.times_are_dates}
        found["times"] = named
    return {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}


def standardised(nodes: Nodes, trained: Trained, x: str) -> str:
    """Numbers `[…, D]` in their user's units as the networks know them, double.

    What is not known (NaN) is the mean.
    """
    assert trained.inputs.scaling is not None, "other sources prepare more"
    mean, deviation = (nodes.constant(value, np.float64) for value in trained.inputs.scaling)
    found = nodes.op("Div", nodes.op("Sub", x, mean), deviation)
    if not trained.inputs.prepared_by:
        return found
    return nodes.op("Where", nodes.op("IsNaN", found), nodes.constant(0.0, np.float64), found)


def _strokes(nodes: Nodes, x: str, lengths: str, num_points: int, context_grid: int) -> str:
    """`raymeta.tasks.pen.resample` and `strokes_to_features`: float `[N, P, D]` of `[N, T, 3]`.

    A point that repeats the one before it changes nothing here: between the two no position lies.
    """
    zero, one = nodes.constant(0.0, np.float64), nodes.constant(1.0, np.float64)
    steps = nodes.reshape(nodes.numbers(nodes.size(x, 1)), 1, -1)
    last = nodes.op("Sub", nodes.reshape(lengths, -1, 1), nodes.constant(1, np.int64))  # [N, 1]
    is_valid = nodes.op("LessOrEqual", steps, last)  # [N, T]
    x = nodes.op("Where", nodes.op("Unsqueeze", is_valid, nodes.constant([2], np.int64)), x, zero)
    points, stroke = nodes.slice(x, 0, 2, 2), nodes.take(x, 2, 2)

    nothing = nodes.op("Mul", nodes.slice(stroke, 0, 1, 1), zero)  # [N, 1]
    inside = nodes.cast(nodes.slice(is_valid, 1, INT64_MAX, 1), "double")
    segment = nodes.op("Mul", _norm(nodes, _differences(nodes, points)), inside)
    walked = nodes.op("CumSum", segment, nodes.constant(1, np.int64))
    position = nodes.op("Concat", nothing, walked, axis=1)  # [N, T]
    same = nodes.cast(nodes.op("Equal", _differences(nodes, stroke), zero), "double")
    on_paper = nodes.op("Concat", nothing, same, axis=1)
    total = nodes.slice(position, -1, INT64_MAX, 1)  # [N, 1]
    count = np.arange(num_points - 1, dtype=np.float64)[None]
    pace = nodes.op("Div", total, nodes.constant(float(num_points - 1), np.float64))
    wanted = nodes.op("Mul", nodes.constant(count, np.float64), pace)
    wanted = nodes.op("Concat", wanted, total, axis=1)  # [N, P]
    column = nodes.op("Unsqueeze", wanted, nodes.constant([2], np.int64))
    row = nodes.op("Unsqueeze", position, nodes.constant([1], np.int64))
    known = nodes.op("Unsqueeze", is_valid, nodes.constant([1], np.int64))

    def number(condition: str) -> str:
        """Counts the points of each example that fulfil a condition `[N, P, T]`, int64 `[N, P]`."""
        return nodes.sum(nodes.cast(nodes.op("And", condition, known), "int64"), 2)

    def at(values: str, places: str) -> str:
        return nodes.op("GatherElements", values, places, axis=1)

    reached = nodes.op("LessOrEqual", row, column)
    left = nodes.op("Sub", number(reached), nodes.constant(1, np.int64))
    right = nodes.op("Min", nodes.op("Add", left, nodes.constant(1, np.int64)), last)
    start, end = at(position, left), at(position, right)
    width = nodes.op("Sub", end, start)
    is_between = nodes.op("Greater", width, zero)
    width = nodes.op("Where", is_between, width, one)
    share = nodes.op("Div", nodes.op("Sub", wanted, start), width)
    coordinates = []
    for axis in (0, 1):
        own = nodes.take(points, axis, 2)
        first, second = at(own, left), at(own, right)
        found = nodes.op("Add", first, nodes.op("Mul", share, nodes.op("Sub", second, first)))
        coordinates.append(nodes.op("Unsqueeze", found, nodes.constant([2], np.int64)))
    path = nodes.op("Concat", *coordinates, axis=2)  # [N, P, 2]
    before = nodes.op("Or", nodes.op("Less", row, column), nodes.op("LessOrEqual", row, zero))
    leading = nodes.op("Min", number(before), last)
    moves = nodes.op("Greater", total, zero)
    pen = nodes.op("Where", moves, at(on_paper, leading), one)
    return _pen_features(nodes, path, pen, num_points, context_grid)


def _pen_features(nodes: Nodes, path: str, pen: str, num_points: int, context_grid: int) -> str:
    """Float `[N, P, D]`: points centred and scaled, pen state, directions, ink around.

    `path` is `[N, P, 2]`, `pen` `[N, P]`.
    """
    zero, one = nodes.constant(0.0, np.float64), nodes.constant(1.0, np.float64)
    size = nodes.constant(float(num_points), np.float64)
    path = nodes.op("Sub", path, nodes.op("Div", nodes.sum(path, 1, keep=True), size))
    squares = nodes.sum(nodes.op("Mul", path, path), 1, 2)
    radius = nodes.op("Sqrt", nodes.op("Div", squares, size))
    radius = nodes.op("Where", nodes.op("Greater", radius, zero), radius, one)
    path = nodes.op("Div", path, nodes.reshape(radius, -1, 1, 1))
    moved = nodes.op(
        "Concat",
        nodes.op("Mul", nodes.slice(path, 0, 1, 1), zero),
        _differences(nodes, path),
        axis=1,
    )
    length = nodes.op("Max", _norm(nodes, moved), nodes.constant(1e-6, np.float64))
    two = nodes.constant([2], np.int64)
    travel = nodes.op("Div", moved, nodes.op("Unsqueeze", length, two))
    parts = [path, nodes.op("Unsqueeze", pen, two), travel]
    if context_grid:
        parts.append(_ink_around(nodes, path, pen, num_points, context_grid))
    return nodes.cast(nodes.op("Concat", *parts, axis=2), "float")


def _ink_around(nodes: Nodes, path: str, pen: str, num_points: int, context_grid: int) -> str:
    """`raymeta.tasks.pen.ink_around`: double `[N, P, G²]`."""
    places, width = context_places(context_grid)
    one, two, last = (nodes.constant([axis], np.int64) for axis in (1, 2, 4))
    apart = nodes.op("Sub", nodes.op("Unsqueeze", path, one), nodes.op("Unsqueeze", path, two))
    away = nodes.op("Sub", nodes.op("Unsqueeze", apart, last), nodes.constant(places, np.float64))
    factor = nodes.constant(-1 / (2 * width * width), np.float64)
    near = nodes.op("Exp", nodes.op("Mul", nodes.op("Mul", away, away), factor))
    paper = nodes.reshape(pen, 0, 1, num_points, 1)
    columns = nodes.op("Mul", nodes.take(near, 0, 3), paper)  # [N, P, P, G]
    across = nodes.op("Transpose", columns, perm=[0, 1, 3, 2])
    ink = nodes.reshape(nodes.op("MatMul", across, nodes.take(near, 1, 3)), 0, 0, -1)
    share = nodes.op("Mul", ink, nodes.constant(4 / num_points, np.float64))
    return nodes.op("Sqrt", share)


def _differences(nodes: Nodes, values: str) -> str:
    """Differences of neighbours along the second axis."""
    return nodes.op("Sub", nodes.slice(values, 1, INT64_MAX, 1), nodes.slice(values, 0, -1, 1))


def _norm(nodes: Nodes, values: str) -> str:
    """Euclidean norms along the third axis."""
    return nodes.op("Sqrt", nodes.sum(nodes.op("Mul", values, values), 2))
