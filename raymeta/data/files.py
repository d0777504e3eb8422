"""The files that a source reads: found by pattern, read whole, told apart by their stamps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from raymeta.errors import DataError
from raymeta.storage.paths import AnyPath, list_matching

R = TypeVar("R")

# Path, size in bytes and time of the last change.  A file with another stamp is read again.
Stamp = tuple[str, int, float]

_SHOWN = 80  # characters of a value that a message quotes


def files_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The files in `folder` whose names fit `pattern`, by name.

    Raises:
        DataError: a name fits, but is a folder or a link to nothing.
    """
    found = [path for path in list_matching(folder, pattern) if not path.name.startswith(".")]
    for path in found:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is a link to nothing, or no regular file"
            raise DataError(f"{path}: {what}; remove it, or put the file in its place")
    return found


def unread_files(folder: AnyPath, files: list[AnyPath]) -> list[str]:
    """A warning if `folder` holds files other than the `files` that are read; else none."""
    read = {path.name for path in files}
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in read and not path.name.startswith(".") and path.is_file()
    )
    if not names:
        return []
    listed = ", ".join(name[:60] for name in names[:3]) + (", …" if len(names) > 3 else "")
    return [f"{folder}: {len(names)} files are not read, since their names do not fit: {listed}"]


def stamps(files: list[AnyPath]) -> tuple[Stamp, ...]:
    """The stamp of every file.

    Raises:
        DataError: a file is gone.
    """
    found: list[Stamp] = []
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        found.append((str(path), state.st_size, state.st_mtime))
    return tuple(found)


def read_utf8(path: AnyPath, what: str) -> str:
    """The text of a file, without the byte-order mark that some editors put first.

    Args:
        path: of the file.
        what: it should be, for the message: `UNIPEN text`.

    Raises:
        DataError: the file cannot be read, is empty or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as {what}: not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read as {what}: {reason}") from error
    if not text.strip():
        raise DataError(f"{path}: cannot be read as {what}: the file is empty")
    return text


def shown(value: object) -> str:
    """A value as a message quotes it: at most 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@lru_cache(maxsize=64)
def _read(reader: Callable[[AnyPath], Any], path: AnyPath, _: Stamp) -> Any:
    return reader(path)


def read_each(reader: Callable[[AnyPath], R], files: list[AnyPath]) -> list[R]:
    """What `reader` makes of each file; within a process, a file is read again when it changes.

    Raises:
        DataError: a file is gone, or the reader refuses it.
    """
    return [_read(reader, path, stamp) for path, stamp in zip(files, stamps(files), strict=True)]
