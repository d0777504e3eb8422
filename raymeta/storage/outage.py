"""Waits out storage outages, and tells them from removed folders."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raymeta.errors import RunError
from raymeta.storage.paths import AnyPath, RemotePath

OUTAGE_S = 300.0  # longest outage, in seconds
FIRST_PAUSE_S = 0.5  # before the second attempt; each later pause is twice as long …
LONGEST_PAUSE_S = 20.0  # … up to this one
# Errors of an unreachable share or network, but not of a full disk.
_AWAY = {
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
Result = TypeVar("Result")


class FolderGoneError(RunError):
    """A folder was removed or moved while it was in use."""


class StorageWatch:
    """A folder that must not move, in storage that may have outages.

    Args:
        folder: must hold `file` while it is watched.
        file: the name of a file in it.
        say: receives messages about outages.
    """

    def __init__(
        self, folder: AnyPath, file: str, say: Callable[[str], object] = lambda _: None
    ) -> None:
        self._folder, self._file, self._say = folder, file, say
        self._parent_id = _identity(folder)

    def check(self) -> None:
        """Refuses a removed folder; waits out an outage.

        Raises:
            FolderGoneError: the folder is gone.
            RunError: the storage stayed away for `OUTAGE_S`.
        """
        self.outlast(lambda: None)

    def outlast(self, action: Callable[[], Result]) -> Result:
        """Runs `action`, and repeats it during an outage.

        Raises:
            FolderGoneError: the folder is gone.
            RunError: the storage stayed away for `OUTAGE_S`.
            OSError, RuntimeError: the action failed, and not because of an outage.
        """
        last, pause, told = time.monotonic() + OUTAGE_S, FIRST_PAUSE_S, False
        while True:
            try:
                self._refuse_absence()
                return action()
            except (OSError, RuntimeError) as error:
                if isinstance(error, FolderGoneError) or not self._is_away(error):
                    raise
                if time.monotonic() > last:
                    raise RunError(
                        f"{self._folder}: its storage was away for {OUTAGE_S:.0f} s: {error}; mend "
                        "that and resume the run"
                    ) from error
                if not told:
                    self._say(
                        f"{self._folder}: its storage is away ({error}); waiting {OUTAGE_S:.0f} s "
                        "at most"
                    )
                    told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _refuse_absence(self) -> None:
        if (self._folder / self._file).is_file():
            return
        if isinstance(self._folder, RemotePath) or _identity(self._folder) == self._parent_id:
            raise FolderGoneError(
                f"{self._folder}: the run folder is gone: it was removed or moved during the run; "
                "put it back and resume it, or start a new run"
            )
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(self._folder))

    def _is_away(self, error: BaseException) -> bool:
        """Whether the error, or a look at the folder, shows an outage."""
        number = error.errno if isinstance(error, OSError) else None
        if number is not None and number not in _AWAY | {errno.ENOENT, errno.ENOTDIR}:
            return False
        if number in _AWAY or "NETWORK_CONNECTION" in str(error):
            return True
        try:
            self._refuse_absence()
        except FolderGoneError:
            raise
        except OSError:
            return True
        return False


def _identity(folder: AnyPath) -> tuple[int, int] | None:
    """Device and inode of the parent folder: they differ on another file system."""
    if isinstance(folder, RemotePath):
        return None
    try:
        found = Path(folder).parent.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
