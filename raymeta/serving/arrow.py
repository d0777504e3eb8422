"""Reads and writes streams of Arrow, which come from anybody who has the token."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymeta.errors import DataError, shown

PLACE = Path("the body")  # what messages call it
TASK = "task"  # the column that says which task a row belongs to
_PREDICTION = "prediction"  # the column of classes
_RECORD_BATCH = 3  # of Arrow's `MessageHeader`
_TAKEN = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_date,
    pa.types.is_timestamp,
)


def stream_of(table: pa.Table) -> bytes:
    """Writes a table as a stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def by_task(table: pa.Table, most_tasks: int) -> dict[str, pa.Table]:
    """Splits a table by its column `task`: the rows of each task, in the order of first rows.

    Raises:
        DataError: there is no such column or there are two, it has gaps, it is not text or whole
            numbers, or there are more tasks than `most_tasks`.
    """
    names = table.schema.names
    if names.count(TASK) != 1:
        raise DataError(
            f"{PLACE}: must have one column {TASK!r} that names the task of each row, but has "
            f"{names.count(TASK)}"
        )
    column = table[TASK]
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if not any(is_taken(column.type) for is_taken in kinds):
        raise DataError(
            f"{PLACE}: column {TASK!r} must have text or whole numbers, but has the type "
            f"{column.type}"
        )
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise DataError(f"{PLACE}, row {row}: column {TASK!r} is empty; name the task of each row")
    if not table.num_rows:
        raise DataError(f"{PLACE}: has no rows; send the examples of one task at least")
    names_and_codes = pc.dictionary_encode(column.combine_chunks())
    if len(names_and_codes.dictionary) > most_tasks:
        raise DataError(
            f"there may be at most {most_tasks} tasks in a request, but column {TASK!r} names "
            f"{len(names_and_codes.dictionary)}; send fewer tasks at a time"
        )
    codes = names_and_codes.indices.to_numpy()
    # Rows that follow each other need not be of one task; those of a task keep their order.
    ordered = table.drop_columns(TASK).take(np.argsort(codes, kind="stable"))
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    found = [str(name) for name in names_and_codes.dictionary.to_pylist()]
    return {
        name: ordered.slice(start, size)
        for name, start, size in zip(found, starts.tolist(), sizes.tolist(), strict=True)
    }


def joined_by_task(tables: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """Joins the answers of tasks, given by their ids; the column `task` comes first.

    A column that a task lacks, such as the probability of a class of others, is empty in its rows.
    """
    places = [table.schema.get_field_index(_PREDICTION) for _, table in tables]
    kinds = {table.field(at).type for at, (_, table) in zip(places, tables, strict=True) if at >= 0}
    found = []
    for at, (name, table) in zip(places, tables, strict=True):
        own = table
        if len(kinds) > 1:  # the classes of some tasks are numbers, those of others are text
            own = table.set_column(at, _PREDICTION, table[_PREDICTION].cast(pa.string()))
        found.append(own.add_column(0, TASK, pa.repeat(pa.scalar(name), own.num_rows)))
    return pa.concat_tables(found, promote_options="default")


def read_stream(body: bytes, most_rows: int) -> pa.Table:
    """Reads the table in an Arrow stream.

    The sizes that its messages tell of are read before its columns are: a compressed column, one of
    runs or one without buffers may unfold to any size.

    Raises:
        DataError: it is damaged, compressed or too long, or a column is of another type than ours.
    """
    try:
        rows = 0
        for metadata in _messages(body):
            kind, header = _message_header(metadata)
            if kind != _RECORD_BATCH:
                continue
            count, is_compressed = _batch_facts(metadata, header)
            if is_compressed:
                raise DataError(f"{PLACE}: must not be compressed; write the stream without")
            rows += max(count, 0)
            if rows > most_rows:
                raise DataError(
                    f"there may be at most {most_rows} rows in a request, but got {rows}"
                )
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            for column in reader.schema:
                if not any(is_taken(column.type) for is_taken in _TAKEN):
                    raise DataError(
                        f"{PLACE}: column {shown(column.name)} has the type {column.type!s:.100}; "
                        "send numbers or text"
                    )
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{PLACE}: cannot be read as a stream of Arrow: {error!s:.200}") from None
    return table


def _messages(body: bytes) -> Iterator[memoryview]:
    """Yields the metadata of each message of a stream, by Arrow's encapsulation format.

    It is `<0xFFFFFFFF> <int32 size> <metadata, padded> <body>`, where size 0 ends the stream.
    """
    view, at = memoryview(body), 0
    while at + 8 <= len(view):
        mark, size = struct.unpack_from("<Ii", view, at)
        if mark != 0xFFFFFFFF:
            raise ValueError("it does not begin as one; streams of before Arrow 0.15 are not taken")
        if size == 0:
            return
        if size < 0 or at + 8 + size > len(view):
            raise ValueError("it is cut off")
        metadata = view[at + 8 : at + 8 + size]
        yield metadata
        length = _field(metadata, struct.unpack_from("<I", metadata)[0], 3)
        at += 8 + size + (struct.unpack_from("<q", metadata, length)[0] if length else 0)
        if at < 0:
            raise ValueError("a message has a negative size")


def _message_header(metadata: memoryview) -> tuple[int, int]:
    """Returns the kind of a message, and the offset of its header."""
    root = struct.unpack_from("<I", metadata)[0]
    kind, header = _field(metadata, root, 1), _field(metadata, root, 2)
    if not kind or not header:
        return 0, 0
    return metadata[kind], header + struct.unpack_from("<I", metadata, header)[0]


def _batch_facts(metadata: memoryview, header: int) -> tuple[int, bool]:
    """Returns the number of rows in a batch, and whether it is compressed."""
    length = _field(metadata, header, 0)
    rows = struct.unpack_from("<q", metadata, length)[0] if length else 0
    return rows, bool(_field(metadata, header, 3))


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Returns the offset of a field of a FlatBuffers table; 0 if the field is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise ValueError("its metadata are damaged")
    size = struct.unpack_from("<H", metadata, vtable)[0]
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, vtable + at)[0] if at < size else 0
    return table + offset if offset else 0
