"""Guards a run folder: its lock, its links and its owner.

Folders in storage that Arrow knows, such as buckets, have none of the three.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from raymeta.errors import RunError
from raymeta.storage.paths import AnyPath, RemotePath

_LOCK_FILE = ".lock"


@contextmanager
def locked(folder: AnyPath, wait_s: float) -> Iterator[None]:
    """Locks a folder until the process ends or the block does.

    Args:
        folder: of a run.
        wait_s: seconds to wait for a process that is about to end.

    Raises:
        RunError: another process has the lock, or it is a link.
    """
    if isinstance(folder, RemotePath):
        yield
        return
    lock = folder / _LOCK_FILE
    try:
        # Neither a link's target nor the file's content is touched.
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"{lock}: is a link, not a lock; remove it") from error
        yield  # the next write meets the same error and reports it
        return
    try:
        last = time.monotonic() + wait_s
        while not _takes(file):
            if time.monotonic() > last:
                raise RunError(
                    f"{folder}: another process searches in this run; wait for it, or end it (if "
                    f"there is none, remove {lock})"
                )
            time.sleep(0.2)
        yield
    finally:
        os.close(file)


def _takes(file: int) -> bool:
    """Takes the lock; returns whether it is held, or True if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def is_locked(folder: AnyPath) -> bool | None:
    """Whether a process has the lock; None in storage without locks."""
    if isinstance(folder, RemotePath):
        return None
    try:
        file = os.open(folder / _LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if isinstance(error, BlockingIOError) else None
    finally:
        os.close(file)
    return False


def check_links(folder: AnyPath, inner: Sequence[str], trees: Sequence[str]) -> None:
    """Refuses links out of a folder, and what is neither a file nor a folder.

    Args:
        folder: of a run.
        inner: the folders in it to look at, `""` for itself.
        trees: the folders in it to look at with all that is in them.

    Raises:
        RunError: naming the first.
    """
    if isinstance(folder, RemotePath):
        return
    top = folder.resolve()
    folders = [folder / name for name in inner]
    folders += [Path(path) for name in trees for path, _, _ in os.walk(folder / name)]
    for each in folders:
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(each):
                _refuse_elsewhere(entry, top)


def _refuse_elsewhere(entry: os.DirEntry[str], top: Path) -> None:
    """Refuses a link that leads out of `top`, or in a circle, and what is no file."""
    try:
        leads_out = entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(top)
        is_other = not entry.is_symlink() and not (entry.is_file() or entry.is_dir())
    except (OSError, RuntimeError) as error:
        raise RunError(f"{entry.path}: cannot be read: {error}; remove it") from error
    if leads_out:
        raise RunError(
            f"{entry.path}: a link that leads out of the run folder; remove it, or put what it "
            "leads to in its place"
        )
    if is_other:
        raise RunError(f"{entry.path}: is no regular file and no folder; remove it")


def check_owner(folder: AnyPath) -> None:
    """Refuses a folder of another user, or with a file of another's.

    Raises:
        RunError: naming both users.
    """
    if isinstance(folder, RemotePath):
        return
    own = _own_uid(folder)
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:  # a search that is under way writes files
            continue
        if owner != own:
            raise RunError(
                f"{path}: belongs to user {owner}, not to you ({own}).  A resumed run does what "
                "its files say; if you trust whoever wrote them, add --trust"
            )


def _own_uid(folder: Path) -> int:
    """The owner of new files in a folder: some storage maps users."""
    uid = os.geteuid()
    if folder.stat().st_uid == uid:
        return uid
    probe = folder / f".owner.{os.getpid()}"
    try:
        file = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except OSError:
        return uid
    try:
        return os.fstat(file).st_uid
    finally:
        os.close(file)
        probe.unlink()
