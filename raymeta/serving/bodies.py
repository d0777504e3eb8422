"""Reads the bodies of requests, and writes those of answers, in JSON and Arrow, within limits.

A body comes from anybody who has the token.  Nothing of it is executed or unpickled, and what it
says of its own size is checked before memory is spent on it.

Shape legend: N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.errors import DataError, shown
from raymeta.inference.answers import Answers
from raymeta.inference.examples import RawExamples, needed_columns, read_examples, table_examples
from raymeta.inference.tables import answers_table
from raymeta.serving.arrow import PLACE, TASK, by_task, joined_by_task, read_stream, stream_of
from raymeta.serving.settings import Limits
from raymeta.tasks.inputs import Inputs

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
_ROWS = Path("its rows")  # what messages call those of one task among many


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
        table = read_stream(body, limits.examples * limits.time_steps)
        raw = table_examples(table, inputs, PLACE, with_targets=with_targets)
    else:
        raw = _of_object(object_of(body), inputs, limits, with_targets=with_targets)
    _check_sizes(raw, limits, with_targets=with_targets)
    return raw


@dataclass(frozen=True)
class Part:
    """What a request for many tasks says of one of them.

    `task` is the task's id, or in support examples what the client calls it; None where it has no
    word for it.  `name` is what messages call the task.
    """

    task: str | None
    name: str
    content: dict[str, Any] | pa.Table

    def examples(self, inputs: Inputs, limits: Limits, *, with_targets: bool) -> RawExamples:
        """Reads its examples, as `examples_of` does."""
        if isinstance(self.content, pa.Table):
            if TASK in needed_columns(inputs, with_targets=with_targets):
                raise DataError(
                    f"the network reads a column {TASK!r} of its own, which cannot also name tasks;"
                    f" send {JSON}, or one task at a time"
                )
            raw = table_examples(self.content, inputs, _ROWS, with_targets=with_targets)
        else:
            raw = _of_object(self.content, inputs, limits, with_targets=with_targets)
        _check_sizes(raw, limits, with_targets=with_targets)
        return raw

    @contextmanager
    def named(self) -> Iterator[None]:
        """Names the task in the errors of data that are raised inside."""
        try:
            yield
        except DataError as error:
            status = error.status if isinstance(error, RequestError) else 400
            raise RequestError(f"{self.name}: {error}", status) from None


def parts_of(body: bytes, kind: str, limits: Limits, *, with_targets: bool) -> list[Part]:
    """Reads a body for many tasks, apart from the examples themselves.

    Args:
        body: JSON `{"tasks": [{"x": …, "y": …}, …]}`, or without targets `{"tasks": [{"id": …,
            "x": …}, …]}`; or a stream of Arrow whose column `task` has the id of each row's task,
            or with targets any name of it.
        kind: its media type.
        limits: of the request.
        with_targets: the examples are those of support sets.

    Raises:
        DataError: naming the task, the rule, what was found and the remedy.
    """
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    if kind == ARROW:
        table = read_stream(body, limits.batch_examples * limits.time_steps)
        tables = by_task(table, limits.batch_examples)
        return [Part(name, f"task {shown(name)}", rows) for name, rows in tables.items()]
    found = object_of(body)
    check_keys(found, {"tasks"})
    tasks = found["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise DataError(f"{PLACE}: tasks must be a list of tasks, but is {shown(tasks)}")
    keys = "x and y" if with_targets else "id and x"
    parts = []
    for number, task in enumerate(tasks, start=1):
        name = f"task {number}"
        if not isinstance(task, dict):
            raise DataError(f"{name}: must be an object with {keys}, but is {shown(task)}")
        if with_targets:
            parts.append(Part(None, name, task))
            continue
        if not isinstance(task.get("id"), str):
            raise DataError(
                f"{name}: id must be the id of a task, as text, but is {shown(task.get('id'))}"
            )
        rest = {key: value for key, value in task.items() if key != "id"}
        parts.append(Part(task["id"], name, rest))
    return parts


def check_total(count: int, part: Part, limits: Limits) -> None:
    """Refuses a request at the part whose examples are too many with those before.

    Raises:
        DataError: naming the task.
    """
    if count > limits.batch_examples:
        raise DataError(
            f"there may be at most {limits.batch_examples} examples in a request, but {part.name} "
            "is beyond; send fewer tasks at a time"
        )


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


@dataclass(frozen=True)
class Predicted:
    """What a task's networks answered for the examples of a request; `task` is its id."""

    task: str
    raw: RawExamples
    inputs: Inputs
    answers: Answers

    def to_json(self, coverage: float | None) -> dict[str, Any]:
        """Plain values.

        They are `predictions` `[N]` or `[N, O]`; for classes also `classes` `[K]` and
        `probabilities` `[N, K]`; and `ids` `[N]` where the examples have them.  With `coverage` the
        classes in each prediction set, `sets` `[N]`, or the ends of intervals, `lower` and `upper`
        `[N]` or `[N, O]`, null where they are infinite.

        Raises:
            DataError: the network's run was not calibrated, so that it has no sets or intervals.
        """
        answers = self.answers
        found: dict[str, Any] = {"predictions": answers.predicted.tolist()}
        if answers.labels is not None:
            found["classes"] = answers.labels.tolist()
            found["probabilities"] = answers.outputs.tolist()
            if coverage is not None:
                members = answers.members(coverage)
                found["sets"] = [answers.labels[row].tolist() for row in members]
        elif coverage is not None:
            for name, end in zip(("lower", "upper"), answers.interval(coverage), strict=True):
                known = end.astype(object)
                known[~np.isfinite(end)] = None
                found[name] = known.tolist()
        if self.raw.ids:
            found["ids"] = list(self.raw.ids)
        return found

    def to_table(self, coverage: float | None) -> pa.Table:
        """The columns that `raymeta predict` writes.

        Raises:
            DataError: as `to_json`.
        """
        return answers_table(self.answers, self.raw, self.inputs, coverage)


def answer_of(found: Predicted, kind: str, coverage: float | None = None) -> bytes:
    """Writes the predictions of a task as a body of the media type `kind`.

    Raises:
        DataError: as `Predicted.to_json`.
    """
    if kind == ARROW:
        return stream_of(found.to_table(coverage))
    return json.dumps(found.to_json(coverage), ensure_ascii=False).encode()


def answer_of_many(
    found: Sequence[Predicted], kind: str, limits: Limits, coverage: float | None = None
) -> bytes:
    """Writes the predictions of many tasks, in their order, as a body of the media type `kind`.

    JSON is `{"tasks": [{"id": …, "predictions": …, …}, …]}`.  Arrow has the id in a column `task`
    and the columns of all tasks, empty where a task has no such class.

    Raises:
        DataError: as `Predicted.to_json`; or the tasks have together more classes than a table may
            have columns for.
    """
    if kind == JSON:
        tasks = [{"id": one.task, **one.to_json(coverage)} for one in found]
        return json.dumps({"tasks": tasks}, ensure_ascii=False).encode()
    classes = {
        str(label)
        for one in found
        if one.answers.labels is not None
        for label in one.answers.labels.tolist()
    }
    if len(classes) > limits.classes:
        raise DataError(
            f"the tasks of an answer in {ARROW} may have at most {limits.classes} classes "
            f"together, but have {len(classes)}; accept {JSON}, or send fewer tasks at a time"
        )
    return stream_of(joined_by_task([(one.task, one.to_table(coverage)) for one in found]))


def too_large(limits: Limits) -> RequestError:
    """Makes the error for a body above the size limit."""
    return RequestError(
        f"the body must have at most {limits.body_bytes} bytes; send fewer examples at a time", 413
    )


def object_of(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: the body is none.
    """
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{PLACE}: is no JSON: {reason:.200}") from None
    if not isinstance(found, dict):
        raise DataError(f"{PLACE}: must be an object, but is {shown(found)}")
    return found


def check_keys(found: dict[str, Any], wanted: set[str], optional: Collection[str] = ()) -> None:
    """Refuses an object that lacks a wanted key, or has one that is neither wanted nor optional.

    Raises:
        DataError: naming the key.
    """
    for key in sorted(wanted - found.keys()):
        raise DataError(f"{PLACE}: {key} is required, but is not given")
    for key in sorted(found.keys() - wanted - set(optional)):
        rule = "the targets belong to the support examples" if key == "y" else "remove it"
        raise DataError(f"{PLACE}: {shown(key)} is not a known key; {rule}")


def _of_object(
    found: dict[str, Any], inputs: Inputs, limits: Limits, *, with_targets: bool
) -> RawExamples:
    check_keys(found, {"x", "y"} if with_targets else {"x"})
    x, y = found["x"], found.get("y")
    if not isinstance(x, list):
        raise DataError(f"{PLACE}: x must be a list of examples, but is {shown(x)}")
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
        raise DataError(f"{PLACE}: y must be a list with a target for each example")
    if len(y) != len(raw):
        raise DataError(
            f"{PLACE}: y must have a target for each of the {len(raw)} examples, but has {len(y)}"
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


def _at_most(count: int, most: int, what: str, name: str = "") -> None:
    if count > most:
        raise DataError(f"{name}there may be at most {most} {what} in a request, but got {count}")


def _no_number(name: str) -> None:
    raise DataError(f"{PLACE}: {name} is not a finite number")
