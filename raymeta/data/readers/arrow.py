"""Reads table files of every supported format; `raymeta.data.readers.values` converts columns.

CSV files are read as text, which is checked there: Arrow's own guess of a column's type goes by its
first rows.  Rows count from 1, without the header.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds

from raymeta.data.readers.archives import ARCHIVES
from raymeta.data.readers.unfolding import (
    ARROW_FILE,
    Unfolding,
    arrow_stream,
    open_parquet,
    parquet_columns,
    stream_columns,
    stream_schema,
    unfolded,
)
from raymeta.errors import DataError
from raymeta.storage.bounds import TABLE_BYTES
from raymeta.storage.paths import AnyPath, RemotePath, read_regular

# Suffix -> Arrow's name of the format, and ours; `ARCHIVES` has further ones.
FORMATS = {
    "csv": ("csv", "CSV"),
    "tsv": ("csv", "TSV"),
    "jsonl": ("json", "JSON lines"),
    "ndjson": ("json", "JSON lines"),
    "parquet": ("parquet", "Parquet"),
    "feather": ("feather", "Feather"),
    "arrow": ("feather", "Arrow"),
}

# Arrow's prefix of messages about a file, which names the file a second time.
_ARROWS_OWN = re.compile(r"Error creating dataset.*?Could not open .*?': (Invalid: )?", re.DOTALL)
_BEGINNING = 4096  # bytes that are looked at first
_MAX_BRACKETS = 200  # in a line of JSON: a row has one, and its texts may have some
_BATCH_ROWS = 1 << 17  # read at a time
# Reads the named columns of an opened file; and the names of all.
_Opened = tuple[Callable[[Sequence[str]], pa.Table], list[str]]
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_columns(
    path: AnyPath,
    columns: Sequence[str] | None = None,
    place: AnyPath | None = None,
    *,
    but: Collection[str] = (),
) -> pa.Table:
    """Reads the named columns of a file, or all; CSV columns as text.

    Args:
        path: of the file, whose name tells its format.
        columns: that are wanted; None for all.
        place: what messages call the file; its path by default.
        but: columns that are not read if `columns` is None.  If no other is left, the table is
            empty.

    Raises:
        DataError: the file is broken, or a column is missing or there twice.
    """
    place = path if place is None else place
    suffix = PurePosixPath(path.name).suffix.lower().removeprefix(".")
    form, kind = FORMATS.get(suffix, ("archive" if suffix in ARCHIVES else "", f".{suffix}"))
    if not form:
        known = ", .".join([*FORMATS, *ARCHIVES])
        raise DataError(f"{place}: must end in one of .{known}, by its format")
    try:
        if form in ("csv", "json") and b"\0" in read_regular(path, _BEGINNING):
            raise DataError(
                f"{place}: cannot be read as {kind}: it holds NUL characters, as UTF-16 text and "
                "binary files do; save it as UTF-8"
            )
        if form == "json":
            _refuse_nested(path, place)
        read, names = _READERS.get(form, _rows)(path, suffix)
        wanted = _wanted(names, columns, but)
        if not wanted:
            return pa.table({})
        refuse_missing(place, names, wanted)
        table = read(wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = " (from the storage)" if isinstance(path, RemotePath) else ""
        reason = _ARROWS_OWN.sub("", getattr(error, "strerror", None) or str(error))
        # Arrow counts the header.
        reason = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1}", reason)
        hint = "; save it as UTF-8" if "utf" in reason.lower() else ""
        raise DataError(f"{place}: cannot be read as {kind}{where}: {reason:.400}{hint}") from error
    if table.num_rows == 0:
        raise DataError(f"{place}: has no rows")
    return table


def _wanted(names: Sequence[str], columns: Sequence[str] | None, but: Collection[str]) -> list[str]:
    """The columns to read, each once."""
    if columns is not None:
        return list(dict.fromkeys(columns))
    return [name for name in dict.fromkeys(names) if name not in but]


def refuse_missing(path: AnyPath, names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuses a table with column `names` unless it has each of `columns` exactly once.

    Raises:
        DataError: naming the first one, and the nearest that there is.
    """
    known = Counter(names)
    for name in columns:
        if known[name] != 1:
            raise _no_column(path, name, known)


def _refuse_nested(path: AnyPath, place: AnyPath) -> None:
    """Refuses nested values: deep ones crash Arrow's parser.

    Raises:
        DataError: naming the row.
    """
    text = np.frombuffer(read_regular(path, most=TABLE_BYTES), dtype=np.uint8)
    if not len(text):
        raise DataError(f"{place}: has no rows")
    starts = np.concatenate([[0], np.flatnonzero(text[:-1] == ord("\n")) + 1])
    opened = np.add.reduceat((text == ord("[")) | (text == ord("{")), starts, dtype=np.int64)
    if opened.max() > _MAX_BRACKETS:
        raise DataError(
            f"{place}, row {int(opened.argmax()) + 1}: has {opened.max()} brackets, but a row is "
            'one object of plain values, such as {"id": "a", "x": 1.5}, on a line of its own'
        )


def _archive(path: AnyPath, suffix: str) -> _Opened:
    table = ARCHIVES[suffix](path)
    return partial(unfolded, table), table.column_names


def _parquet(path: AnyPath, _: str) -> _Opened:
    if isinstance(path, RemotePath):
        opened = open_parquet(path.filesystem.open_input_file(path.path))
    else:
        opened = open_parquet(pa.OSFile(str(path)))
    return partial(parquet_columns, opened), opened.schema_arrow.names


def _arrow(path: AnyPath, suffix: str) -> _Opened:
    content = read_regular(path, most=TABLE_BYTES)
    # Hugging Face's save_to_disk writes streams, also under the name .arrow.
    if suffix != "arrow" and not content.startswith(ARROW_FILE):
        raise OSError("Not an Arrow file")
    stream = arrow_stream(content)
    return partial(stream_columns, stream), stream_schema(stream).names


def _rows(path: AnyPath, suffix: str) -> _Opened:
    """Opens CSV or JSON lines."""
    if suffix not in ("csv", "tsv"):
        dataset = _dataset(path, "json")
        return partial(_read_rows, dataset), dataset.schema.names

    def read(wanted: Sequence[str]) -> pa.Table:
        as_text = _csv(dict.fromkeys(wanted, pa.string()), suffix)
        return _read_rows(_dataset(path, as_text), wanted)

    return read, _dataset(path, _csv({}, suffix)).schema.names


def _read_rows(dataset: ds.Dataset, wanted: Sequence[str]) -> pa.Table:
    """Reads columns of texts or JSON.

    Raises:
        OSError: they take more than `TABLE_BYTES`.
        ArrowException: the file is broken.
    """
    found = Unfolding()
    for batch in dataset.to_batches(columns=list(wanted), batch_size=_BATCH_ROWS):
        for name in wanted:
            found.add(name, batch.column(name))
    return found.table(dataset.scanner(columns=list(wanted)).projected_schema)


# Arrow's name of a format -> how its files are opened; the others are rows of text.
_READERS = {"archive": _archive, "parquet": _parquet, "feather": _arrow}


def _dataset(path: AnyPath, form: Any) -> ds.Dataset:
    return ds.dataset(
        path.path if isinstance(path, RemotePath) else str(path),
        format=form,
        filesystem=path.filesystem if isinstance(path, RemotePath) else None,
    )


def _csv(column_types: dict[str, pa.DataType], suffix: str) -> ds.CsvFileFormat:
    return ds.CsvFileFormat(
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if suffix == "tsv" else ",",
            newlines_in_values=True,  # a text may go over several lines
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=column_types, strings_can_be_null=False
        ),
    )


def _no_column(path: AnyPath, name: str, known: Counter[str]) -> DataError:
    if known[name]:
        return DataError(
            f"{path}: has {known[name]} columns called {name!r:.100}; rename all but one"
        )
    if len(known) == 1:
        (only,) = known
        for sign, what in _SEPARATORS.items():
            if sign in only:
                return DataError(
                    f"{path}: its columns are parted by {what}; part them by commas, or by tabs in "
                    "a file that ends in .tsv"
                )
    close = get_close_matches(name, known, n=1)
    listed = ", ".join(f"{column!r:.40}" for column in list(known)[:10])
    hint = f"; did you mean {close[0]!r:.60}?" if close else f"; it has {listed}"
    return DataError(f"{path}: has no column {name!r:.100}{hint}")
