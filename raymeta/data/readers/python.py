"""Gets a table from a function of the user's own, in a Python file that the user allows to run.

An experiment or a run folder may come from a stranger, and must not run code by itself.  So a file
runs only if the environment variable RAYMETA_ALLOW_CODE names it, or its SHA-256.  What runs are
the very bytes that were compared.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa

from raymeta.data.files import Stamp
from raymeta.errors import DataError, shown
from raymeta.storage.bounds import TEXT_BYTES
from raymeta.storage.paths import AnyPath, read_regular

ALLOW_CODE = "RAYMETA_ALLOW_CODE"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PythonReader:
    """Calls a function of a Python file for a table.

    Attributes:
        function: its name in the file.
        options: JSON of its arguments by name.
        others: the stamps of further files, with which the function is called anew.
    """

    function: str
    options: str
    others: tuple[Stamp, ...] = ()

    def __call__(self, path: AnyPath) -> pa.Table:
        """Calls the function twice, and returns its table.

        Raises:
            DataError: the file is not allowed to run or breaks, or the function returns no table,
                or another one when it is called again.
        """
        function = _function(path, self.function)
        place = f"{path}, {self.function}"
        options = json.loads(self.options)
        table = _table(_called(function, options, path, place), place)
        again = _table(_called(function, options, path, place), place)
        if _content(table) != _content(again):
            raise DataError(
                f"{place}: must return the same table whenever it is called, since every process "
                "of a search calls it, but the second call returned another one; seed its random "
                "numbers, and sort what comes from a set"
            )
        return table


def allowed_code() -> tuple[str, ...]:
    """The SHA-256 of every file that RAYMETA_ALLOW_CODE allows; a file that is gone allows none."""
    found = []
    for name in filter(None, os.environ.get(ALLOW_CODE, "").split(os.pathsep)):
        if _DIGEST.fullmatch(name):
            found.append(name)
            continue
        file = Path(name).expanduser()
        if file.is_file():
            found.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return tuple(found)


def allowance() -> dict[str, str]:
    """The variable for processes with another working folder, or with the file in another place."""
    allowed = allowed_code()
    return {ALLOW_CODE: os.pathsep.join(allowed)} if allowed else {}


def check_allowed(path: AnyPath) -> bytes:
    """Reads a Python file that may run.

    Raises:
        DataError: it is not allowed to run, or cannot be read.
    """
    try:
        content = read_regular(path, most=TEXT_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() not in allowed_code():
        given = os.environ.get(ALLOW_CODE)
        but = f", but it names {shown(given)}" if given else ""
        raise DataError(
            f"{path}: tasks.function asks to run the code in this file. Read it; if you trust it, "
            f"allow it: the environment variable {ALLOW_CODE} must name the file (or its "
            f"SHA-256){but}; such as {ALLOW_CODE}={path} raymeta ..."
        )
    return content


def _function(path: AnyPath, name: str) -> Callable[..., Any]:
    """Runs the file, and gets the function in it."""
    content = check_allowed(path)
    # Dataclasses look their module up by its name, which must be no other module's.
    own = f"raymeta_code_{hashlib.sha256(content).hexdigest()[:16]}"
    module = ModuleType(own)
    module.__file__ = str(path)
    sys.modules[own] = module
    linecache.checkcache(str(path))

    def run() -> None:
        exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102  (allowed above)

    _called(run, {}, path, str(path))
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise DataError(
            f"{path}: must have the function {name!r:.100} (tasks.function), but has "
            f"{known[:300] or 'none'}"
        )
    return function


def _called(
    function: Callable[..., Any], options: Mapping[str, Any], path: AnyPath, place: str
) -> Any:
    try:
        return function(**options)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        lines = [
            frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        at = f", line {lines[-1]}" if lines else ""
        given = f" (tasks.options: {shown(dict(options))})" if options else ""
        raise DataError(
            f"{place}{at}: raised {type(error).__name__}: {error!s:.300}{given}; mend it"
        ) from error


def _table(found: object, place: str) -> pa.Table:
    """Converts a function's result to a table.

    Raises:
        DataError: it is none.
    """
    try:
        if isinstance(found, pa.Table):
            table = found
        elif isinstance(found, pd.DataFrame):
            table = pa.Table.from_pandas(found, preserve_index=False)
        elif isinstance(found, Mapping):
            table = pa.table({str(name): pa.array(values) for name, values in found.items()})
        else:
            raise DataError(
                f"{place}: must return a table: a mapping of columns, a pandas DataFrame or a "
                f"pyarrow.Table, one row a time step, but returned {shown(found)}"
            )
        table.validate(full=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{place}: must return columns of one length, each of numbers, texts or dates, but "
            f"Arrow says: {error!s:.300}"
        ) from error
    return table


def _content(table: pa.Table) -> bytes:
    """A digest of all values, in which NaN equals NaN."""
    digest = hashlib.blake2b(str(table.schema.remove_metadata()).encode(), digest_size=16)
    for column in table.columns:
        array = column.combine_chunks()
        digest.update(f"{len(array)}".encode())
        sink = pa.BufferOutputStream()
        batch = pa.RecordBatch.from_arrays([array], ["x"])
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        digest.update(sink.getvalue())
    return digest.digest()
