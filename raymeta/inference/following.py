"""Answers while sequences come in: a row of a time step in, a row of the answer out.

Every sequence has a stream of its own (`Adapted.stream`), which keeps its state; sequences may
alternate row by row.

Shape legend: C channels, K classes, O outputs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from raymeta.errors import DataError, shown
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import check_columns
from raymeta.inference.stream import Stream

FollowFormat = Literal["csv", "jsonl"]
MOST_SEQUENCES = 100_000  # each holds a state; more would fill the memory in silence
_MOST_LINE = 1 << 20  # characters
_PLACE = Path("standard input")


def follow(adapted: Adapted, source: TextIO, kind: FollowFormat) -> Iterator[str]:
    """Yields the lines of the answers, one for each row as soon as it is read.

    A row has the experiment's columns of sequence, time (if it has one) and features; others are
    left alone.  An answer has the sequence's id, `step` from 1, and the columns of
    `raymeta.inference.tables.predictions` but sets and intervals: what `Adapted.predict` says of
    the sequence up to that step.  CSV has a line of names first, in and out.

    Args:
        adapted: answers.
        source: of the rows; read line by line.
        kind: of rows and answers.

    Raises:
        DataError: the network needs whole sequences, or a row breaks a rule; naming the line.
    """
    inputs = adapted.trained.inputs
    adapted.stream()  # it refuses what cannot be streamed before anything is read
    streams: dict[Any, Stream] = {}
    times: dict[Any, float] = {}
    names = answer_names(adapted)
    if kind == "csv":
        yield _csv_line(names)
    for place, row in _rows(source, kind, adapted):
        sequence = place if inputs.sequence is None else row[inputs.sequence]
        if inputs.sequence is None:
            streams.clear()  # every row is an example
            times.clear()
        elif sequence in (None, "") or not isinstance(sequence, str | int):
            raise DataError(
                f"{place}: column {inputs.sequence} must name the row's sequence, a text or a "
                f"whole number, but is {shown(sequence)}"
            )
        if inputs.time is not None:
            now = _time(row[inputs.time], place, inputs.time)
            if sequence in times and now <= times[sequence]:
                raise DataError(
                    f"{place}: column {inputs.time} must grow from row to row of a sequence, but "
                    f"{shown(row[inputs.time])} is not after the row before of {shown(sequence)}; "
                    "sort the rows, or use predict without --follow"
                )
            times[sequence] = now
        stream = streams.get(sequence)
        if stream is None:
            if len(streams) >= MOST_SEQUENCES:
                raise DataError(
                    f"{place}: begins a sequence more than {MOST_SEQUENCES}, which is as many as "
                    "are kept; begin a new stream for others"
                )
            stream = streams[sequence] = adapted.stream()
        if stream.num_steps == inputs.stream_steps:
            raise DataError(
                f"{place}: {shown(sequence)} has {stream.num_steps} time steps already, the most "
                "that the network was trained on; name its further rows otherwise in column "
                f"{inputs.sequence}, as a sequence that begins there"
            )
        x = np.array([_number(row[name], place, name) for name in inputs.channels])
        try:
            (answer,) = stream.step(x)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        values: list[Any] = [] if inputs.sequence is None else [sequence, stream.num_steps]
        if adapted.labels is not None:
            values.append(adapted.labels[answer.argmax()].item())
        values += answer.tolist()
        yield (
            _csv_line(values)
            if kind == "csv"
            else json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) + "\n"
        )


def answer_names(adapted: Adapted) -> list[str]:
    """The columns of answers.

    Raises:
        DataError: the sequence's column has the name of another.
    """
    names = []
    if adapted.labels is not None:
        names += ["prediction", *(f"probability_{label}" for label in adapted.labels.tolist())]
    elif adapted.trained.recipe.spec.num_outputs == 1:
        names.append("prediction")
    else:
        names += [f"prediction_{n + 1}" for n in range(adapted.trained.recipe.spec.num_outputs)]
    sequence = adapted.trained.inputs.sequence
    if sequence is None:
        return names
    names = [sequence, "step", *names]
    if len(set(names)) < len(names):
        raise DataError(f"the column {sequence!r} of sequences has the name of one of predictions")
    return names


def _rows(
    source: TextIO, kind: FollowFormat, adapted: Adapted
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row by its columns, and what messages call it; empty lines are left out."""
    inputs = adapted.trained.inputs
    header: list[str] | None = None
    for number, line in _lines(source):
        place = f"{_PLACE}, line {number}"
        if kind == "jsonl":
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: is no JSON: {error!s:.200}") from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: must be an object of columns, but is {shown(row)}")
            check_columns(list(row), inputs, Path(place), with_targets=False)
            yield place, row
            continue
        try:
            (cells,) = csv.reader([line], strict=True)
        except (csv.Error, ValueError) as error:
            raise DataError(f"{place}: is no line of CSV: {error!s:.200}") from None
        if header is None:
            header = cells
            check_columns(header, inputs, _PLACE, with_targets=False)
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{place}: must have {len(header)} columns as the first line has, but has "
                f"{len(cells)}"
            )
        yield place, dict(zip(header, cells, strict=True))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one of two values of a name would be dropped without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two values have one name")
    return found


def _lines(source: TextIO) -> Iterator[tuple[int, str]]:
    """The lines with something in them, numbered from 1; without their ends."""
    number = 0
    try:
        while line := source.readline(_MOST_LINE + 1):
            number += 1
            if len(line) > _MOST_LINE:
                raise DataError(f"{_PLACE}, line {number}: has more than {_MOST_LINE} characters")
            text = line.rstrip("\r\n")
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield number, text
    except UnicodeDecodeError as error:
        raise DataError(f"{_PLACE}, line {number + 1}: is not UTF-8 ({error.reason})") from None


def _number(value: Any, place: str, name: str) -> float:
    """A channel's value; whether it is finite is the stream's to say."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise DataError(f"{place}, column {name}: must be a number, but is {shown(value)}")


def _time(value: Any, place: str, name: str) -> float:
    """A time as a number, or a date as its seconds."""
    try:
        found = _number(value, place, name)
    except DataError:
        found = np.nan
        if isinstance(value, str):
            with suppress(ValueError):
                moment = datetime.fromisoformat(value)
                found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not np.isfinite(found):
        raise DataError(
            f"{place}, column {name}: must be a number or a date such as 2026-01-31T12:00, but is "
            f"{shown(value)}"
        )
    return found


def _csv_line(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
