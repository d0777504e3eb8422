"""Tables of examples in every format that training reads, and of predictions in three of them.

Shape legend: N examples, K classes, O outputs.
"""

from __future__ import annotations

import io
import json
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raymeta.data.readers.arrow import read_columns
from raymeta.errors import DataError
from raymeta.inference.adapted import Adapted
from raymeta.inference.answers import Answers, answers_of
from raymeta.inference.examples import (
    RawExamples,
    needed_columns,
    refuse_computed,
    table_examples,
)
from raymeta.storage.paths import AnyPath
from raymeta.tasks.inputs import Inputs

Format = Literal["csv", "parquet", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)


def format_of(path: AnyPath) -> Format:
    """The format that a file's name tells.

    Raises:
        DataError: it tells none.
    """
    for name in FORMATS:
        if path.name.endswith(f".{name}"):
            return name
    raise DataError(f"{path}: must end in {', '.join(f'.{name}' for name in FORMATS)}")


def table_of_examples(
    path: AnyPath, inputs: Inputs, *, with_targets: bool, place: AnyPath | None = None
) -> RawExamples:
    """The examples in a table with the columns of `inputs`; other columns are left alone.

    Args:
        path: of the table, in any format that training reads.
        inputs: of the networks that will read them.
        with_targets: also reads the column of targets.
        place: what messages call it; its path by default.

    Raises:
        DataError: naming place, row, column, rule and remedy.
    """
    place = path if place is None else place
    if not path.is_file():
        raise DataError(f"{place}: cannot be read: no such file")
    # Before the columns: that of the targets would be reported as missing.
    refuse_computed(inputs, place, with_targets=with_targets)
    table = read_columns(path, needed_columns(inputs, with_targets=with_targets), place)
    return table_examples(table, inputs, place, with_targets=with_targets)


def predictions(adapted: Adapted, raw: RawExamples, coverage: float | None = None) -> pa.Table:
    """The predictions for examples, one row each in their order; see `answers_table`.

    Raises:
        DataError: as `Adapted.predict_interval` and `predict_set` do.
    """
    (answers,) = answers_of([adapted.question(raw)], with_scales=coverage is not None)
    return answers_table(answers, raw, adapted.trained.inputs, coverage)


def answers_table(
    answers: Answers, raw: RawExamples, inputs: Inputs, coverage: float | None = None
) -> pa.Table:
    """The answers for the examples `raw`, one row each in their order.

    The column of the sequence's id comes first, if the examples have ids.  `prediction` is the
    class or the value (`prediction_1` … of several outputs), `probability_CLASS` the probability of
    each class.  With `coverage`, `lower` and `upper` are the ends of intervals, or `in_set_CLASS`
    says whether a class is in the prediction set; see `Adapted.predict_interval` and `predict_set`.

    Raises:
        DataError: as those methods do.
    """
    columns: dict[str, Any] = {}
    if answers.labels is None:
        values = np.atleast_2d(answers.predicted.T)
        ends = [""] if len(values) == 1 else [f"_{n}" for n in range(1, len(values) + 1)]
        columns |= {f"prediction{end}": one for end, one in zip(ends, values, strict=True)}
        if coverage is not None:
            for name, found in zip(("lower", "upper"), answers.interval(coverage), strict=True):
                rows = np.atleast_2d(found.T)
                columns |= {f"{name}{end}": one for end, one in zip(ends, rows, strict=True)}
    else:
        labels = answers.labels.tolist()
        columns["prediction"] = answers.predicted
        for label, column in zip(labels, answers.outputs.numpy().T, strict=True):
            columns[f"probability_{label}"] = column
        if coverage is not None:
            for label, column in zip(labels, answers.members(coverage).T, strict=True):
                columns[f"in_set_{label}"] = column
    if raw.ids and inputs.sequence is not None:
        if inputs.sequence in columns:
            raise DataError(
                f"the column {inputs.sequence!r} of sequences has the name of one of predictions"
            )
        columns = {inputs.sequence: list(raw.ids), **columns}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def table_bytes(table: pa.Table, kind: Format) -> bytes:
    """A table as the content of a file."""
    stream = io.BytesIO()
    match kind:
        case "csv":
            pyarrow.csv.write_csv(table, stream, pyarrow.csv.WriteOptions(quoting_style="needed"))
        case "parquet":
            pyarrow.parquet.write_table(table, stream)
        case "jsonl":
            for row in table.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return stream.getvalue()
