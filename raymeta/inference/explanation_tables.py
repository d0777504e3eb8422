"""Attributions and influences as tables.

Shape legend: N examples, T time steps, C channels, S support examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.errors import DataError
from raymeta.inference.attribution import Attribution
from raymeta.inference.examples import RawExamples
from raymeta.inference.influence import Influence
from raymeta.tasks.inputs import Inputs

_EXAMPLE = "example"  # the column of an example's number where examples have no ids


def attribution_table(found: Attribution, raw: RawExamples, inputs: Inputs) -> pa.Table:
    """A row a time step, a column a channel, in the order of the examples.

    The column of the sequence's id comes first, or `example`, its number from 1; then `step`,
    counted from 1 as the network reads them, `target` (the class that is explained, or the number
    of the output from 1), of texts `token`, a column `attribution_CHANNEL` for each channel (of
    texts `attribution`), and `attention` where the networks pool by it.

    Args:
        found: the attributions.
        raw: the examples.
        inputs: of the networks.
    """
    lengths = found.lengths.tolist()
    inside = np.arange(found.values.shape[1]) < found.lengths[:, None]
    columns: dict[str, Any] = {
        "step": np.concatenate([np.arange(1, length + 1) for length in lengths]),
        "target": np.repeat(_targets(found), lengths),
    }
    if found.words:
        columns["token"] = [word for words in found.words for word in words]
    values = found.values[inside]  # [Σ T, C]
    for channel, column in zip(found.channels, values.T, strict=True):
        columns["attribution" if found.words else f"attribution_{channel}"] = column
    if found.attention is not None:
        columns["attention"] = found.attention[inside]
    return _table(columns, _named(raw, inputs, lengths, columns))


def influence_table(
    found: Influence, support: RawExamples, raw: RawExamples, inputs: Inputs
) -> pa.Table:
    """A row an example and support example, the support examples of an example together.

    The example comes first, as in `attribution_table`; then `support`, the id of the support
    example or its number from 1, `support_target`, its class or value (`support_target_1` … of
    several), `target`, as there, and `influence`, by how much the answer is greater because of the
    support example.

    Args:
        found: the influences.
        support: the support examples.
        raw: the examples.
        inputs: of the networks.
    """
    num_examples, num_support = found.changes.shape
    ids = list(support.ids) if support.ids else list(range(1, num_support + 1))
    values = np.asarray(support.y).reshape(num_support, -1)
    columns: dict[str, Any] = {
        "support": ids * num_examples,
        **{
            "support_target" if values.shape[1] == 1 else f"support_target_{number}": np.tile(
                column, num_examples
            )
            for number, column in enumerate(values.T, start=1)
        },
        "target": np.repeat(_targets(found), num_support),
        "influence": found.changes.ravel(),
    }
    return _table(columns, _named(raw, inputs, [num_support] * num_examples, columns))


def _targets(found: Attribution | Influence) -> np.ndarray:
    return found.targets if found.is_classification else found.targets + 1


def _named(
    raw: RawExamples, inputs: Inputs, repeats: list[int], columns: dict[str, Any]
) -> dict[str, Any]:
    """The column that names the examples."""
    if not raw.ids or inputs.sequence is None:
        return {_EXAMPLE: np.repeat(np.arange(1, len(raw) + 1), repeats)}
    if inputs.sequence in columns:
        raise DataError(
            f"the column {inputs.sequence!r} of sequences has the name of one of the explanation's"
        )
    return {inputs.sequence: np.repeat(np.array(raw.ids), repeats)}


def _table(columns: dict[str, Any], first: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in {**first, **columns}.items()})
