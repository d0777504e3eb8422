"""Writes files whole or not at all, even if the process or disk fails."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from raymeta.errors import RunError
from raymeta.storage.paths import AnyPath, RemotePath


class WholeFile(io.FileIO):
    """A file for writing that takes its name when it is closed, if all went well until then.

    Up to that moment, and for good after a failed write or an exception in its `with` block, what
    was there before under that name stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._is_whole = True
        # Left by an earlier process of this number, or planted: never write to it.
        self._temporary.unlink(missing_ok=True)
        super().__init__(self._temporary, "wb", opener=_open_new)

    def write(self, content: Any) -> int:
        """Writes all of `content`: on an almost full disk a system call may take only a part.

        Raises:
            OSError: it cannot be written; the file will not take its name.
        """
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError:
            self._is_whole = False
            self._remove()  # now: the caller may give up without closing it
            raise
        return size

    def close(self) -> None:
        """Gives the file its name, or removes it after an error."""
        if self.closed:
            return
        try:
            if self._is_whole:
                os.fsync(self.fileno())
        except OSError:
            self._is_whole = False
            raise
        finally:
            super().close()
            if self._is_whole:
                self._temporary.replace(self._path)
            else:
                self._remove()

    def _remove(self) -> None:
        with suppress(OSError):  # read-only storage refuses removal too
            self._temporary.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_whole = self._is_whole and kind is None
        self.close()

    def __del__(self) -> None:
        self._is_whole = False  # never closed: the writer gave up
        self.close()


def _open_new(path: str, flags: int) -> int:
    """Opens a new file; fails if a file or link of that name exists."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def write_file(path: AnyPath, content: bytes) -> None:
    """Writes a file whole or not at all, and makes its folder if necessary.

    Raises:
        RunError: it cannot be written (disk full, folder gone or read-only).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(path, RemotePath):
            path.write_bytes(content)
            return
        with WholeFile(path) as file:
            file.write(content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror or error}; what was there is unharmed"
        ) from error
