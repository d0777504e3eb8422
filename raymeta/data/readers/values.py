"""Converts columns of tables to labels, levels of categories, numbers and times.

Columns of CSV files are texts.  Rows count from 1, without the header.

Shape legend: R rows, U distinct values.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymeta.errors import DataError, shown
from raymeta.storage.paths import AnyPath

# How libraries that write tables spell a missing number.
MISSING = ("", "NA", "N/A", "<NA>", "NaN", "nan", "null", "NULL", "None")

_TRUTHS = ("True", "False", "TRUE", "FALSE")  # as pandas and R write them
_TRIED_ROWS = 64  # converted first: Arrow words an error for every row that fails
_EXACT = 2**53  # float64 holds every whole number up to this one


def labels(path: AnyPath, table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Encodes a column of labels, none of which may be missing.

    Returns:
        The number of each row's label, int64 `[R]`, and the labels `[U]` in the order in which they
        occur first.

    Raises:
        DataError: naming file, column and row.
    """
    column = _plain(table, name)
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_binary(kind):
        raise DataError(f"{path}, column {name}: must hold text or whole numbers, but holds {kind}")
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    empty = values.index("") if "" in values else None
    gap = pc.is_null(column)
    row = pc.index(gap, True).as_py() if column.null_count else -1
    if row < 0 and empty is not None:
        row = pc.index(column, "").as_py()
    if row >= 0:
        raise DataError(
            f"{path}, row {row + 1}, column {name}: the value is missing; fill it in, or remove "
            "the row"
        )
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return codes, [str(value) for value in values]


def _plain(table: pa.Table, name: str) -> pa.Array:
    """A column as one array, without Arrow's dictionary of its own."""
    column = table[name].combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def categories(path: AnyPath, table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Encodes a column of categories: text, truth values, or whole numbers.

    A truth value has the same levels in every format, and so has a whole number, which a column
    with gaps may hold as 3.0.

    Returns:
        The number of each row's level, int64 `[R]`, -1 where it is missing (null or empty), and the
        levels `[U]`.

    Raises:
        DataError: naming file, column and row.
    """
    column = _plain(table, name)
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        try:
            column = pc.cast(column, pa.int64())
        except pa.ArrowException:
            row = _first_that_fails(column, pa.int64())
            raise DataError(
                f"{path}, row {row + 1}, column {name}: {shown(column[row].as_py())} is no whole "
                "number, so that it names no level; put the column into tasks.features"
            ) from None
    elif not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(
            f"{path}, column {name}: must hold text, truth values or whole numbers, but holds "
            f"{kind}; leave it out of tasks.categories"
        )
    encoded = column.dictionary_encode()
    codes = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(), dtype=np.int64)
    texts = [str(value) for value in encoded.dictionary.to_pylist()]
    known = {
        text: number for number, text in enumerate(dict.fromkeys(map(_level, filter(None, texts))))
    }
    place = np.array([known[_level(text)] if text else -1 for text in texts] + [-1])
    return place[codes], list(known)


def _level(text: str) -> str:
    return text.lower() if text in _TRUTHS else text


def numbers(
    path: AnyPath,
    table: pa.Table,
    name: str,
    *,
    may_miss: bool = False,
    remedy: str = "remove the row, or leave the column out of tasks.features",
) -> np.ndarray:
    """Converts a column to finite numbers, float64 `[R]`; missing ones are NaN.

    Args:
        path: of the file, for messages.
        table: that holds the column.
        name: of the column.
        may_miss: whether numbers may be missing: empty, null, NaN or a word of `MISSING`.
        remedy: ends the message about a row.

    Raises:
        DataError: naming file, column and row.
    """
    column = table[name].combine_chunks()
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
        raise DataError(f"{path}, column {name}: must hold numbers, but holds {column.type}")
    bad = partial(_not_a_number, path, name, column, remedy)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        gaps = pc.is_in(column, value_set=pa.array(MISSING, column.type))
        column = pc.if_else(gaps, pa.scalar(None, column.type), column)
    elif pa.types.is_floating(column.type):
        gaps = pc.is_nan(column)
        if pc.any(gaps).as_py():
            column = pc.if_else(gaps, pa.scalar(None, column.type), column)
    elif pa.types.is_integer(column.type):
        whole = column.drop_null().to_numpy(zero_copy_only=False)
        if len(whole) and (int(whole.max()) > _EXACT or int(whole.min()) < -_EXACT):
            values = column.to_pylist()
            row = next(n for n, v in enumerate(values) if v is not None and abs(v) > _EXACT)
            raise DataError(
                f"{path}, row {row + 1}, column {name}: {shown(column[row].as_py())} has more "
                "digits than a float64 holds; rescale the column, or leave it out"
            )
    if column.null_count and not may_miss:
        raise bad(pc.index(pc.is_null(column), True).as_py())
    try:
        found = _converted(column, pa.float64())
    except (pa.ArrowException, ValueError):
        raise bad(_first_that_fails(column, pa.float64())) from None
    values = np.array(found.to_numpy(zero_copy_only=False), dtype=np.float64)
    missing = ~np.isfinite(values)
    if missing.any():
        wrong = missing & ~np.asarray(pc.is_null(column))
        if wrong.any():
            raise bad(int(np.argmax(wrong)))
        values[missing] = np.nan  # one kind of NaN
    return values


def times(path: AnyPath, table: pa.Table, name: str) -> tuple[np.ndarray, float]:
    """Converts a column of times: numbers, or dates in ISO 8601 form.

    Returns:
        The times `[R]`, and the factor that converts their differences to seconds (dates) or keeps
        the column's own unit (numbers).

    Raises:
        DataError: naming file, column and row.
    """
    column = table[name].combine_chunks()
    if not column.null_count:
        kind = column.type
        if (dates := _dates(column)) is not None:
            return _integers(dates), {"ns": 1e-9, "us": 1e-6}[dates.type.unit]
        if pa.types.is_time(kind):
            return _integers(pc.cast(column, pa.time64("ns"))), 1e-9
        if pa.types.is_duration(kind):
            return _integers(pc.cast(column, pa.duration("ns"))), 1e-9
        if pa.types.is_integer(kind):
            return np.asarray(column.to_numpy(zero_copy_only=False)), 1.0
    remedy = "order the rows by numbers or by dates such as 2026-01-31T12:00, or remove the row"
    return numbers(path, table, name, remedy=remedy), 1.0


def dates(path: AnyPath, table: pa.Table, name: str) -> pa.Array:
    """Converts a column of dates to time stamps; those with an offset of their own are in UTC.

    Raises:
        DataError: naming file and column.
    """
    found = _dates(table[name].combine_chunks())
    if found is None or found.null_count:
        raise DataError(
            f"{path}, column {name}: tasks.calendar needs dates in every row, such as "
            f"2026-01-31T12:00, but the column is of {table[name].type}; leave tasks.calendar out, "
            "or write the dates as these"
        )
    return found


def _dates(column: pa.Array) -> pa.Array | None:
    """A column of dates, or of texts that are dates, as time stamps; None for another one."""
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return None
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    # Nanoseconds end in 2262; dates with an offset of their own need a zone to be in.
    for unit, tz in [(unit, tz) for tz in (zone, "UTC") for unit in ("ns", "us")]:
        try:
            return _converted(column, pa.timestamp(unit, tz))
        except (pa.ArrowException, ValueError):
            continue
    return None


def _integers(column: pa.Array) -> np.ndarray:
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _converted(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Converts a column, after its first rows; a column of words fails at once.

    Raises:
        ArrowException: a value cannot be converted.
        ValueError: likewise.
    """
    pc.cast(column[:_TRIED_ROWS], wanted)
    return pc.cast(column, wanted)


def _first_that_fails(column: pa.Array, wanted: pa.DataType) -> int:
    """Finds the first row that cannot be converted, by bisection: a table may have millions."""
    start, end = 0, len(column)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            _converted(column[start:middle], wanted)
            start = middle
        except (pa.ArrowException, ValueError):
            end = middle
    return start


def _not_a_number(path: AnyPath, name: str, column: pa.Array, remedy: str, row: int) -> DataError:
    value = column[row].as_py()
    what = f"{shown(value)} is not a finite number; mend it"
    if isinstance(value, str) and "tasks.features" in remedy:
        remedy += " (names, not numbers, belong into tasks.categories)"
    if value is None or str(value).strip() in MISSING:
        what = "the value is missing; fill it in (tasks.missing says how to fill in features)"
    return DataError(f"{path}, row {row + 1}, column {name}: {what}, {remedy}")
