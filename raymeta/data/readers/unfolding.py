"""Reads Parquet, Arrow streams and columns of codes, none of which may unfold to gigabytes.

A file of kilobytes may stand for any size: by a dictionary whose long text many rows have, by pages
that repeat one number, or by compression.  So sizes are known before anything unfolds: texts are
read as codes and a dictionary, other columns some rows at a time, and the buffers of an Arrow batch
say how long they will be.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymeta.storage.bounds import TABLE_BYTES

_BATCH_ROWS = 1 << 17  # read at a time
_BATCH_BYTES = 64 << 20  # of values of one width, read at a time
_PAGE_BUFFER = 1 << 20  # bytes of a Parquet file that are read at once
_VALUE_BYTES = 8  # that a value takes at least, once it is used
_TEXT_BYTES = 2**31 - 1  # of a column: Arrow's texts have offsets of 32 bits
ARROW_FILE = b"ARROW1"  # what an Arrow file begins with, and a stream does not
_FILE_START = 8  # behind which an Arrow file is a stream, with an index at its end


class Unfolding:
    """Columns that grow to a table of at most `TABLE_BYTES`."""

    def __init__(self) -> None:
        self._found: dict[str, list[pa.Array]] = defaultdict(list)
        self._text_bytes: dict[str, int] = defaultdict(int)
        self._bytes = 0

    def add(self, name: str, column: pa.Array) -> None:
        """Appends rows to a column, as plain values.

        Raises:
            OSError: the table, or the texts of one column, would be too large.
            ArrowException: the values are damaged, or no UTF-8.
        """
        column.validate(full=True)  # before offsets and codes are believed
        while isinstance(column, pa.ExtensionArray):
            column = column.storage
        text_bytes = _text_bytes(column)
        self._count(len(column) * _width(column.type) + text_bytes)
        self._text_bytes[name] += text_bytes
        if self._text_bytes[name] > _TEXT_BYTES:
            raise OSError(f"the texts of column {name!r:.100} take more than 2 GiB; cut it up")
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if _is_view(column.type):
            column = column.cast(pa.string() if column.type == pa.string_view() else pa.binary())
        self._found[name].append(column)

    def add_unread(self, name: str, kind: pa.DataType, count: int) -> None:
        """Appends nulls in place of nested values, which no column that is used may have.

        Raises:
            OSError: the table would be too large.
        """
        self._count(count * _VALUE_BYTES)
        self._found[name].append(pa.nulls(count, kind))

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > TABLE_BYTES:
            raise too_large()

    def table(self, schema: pa.Schema) -> pa.Table:
        """The table of the columns in a schema; those without rows have its types."""
        return pa.table(
            {
                field.name: pa.chunked_array(
                    self._found[field.name], None if self._found[field.name] else field.type
                )
                for field in schema
            }
        )


def too_large() -> OSError:
    """The error about a table of more than `TABLE_BYTES`."""
    return OSError(
        f"its columns take more than {TABLE_BYTES >> 30} GiB; cut the table up, or name fewer "
        "columns"
    )


def unfolded(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """Columns of a table, with plain values in place of codes.

    Raises:
        OSError: they take more than `TABLE_BYTES`.
    """
    found = Unfolding()
    for name in wanted:
        for chunk in table[name].chunks:
            found.add(name, chunk)
    return found.table(table.select(wanted).schema)


def open_parquet(file: pa.NativeFile) -> pq.ParquetFile:
    """Opens a Parquet file whose texts will be read as codes and a dictionary."""
    first = pq.ParquetFile(file, arrow_extensions_enabled=False)
    return pq.ParquetFile(
        file,
        metadata=first.metadata,
        arrow_extensions_enabled=False,
        read_dictionary=[field.name for field in first.schema_arrow if _is_text(field.type)],
        buffer_size=_PAGE_BUFFER,
        pre_buffer=False,
    )


def parquet_columns(file: pq.ParquetFile, wanted: Sequence[str]) -> pa.Table:
    """Reads columns one after another, so that pages of one alone are in memory.

    Raises:
        OSError: they take more than `TABLE_BYTES`.
        ArrowException: the file is damaged.
    """
    found, schema = Unfolding(), file.schema_arrow
    if len(wanted) * file.metadata.num_rows * _VALUE_BYTES > TABLE_BYTES:
        raise too_large()
    for name in wanted:
        kind = schema.field(name).type
        if _is_nested(kind):
            found.add_unread(name, kind, file.metadata.num_rows)
            continue
        if _page_bytes(file.metadata, name) > TABLE_BYTES:
            raise too_large()
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // _width(kind)))
        for batch in file.iter_batches(rows, columns=[name]):
            found.add(name, batch.column(name))
    return found.table(pa.schema([schema.field(name) for name in wanted]))


def _page_bytes(metadata: pq.FileMetaData, name: str) -> int:
    """The bytes of a column's pages once they are decompressed, as the file says."""
    return sum(
        column.total_uncompressed_size
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema == name
    )


def arrow_stream(content: bytes) -> pa.Buffer:
    """The stream in the content of an Arrow file or stream, not copied; Feather files are such."""
    buffer = pa.py_buffer(content)
    return buffer.slice(_FILE_START) if content.startswith(ARROW_FILE) else buffer


def stream_schema(content: pa.Buffer) -> pa.Schema:
    """The schema of an Arrow stream.

    Raises:
        ArrowException: it is none.
    """
    with pa.ipc.open_stream(content) as stream:
        return stream.schema


def stream_columns(content: pa.Buffer, wanted: Sequence[str]) -> pa.Table:
    """Reads columns of an Arrow stream, a batch at a time.

    Raises:
        OSError: they, or a batch with all of its columns, take more than `TABLE_BYTES`.
        ArrowException: the stream is damaged.
    """
    found, schema = Unfolding(), stream_schema(content)
    plain = [name for name in wanted if not _is_nested(schema.field(name).type)]
    options = pa.ipc.IpcReadOptions(included_fields=[*map(schema.get_field_index, plain)])
    with pa.ipc.open_stream(content, options=options) as stream:
        for _ in _checked_batches(content):
            batch = stream.read_next_batch()
            for name in wanted:
                if name in plain:
                    found.add(name, batch.column(name))
                else:
                    found.add_unread(name, schema.field(name).type, batch.num_rows)
    return found.table(pa.schema([schema.field(name) for name in wanted]))


def _checked_batches(content: pa.Buffer) -> Iterator[None]:
    """Yields before each batch of a stream, whose size, and its dictionaries', is then known.

    Raises:
        OSError: more than `TABLE_BYTES`, or the message is damaged.
    """
    size = 0
    for message in pa.ipc.MessageReader.open_stream(content):
        if message.type not in ("record batch", "dictionary"):
            continue
        try:
            size += _declared_bytes(message)
        except (struct.error, ValueError) as error:
            raise OSError("it is damaged: a batch does not say how long it is") from error
        if size > TABLE_BYTES:
            raise too_large()
        if message.type == "record batch":
            yield
            size = 0


# Where the fields of Arrow's messages are (format/Message.fbs): a Message has its header third, a
# DictionaryBatch its RecordBatch second, and that its buffers third and the compression fourth.
_HEADER, _DATA, _BUFFERS, _COMPRESSION = 2, 1, 2, 3
_BUFFER = 16  # bytes: offset in the body and length, each int64


def _declared_bytes(message: pa.ipc.Message) -> int:
    """The bytes that the compressed buffers of a message take, as they say at their beginning.

    Raises:
        struct.error, ValueError: the message is damaged.
    """
    metadata, body = message.metadata.to_pybytes(), memoryview(message.body or b"")
    (root,) = struct.unpack_from("<I", metadata)
    batch = _table_at(metadata, root, _HEADER)
    if message.type == "dictionary":
        batch = _table_at(metadata, batch, _DATA)
    if not _place(metadata, batch, _COMPRESSION):
        return 0  # its buffers are as long as they are in the file
    start = _table_at(metadata, batch, _BUFFERS)
    (count,) = struct.unpack_from("<I", metadata, start)
    size = 0
    for number in range(count):
        offset, length = struct.unpack_from("<qq", metadata, start + 4 + number * _BUFFER)
        if length:
            (declared,) = struct.unpack_from("<q", body, offset)
            size += max(0, declared)  # -1: this buffer is not compressed
    return size


def _place(metadata: bytes, table: int, field: int) -> int:
    """Where a field of a flatbuffers table is; 0 if it is absent."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    size, *_ = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * field >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * field)
    return table + int(offset) if offset else 0


def _table_at(metadata: bytes, table: int, field: int) -> int:
    """Where the table or vector is to which a field refers.

    Raises:
        ValueError: the field is absent.
    """
    place = _place(metadata, table, field)
    if not place:
        raise ValueError(f"it has no field {field}")
    (offset,) = struct.unpack_from("<I", metadata, place)
    return place + int(offset)


def _text_bytes(column: pa.Array) -> int:
    """The bytes of a column's texts, each as often as rows have it; 0 if it holds other values."""
    is_coded = pa.types.is_dictionary(column.type)
    values = column.dictionary if is_coded else column
    if not _is_text(values.type):
        return 0
    if _is_view(values.type):
        # Four int32 a view, its length first; Arrow has no function for it.
        views = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)
        own = views[values.offset : values.offset + len(values), 0]
        lengths = pa.array(np.where(np.asarray(values.is_null()), 0, own))
    else:
        lengths = pc.binary_length(values)
    if is_coded:
        lengths = lengths.take(column.indices)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or _is_view(kind)
    )


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of an extension's storage; any other type itself."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def _is_nested(kind: pa.DataType) -> bool:
    kind = _stored(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        return bool(pa.types.is_nested(kind) or pa.types.is_dictionary(kind))
    return bool(pa.types.is_nested(kind))


def _width(kind: pa.DataType) -> int:
    """Bytes of a value, where all have the same number; of texts and null, those of a code."""
    kind = _stored(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        return max(_VALUE_BYTES, -(-kind.bit_width // 8))
    except ValueError:
        return _VALUE_BYTES
