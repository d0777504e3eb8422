"""Reads the bodies of requests, and writes those of answers, in JSON and Arrow, within limits.

A body comes from anybody who has the token.  Nothing of it is executed or unpickled, and what it
says of its own size is checked before memory is spent on it.

Shape legend: N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.errors import DataError, shown
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import RawExamples, read_examples, table_examples
from raymeta.inference.tables import predictions
from raymeta.serving.settings import Limits
from raymeta.tasks.inputs import Inputs

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
_PLACE = Path("the body")  # what messages call it
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


class RequestError(DataError):
    """A refused request; `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def media_type(header: str | None, name: str) -> str:
    """Returns which of our types the header `Content-Type` or `Accept` names; JSON by default.

    Raises:
        RequestError: it names another.
    """
    wanted = [part.partition(";")[0].strip().lower() for part in (header or "").split(",")]
    for part in wanted:
        if part in (JSON, ARROW):
            return part
        if part in ("", "*/*", "application/*"):
            return JSON
    status = 415 if name == "Content-Type" else 406
    raise RequestError(f"{name} must be {JSON} or {ARROW}, but got {shown(header)}", status)


def examples_of(
    body: bytes, kind: str, inputs: Inputs, limits: Limits, *, with_targets: bool
) -> RawExamples:
    """Reads the examples in a body.

    Args:
        body: JSON `{"x": …}`, and `"y"` with targets: `x` as `raymeta.load(…).adapt` takes it, as
            lists; or a stream of Arrow with the columns that `raymeta adapt` takes.
        kind: its media type.
        inputs: of the networks that will read them.
        limits: of the request.
        with_targets: also reads the targets.

    Raises:
        DataError: naming the example or column, the rule, what was found and the remedy.
    """
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    if kind == ARROW:
        raw = table_examples(_table(body, limits), inputs, _PLACE, with_targets=with_targets)
    else:
        raw = _of_object(_object(body), inputs, limits, with_targets=with_targets)
    _check_sizes(raw, limits, with_targets=with_targets)
    return raw


def supports_of(body: bytes, kind: str, inputs: Inputs, limits: Limits) -> list[RawExamples]:
    """Reads the support examples of many tasks in a body.

    Args:
        body: JSON `{"tasks": [{"x": …, "y": …}, …]}`, each as for `examples_of`.
        kind: its media type.
        inputs: of the networks that will read them.
        limits: of the request.

    Raises:
        DataError: naming the task, the example, the rule, what was found and the remedy.
    """
    if kind != JSON:
        raise RequestError(f"many tasks at once must be sent as {JSON}, but got {kind}", 415)
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    found = _object(body)
    _check_keys(found, {"tasks"})
    tasks = found["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise DataError(f"{_PLACE}: tasks must be a list of tasks, but is {shown(tasks)}")
    read, count = list[RawExamples](), 0
    for number, task in enumerate(tasks, start=1):
        try:
            raw = _support_of(task, inputs, limits)
        except DataError as error:
            raise DataError(f"task {number}: {error}") from None
        count += len(raw)
        if count > limits.batch_examples:
            raise DataError(
                f"there may be at most {limits.batch_examples} examples in a request, but task "
                f"{number} is beyond; send fewer tasks at a time"
            )
        read.append(raw)
    return read


def _support_of(task: Any, inputs: Inputs, limits: Limits) -> RawExamples:
    if not isinstance(task, dict):
        raise DataError(f"must be an object with x and y, but is {shown(task)}")
    raw = _of_object(task, inputs, limits, with_targets=True)
    _check_sizes(raw, limits, with_targets=True)
    return raw


def _check_sizes(raw: RawExamples, limits: Limits, *, with_targets: bool) -> None:
    _at_most(len(raw), limits.examples, "examples")
    for name, x in zip(raw.names, raw.x, strict=True):
        unit = "characters" if isinstance(x, str) else "time steps"
        _at_most(len(x), limits.time_steps, unit, f"{name}: ")
    if with_targets and raw.y is not None and np.asarray(raw.y).dtype.kind in "UTOiub":
        _at_most(len(set(np.asarray(raw.y).ravel().tolist())), limits.classes, "classes")


def coverage_of(text: str | None) -> float | None:
    """Reads the `coverage` that a request's address asks for.

    Raises:
        DataError: it is no number within (0, 1).
    """
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise DataError(f"coverage must be a number > 0 and < 1, but got {shown(text)}")
    return found


def answer_of(
    adapted: Adapted, raw: RawExamples, kind: str, coverage: float | None = None
) -> bytes:
    """Writes the predictions for examples as a body.

    JSON has `predictions` `[N]` or `[N, O]`; for classes also `classes` `[K]` and `probabilities`
    `[N, K]`; and `ids` `[N]` where the examples have them.  With `coverage` it also has the classes
    in each prediction set, `sets` `[N]`, or the ends of intervals, `lower` and `upper` `[N]` or
    `[N, O]`, null where they are infinite.  Arrow has the columns that `raymeta predict` writes.

    Raises:
        DataError: the network's run was not calibrated, so that it has no sets or intervals.
    """
    if kind == ARROW:
        table = predictions(adapted, raw, coverage)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()
    found: dict[str, Any] = {}
    if adapted.labels is None:
        found["predictions"] = adapted.predict_raw(raw).tolist()
        if coverage is not None:
            for name, end in zip(("lower", "upper"), adapted.interval(raw, coverage), strict=True):
                known = end.astype(object)
                known[~np.isfinite(end)] = None
                found[name] = known.tolist()
    else:
        probabilities = adapted.probabilities(raw)
        found["predictions"] = adapted.labels[probabilities.argmax(axis=1)].tolist()
        found["classes"] = adapted.labels.tolist()
        found["probabilities"] = probabilities.tolist()
        if coverage is not None:
            members = adapted.set_members(raw, coverage)
            found["sets"] = [adapted.labels[row].tolist() for row in members]
    if raw.ids:
        found["ids"] = list(raw.ids)
    return json.dumps(found, ensure_ascii=False).encode()


def too_large(limits: Limits) -> RequestError:
    """Makes the error for a body above the size limit."""
    return RequestError(
        f"the body must have at most {limits.body_bytes} bytes; send fewer examples at a time", 413
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{_PLACE}: is no JSON: {reason:.200}") from None
    if not isinstance(found, dict):
        raise DataError(f"{_PLACE}: must be an object, but is {shown(found)}")
    return found


def _check_keys(found: dict[str, Any], wanted: set[str]) -> None:
    for key in sorted(wanted - found.keys()):
        raise DataError(f"{_PLACE}: {key} is required, but is not given")
    for key in sorted(found.keys() - wanted):
        rule = "the targets belong to the support examples" if key == "y" else "remove it"
        raise DataError(f"{_PLACE}: {shown(key)} is not a known key; {rule}")


def _of_object(
    found: dict[str, Any], inputs: Inputs, limits: Limits, *, with_targets: bool
) -> RawExamples:
    _check_keys(found, {"x", "y"} if with_targets else {"x"})
    x, y = found["x"], found.get("y")
    if not isinstance(x, list):
        raise DataError(f"{_PLACE}: x must be a list of examples, but is {shown(x)}")
    _at_most(len(x), limits.examples, "examples")
    for number, one in enumerate(x, start=1):
        if isinstance(one, list | str):
            _at_most(len(one), limits.time_steps, "time steps", f"example {number}: ")
        if inputs.text is None:
            _check_steps(one, number)
    raw = read_examples(x, inputs, axes=None if inputs.text is not None else "NTC")
    if not with_targets:
        return raw
    if not isinstance(y, list):
        raise DataError(f"{_PLACE}: y must be a list with a target for each example")
    if len(y) != len(raw):
        raise DataError(
            f"{_PLACE}: y must have a target for each of the {len(raw)} examples, but has {len(y)}"
        )
    for number, label in enumerate(y, start=1):
        if isinstance(label, bool) or (isinstance(label, int) and label.bit_length() > 63):
            raise DataError(
                f"y, example {number}: must be a class or a number, but got {shown(label)}"
            )
    if inputs.numeric_target:
        return replace(raw, y=np.array(_numeric_targets(y)))
    # As it stands: an array of its own kind would turn numbers among texts into texts.
    labels = np.empty(len(y), dtype=object)
    labels[:] = [tuple(label) if isinstance(label, list) else label for label in y]
    return replace(raw, y=labels)


def _check_steps(one: Any, number: int) -> None:
    """Refuses values that NumPy would convert to numbers, such as text and true."""
    for step in one if isinstance(one, list) else [one]:
        if not isinstance(step, list):
            raise DataError(
                f"example {number}: must be a list of time steps, each a list with a number for "
                f"each channel, but has {shown(step)}"
            )
        for value in step:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"example {number}: must hold numbers, but has {shown(value)}")
            if isinstance(value, int) and value.bit_length() > 1000:
                raise DataError(f"example {number}: {shown(value)} is not a number of 64 bits")


def _numeric_targets(y: list[Any]) -> list[list[float]]:
    rows = [label if isinstance(label, list) else [label] for label in y]
    for number, row in enumerate(rows, start=1):
        for value in row:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"y, example {number}: must be a number, but got {shown(value)}")
        if len(row) != len(rows[0]):
            raise DataError(f"y, example {number}: has {len(row)} outputs, not {len(rows[0])}")
    return rows


def _table(body: bytes, limits: Limits) -> pa.Table:
    """Reads the table in an Arrow stream.

    The sizes that its messages tell of are read before its columns are: a compressed column, one of
    runs or one without buffers may unfold to any size.
    """
    most = limits.examples * limits.time_steps
    try:
        rows = 0
        for metadata in _messages(body):
            kind, header = _message_header(metadata)
            if kind != _RECORD_BATCH:
                continue
            count, is_compressed = _batch_facts(metadata, header)
            if is_compressed:
                raise DataError(f"{_PLACE}: must not be compressed; write the stream without")
            rows += max(count, 0)
            _at_most(rows, most, "rows")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            for column in reader.schema:
                if not any(is_taken(column.type) for is_taken in _TAKEN):
                    raise DataError(
                        f"{_PLACE}: column {shown(column.name)} has the type {column.type!s:.100}; "
                        "send numbers or text"
                    )
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{_PLACE}: cannot be read as a stream of Arrow: {error!s:.200}") from None
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


def _at_most(count: int, most: int, what: str, name: str = "") -> None:
    if count > most:
        raise DataError(f"{name}there may be at most {most} {what} in a request, but got {count}")


def _no_number(name: str) -> None:
    raise DataError(f"{_PLACE}: {name} is not a finite number")
