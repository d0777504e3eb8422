"""Finds a source's files by pattern, reads them whole, and stamps them to notice changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from raymeta.errors import DataError
from raymeta.storage.bounds import TEXT_BYTES
from raymeta.storage.paths import AnyPath, RemotePath, list_matching, read_regular

R = TypeVar("R")

# Path, size in bytes and time of the last change.  A file with another stamp is read again.
Stamp = tuple[str, int, float]

# How the names of table files end; `raymeta.data.readers.arrow` reads them.
TABLE_SUFFIXES = (
    *(".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".feather", ".arrow"),
    *(".ts", ".tsf"),
)


def files_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Lists the files in `folder` whose names match `pattern`, sorted by name.

    Raises:
        DataError: a name fits, but is a folder or a link to nothing.
    """
    found = [path for path in list_matching(folder, pattern) if not path.name.startswith(".")]
    for path in found:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is a link to nothing, or no regular file"
            raise DataError(f"{path}: {what}; remove it, or put the file in its place")
    return found


def table_files(folder: AnyPath, names: Sequence[str]) -> list[AnyPath]:
    """Lists the table files in `folder`, sorted, each once.

    Args:
        folder: to look into.
        names: file names or patterns; empty for every table file directly in the folder.

    Raises:
        DataError: a name fits, but is a folder, a link to nothing, or leads out of the folder.
    """
    patterns = names or [f"*{suffix}" for suffix in TABLE_SUFFIXES]
    found = {str(file): file for name in patterns for file in files_in(folder, name)}
    for file in found.values():
        refuse_outside(folder, file)
    return [found[name] for name in sorted(found)]


def within(folder: AnyPath, file: AnyPath) -> str:
    """A file's path relative to its folder."""
    if isinstance(file, RemotePath) and isinstance(folder, RemotePath):
        return file.path.removeprefix(folder.path).lstrip("/")
    return Path(str(file)).relative_to(Path(str(folder))).as_posix()


def refuse_outside(folder: AnyPath, file: AnyPath) -> None:
    """Refuses a link that leads out of the folder, possibly to private files.

    Raises:
        DataError: naming the link.
    """
    if not isinstance(file, Path) or not isinstance(folder, Path):
        return  # a bucket has no links
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{file}: is a link to a file outside of tasks.data_dir, which is neither read nor "
            "copied; put the file itself into the folder"
        )


def unread_files(
    folder: AnyPath, files: list[AnyPath], suffixes: tuple[str, ...] = ("",)
) -> list[str]:
    """Warns if `folder` holds files besides the `files` that are read.

    Args:
        folder: to look into.
        files: that are read.
        suffixes: only files with these suffixes are reported; by default all are.
    """
    read = {path.name for path in files}
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in read
        and path.name.lower().endswith(suffixes)
        and not path.name.startswith(".")
        and path.is_file()
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
    """Reads a file's text without the byte-order mark that some editors put first.

    Args:
        path: of the file.
        what: the expected content, for the message, such as `UNIPEN text`.

    Raises:
        DataError: the file cannot be read, is empty or is not UTF-8.
    """
    try:
        text = read_regular(path, most=TEXT_BYTES).decode("utf-8-sig")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
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


def digest_of(files: list[AnyPath]) -> str:
    """Computes a digest of files: of their content; of those in a bucket, of size and time.

    Raises:
        DataError: a file is gone, or cannot be read.
    """
    digest = hashlib.sha256()
    for path, stamp in zip(files, stamps(files), strict=True):
        content = str(stamp) if isinstance(path, RemotePath) else _content_digest(stamp)
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _content_digest(stamp: Stamp) -> str:
    path = Path(stamp[0])
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _read(reader: Callable[[AnyPath], Any], path: AnyPath, _: Stamp) -> Any:
    return reader(path)


def read_each(reader: Callable[[AnyPath], R], files: list[AnyPath]) -> list[R]:
    """Reads each file with `reader`; within a process, a file is read again only if it changed.

    Raises:
        DataError: a file is gone, or the reader refuses it.
    """
    return [_read(reader, path, stamp) for path, stamp in zip(files, stamps(files), strict=True)]


def forget_read() -> None:
    """Frees what `read_each` has read; what is in use elsewhere stays."""
    _read.cache_clear()
