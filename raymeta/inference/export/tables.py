"""Prepares the examples of tables for the network as training does, in ONNX nodes.

Categories: a graph has no texts to look up, but the input `{prefix}categories`, int64 `[N, T, K]`,
in the order of `tasks.categories`.  A level's code is its place, from 0, in the list that the
file's metadata `categories` have for its column: `{"town": ["Oslo", "Rome", null]}`, where `null`
is a missing value.  Any other code, such as -1, is a level that did not occur in meta-training
(or a missing value where the list has none): it counts as the mean of those that did.

Times: where the network reads them (`tasks.time_differences`, or `tasks.missing` and a column
`tasks.time`), the graph has the input `{prefix}times`, double `[N, T]`: the numbers of the column,
or of dates the seconds since any moment.  The metadata `times` have the column and `are_dates`,
`null` where nobody knows: lines between numbers are the same in all units.

With `tasks.missing`, a missing number is NaN in `{prefix}x`.

Shape legend: N examples, T time steps, C channels, K categories, L levels of one, D features, F
frequencies.
"""

from __future__ import annotations

import numpy as np

from raymeta.inference.export.filling import (
    interpolated,
    padded_by,
    time_differences,
    with_masks,
)
from raymeta.inference.export.nodes import Nodes
from raymeta.inference.trained import Trained
from raymeta.tasks.table_sections import Spectrum
from raymeta.tasks.table_settings import TableTasks


def table_features(
    nodes: Nodes,
    trained: Trained,
    settings: TableTasks,
    x: str,
    lengths: str,
    prefix: str,
    axis: str,
) -> tuple[str, str]:
    """The features of a table's examples before they are standardised, and their lengths.

    They are double `[N, T, D]` and int64 `[N]`; T counts a spectrum's steps, if there is one.

    Args:
        nodes: of the graph, which gets the inputs that a table needs besides `x`.
        trained: the levels of the categories.
        settings: that the network was trained with.
        x: numbers `[N, T, C]`; an empty name if there are none.
        lengths: valid steps `[N]`.
        prefix: of the inputs' names.
        axis: what the axis of examples is called.
    """
    parts = _numbers(nodes, trained, settings, x, lengths, prefix, axis)
    if settings.categories:
        shape: list[int | str] = [axis, f"{prefix}steps", len(settings.categories)]
        codes = nodes.input(f"{prefix}categories", "int64", shape)
        for place, name in enumerate(settings.categories):
            own = nodes.take(codes, place, 2)
            parts.append(_columns_of_levels(nodes, own, len(trained.inputs.levels[name])))
    found = parts[0] if len(parts) == 1 else nodes.op("Concat", *parts, axis=2)
    if settings.spectrum is None:
        return found, lengths
    found = _amplitudes(nodes, found, lengths, settings.spectrum, settings.example_steps)
    num_steps = settings.spectrum.frequencies // settings.spectrum.per_step
    full = nodes.op("Expand", nodes.constant(num_steps, np.int64), nodes.size(lengths, 0))
    return found, full


def _numbers(
    nodes: Nodes,
    trained: Trained,
    settings: TableTasks,
    x: str,
    lengths: str,
    prefix: str,
    axis: str,
) -> list[str]:
    """The features of what is no category: filled in, with differences of times."""
    times = ""
    if trained.inputs.is_timed:
        times = nodes.input(f"{prefix}times", "double", [axis, f"{prefix}steps"])
        times = nodes.op("Unsqueeze", times, nodes.constant([2], np.int64))
    elif settings.missing != "refuse" and x:  # steps are even
        shape = nodes.op("Shape", nodes.slice(x, 0, 1, 2))
        counted = nodes.reshape(nodes.numbers(nodes.size(x, 1), "double"), 1, -1, 1)
        times = nodes.op("Expand", counted, shape)
    parts = [x] if x else []
    if settings.missing != "refuse" and x:
        x = padded_by(nodes, x, lengths, np.nan)
        is_line = settings.missing == "interpolate"
        parts = [interpolated(nodes, x, times)] if is_line else with_masks(nodes, x, times)
    if settings.time_differences:
        parts.append(time_differences(nodes, times))
    return parts


def _amplitudes(nodes: Nodes, x: str, lengths: str, spectrum: Spectrum, num_steps: int) -> str:
    """`raymeta.tasks.preparation.spectrum_of`: double `[N, F / per_step, per_step * C]`.

    A product with waves, since few runtimes have `DFT`.
    """
    x = padded_by(nodes, x, lengths, 0.0)
    steps = nodes.reshape(nodes.numbers(nodes.size(x, 1)), 1, -1)
    # The file has one turn of a wave alone, and not a wave for each frequency.
    frequencies = nodes.constant(np.arange(spectrum.frequencies)[:, None], np.int64)
    size = nodes.constant(num_steps, np.int64)
    places = nodes.op("Mod", nodes.op("Mul", frequencies, steps), size)  # [F, T]
    angles = 2 * np.pi * np.arange(num_steps) / num_steps
    squares = []
    for turn in (np.cos(angles), np.sin(angles)):
        waves = nodes.op("Gather", nodes.constant(turn, np.float64), places, axis=0)
        part = nodes.op("MatMul", waves, x)  # [N, F, C]
        squares.append(nodes.op("Mul", part, part))
    size = nodes.op("Sqrt", nodes.reshape(nodes.cast(lengths, "double"), -1, 1, 1))
    amplitudes = nodes.op(
        "Sqrt", nodes.op("Div", nodes.op("Sqrt", nodes.op("Add", *squares)), size)
    )
    return nodes.reshape(amplitudes, 0, spectrum.frequencies // spectrum.per_step, -1)


def _columns_of_levels(nodes: Nodes, codes: str, num_levels: int) -> str:
    """Columns `[N, T, L]` of 0 and 1 for codes `[N, T]`; NaN for unknown ones."""
    unknown = np.full((1, num_levels), np.nan)
    table = nodes.constant(np.concatenate([np.eye(num_levels), unknown]), np.float64)
    return nodes.op("Gather", table, nodes.within(codes, num_levels, num_levels), axis=0)
