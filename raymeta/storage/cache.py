"""The user's cache: files that can be made anew, shared by all processes of a machine."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OLD_S = 24 * 3600.0  # of a temporary file: whoever wrote it is gone
_log = logging.getLogger(__name__)


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached files; they may be deleted at any time."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "raymeta" / kind


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Locks out other processes of this machine that want the same file.

    Files stay whole without the lock, so file systems without locks work too.
    """
    descriptor: int | None = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        _log.info("%s: cannot be locked: %s", folder, error)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_old(folder: Path, newest: Path, most_bytes: int) -> None:
    """Removes the files that were used longest ago, until the folder has at most `most_bytes`.

    A process that has mapped a file keeps its content.

    Args:
        folder: of the cache.
        newest: stays, whatever its size.
        most_bytes: of all files together.
    """
    found: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process removes files too
            state = file.lstat()
            if file.name.endswith(".tmp"):
                if time.time() - state.st_mtime > _OLD_S:
                    file.unlink()
            elif file != newest:
                found.append((state.st_mtime, state.st_size, file))
    left = most_bytes - newest.stat().st_size
    for _, size, file in sorted(found, reverse=True):
        left -= size
        if left < 0:
            with suppress(OSError):
                file.unlink()
