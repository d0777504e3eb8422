"""Prepares what tables have besides numbers for the network as training does, in ONNX nodes.

Categories: a graph has no texts to look up, but the input `{prefix}categories`, int64 `[N, T, K]`,
in the order of `tasks.categories`.  A level's code is its place, from 0, in the list that the
file's metadata `categories` have for its column: `{"town": ["Oslo", "Rome", null]}`, where `null`
is a missing value.  Any other code, such as -1, is a level that did not occur in meta-training
(or a missing value where the list has none): it counts as the mean of those that did.

Shape legend: N examples, T time steps, C channels, K categories, L levels of one, D features.
"""

from __future__ import annotations

import numpy as np

from raymeta.inference.export.nodes import Nodes
from raymeta.inference.trained import Trained
from raymeta.tasks.table_settings import TableTasks


def table_features(
    nodes: Nodes, trained: Trained, settings: TableTasks, x: str, prefix: str, axis: str
) -> str:
    """The features of a table's examples before they are standardised, double `[N, T, D]`.

    Args:
        nodes: of the graph, which gets the inputs that a table needs besides `x`.
        trained: the levels of the categories.
        settings: that the network was trained with.
        x: numbers `[N, T, C]`; an empty name if there are none.
        prefix: of the inputs' names.
        axis: what the axis of examples is called.
    """
    parts = [x] if x else []
    if settings.categories:
        shape: list[int | str] = [axis, f"{prefix}steps", len(settings.categories)]
        codes = nodes.input(f"{prefix}categories", "int64", shape)
        for place, name in enumerate(settings.categories):
            own = nodes.take(codes, place, 2)
            parts.append(_columns_of_levels(nodes, own, len(trained.inputs.levels[name])))
    return parts[0] if len(parts) == 1 else nodes.op("Concat", *parts, axis=2)


def _columns_of_levels(nodes: Nodes, codes: str, num_levels: int) -> str:
    """Columns `[N, T, L]` of 0 and 1 for codes `[N, T]`; NaN for unknown ones."""
    unknown = np.full((1, num_levels), np.nan)
    table = nodes.constant(np.concatenate([np.eye(num_levels), unknown]), np.float64)
    return nodes.op("Gather", table, nodes.within(codes, num_levels, num_levels), axis=0)
