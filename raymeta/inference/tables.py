"""Tables of examples and of predictions: CSV, Parquet and JSON Lines, in files and streams.

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

from raymeta.errors import DataError, shown
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import RawExamples, needed_columns, table_examples
from raymeta.storage.paths import AnyPath, read_regular
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


def read_file(path: AnyPath) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_examples(
    content: bytes, kind: Format, inputs: Inputs, place: AnyPath, *, with_targets: bool
) -> RawExamples:
    """The examples in a table with the columns of `inputs`; other columns are left alone.

    Args:
        content: of the file or stream.
        kind: its format.
        inputs: of the networks that will read them.
        place: what messages call it.
        with_targets: also reads the column of targets.

    Raises:
        DataError: naming place, row, column, rule and remedy.
    """
    columns = needed_columns(inputs, with_targets=with_targets)
    try:
        match kind:
            case "csv":
                # As text: which text is a number is found out where a message can name its row.
                options = pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
                )
                # A text may go over several lines.
                parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
                table = pyarrow.csv.read_csv(
                    io.BytesIO(content), convert_options=options, parse_options=parse
                )
            case "parquet":
                table = pyarrow.parquet.read_table(io.BytesIO(content))
            case "jsonl":
                table = _json_lines(content, columns, place)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place}: cannot be read as {kind}: {error!s:.300}") from error
    return table_examples(table, inputs, place, with_targets=with_targets)


def _json_lines(content: bytes, columns: list[str], place: AnyPath) -> pa.Table:
    """The lines as a table; what a line does not have is missing."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.decode("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}, line {number}: is no JSON: {error!s:.200}") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}, line {number}: must be an object, but is {shown(row)}")
        rows.append(row)
    present = dict.fromkeys(name for row in rows for name in row)
    # All other columns are there by name alone: what they hold is nobody's business here.
    return pa.table(
        {name: [row.get(name) if name in columns else None for row in rows] for name in present}
    )


def predictions(adapted: Adapted, raw: RawExamples) -> pa.Table:
    """The predictions for examples, one row each in their order.

    The column of the sequence's id comes first, if the examples have ids.  `prediction` is the
    class or the value (`prediction_1` … of several outputs), `probability_CLASS` the probability of
    each class.
    """
    columns: dict[str, Any] = {}
    if adapted.labels is None:
        values = np.atleast_2d(adapted.predict_raw(raw).T)
        names = [f"prediction_{n}" for n in range(1, len(values) + 1)]
        columns |= dict(zip(["prediction"] if len(values) == 1 else names, values, strict=True))
    else:
        found = adapted.probabilities(raw)
        columns["prediction"] = adapted.labels[found.argmax(axis=1)]
        for label, column in zip(adapted.labels.tolist(), found.T, strict=True):
            columns[f"probability_{label}"] = column
    sequence = adapted.trained.inputs.sequence
    if raw.ids and sequence is not None:
        if sequence in columns:
            raise DataError(
                f"the column {sequence!r} of sequences has the name of one of predictions"
            )
        columns = {sequence: list(raw.ids), **columns}
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
