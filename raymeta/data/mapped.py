"""Arrays in an Arrow file of the user's cache, mapped into memory: processes share their pages.

A file's name holds a digest of its content, which is checked before Arrow reads any of it: a
damaged file, or one of another user, is made anew.  It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.storage.atomic import WholeFile
from raymeta.storage.bounds import parse_json
from raymeta.storage.cache import remove_old

_MOST_BYTES = 16 << 30  # of all files in the folder
_DIGITS = 32  # of a key and of a digest, in a file's name
_HEAD = b"raymeta"  # key of the schema's metadata
_log = logging.getLogger(__name__)


class _Digesting:
    """Passes what Arrow writes on to a file, and computes its digest."""

    def __init__(self, file: WholeFile) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    closed = False

    def write(self, content: Any) -> int:
        """Writes all of it."""
        self.sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Does nothing; Arrow calls it."""


def keep_arrays(
    folder: Path, key: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Writes arrays of numbers, and facts that JSON can hold, to a file of the folder.

    Args:
        folder: of the cache.
        key: names what the arrays are, in hexadecimal digits.
        arrays: by name, of any shape.
        facts: about them.

    Raises:
        OSError: the file cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    columns = [
        pa.LargeListArray.from_arrays(
            pa.array([0, value.size], pa.int64()), pa.array(np.ascontiguousarray(value).reshape(-1))
        )
        for value in arrays.values()
    ]
    shapes = {name: list(value.shape) for name, value in arrays.items()}
    head = json.dumps({"key": key, "shapes": shapes, "facts": facts})
    batch = pa.RecordBatch.from_arrays(columns, list(arrays))
    batch = batch.replace_schema_metadata({_HEAD: head.encode()})
    unnamed = folder / f"{key[:_DIGITS]}.new.tmp"
    with WholeFile(unnamed) as file:
        sink = _Digesting(file)
        with pa.ipc.new_file(pa.PythonFile(sink, "w"), batch.schema) as writer:
            writer.write_batch(batch)
    named = folder / f"{key[:_DIGITS]}-{sink.sha256.hexdigest()[:_DIGITS]}.arrow"
    unnamed.replace(named)
    remove_old(folder, named, _MOST_BYTES)


def open_arrays(folder: Path, key: str) -> tuple[dict[str, np.ndarray], Any] | None:
    """Maps what `keep_arrays` wrote; None if there is nothing of this key.

    Returns:
        The arrays, which cannot be written to, and the facts.
    """
    for file in sorted(folder.glob(f"{key[:_DIGITS]}-*.arrow")):
        try:
            return _opened(file, key)
        except (OSError, ValueError, pa.ArrowException) as error:
            _log.warning("%s: cannot be used and is made anew: %s", file, error)
            with suppress(OSError):
                file.unlink()
    return None


def _opened(file: Path, key: str) -> tuple[dict[str, np.ndarray], Any]:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid():
            raise ValueError("it is another user's file, or no regular one")
        content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        with suppress(OSError):  # on a file system that is read-only
            os.utime(descriptor)  # files that were used longest ago are removed first
    finally:
        os.close(descriptor)
    if hashlib.sha256(content).hexdigest()[:_DIGITS] != file.stem.rpartition("-")[2]:
        raise ValueError("it is damaged")
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content)))
    head = parse_json(reader.schema.metadata[_HEAD])
    if head["key"] != key:
        raise ValueError("it is of other data")
    batch = reader.get_batch(0)
    arrays = {
        name: batch.column(name).values.to_numpy(zero_copy_only=True).reshape(shape)
        for name, shape in head["shapes"].items()
    }
    return arrays, head["facts"]
