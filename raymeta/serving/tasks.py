"""Keeps the tasks of a server: adapted networks by id, for a time and up to a number.

They are files in one folder (or at one URI), which all replicas share.  So any replica answers for
any task, and tasks outlive replicas and updates.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from raymeta.errors import RunError
from raymeta.inference.adapted import Adapted
from raymeta.inference.files import load_adapted
from raymeta.serving.bodies import RequestError
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, list_matching, remove_file

_SUFFIX = ".raymeta"
_ID = re.compile(r"([0-9a-f]{12})-[0-9a-f]{24}")  # when it ends, in ms; and chance
MOST_OPEN = 64  # tasks that a replica has in memory


def new_id(keep_for_s: float, now: float | None = None) -> str:
    """Makes an id that nobody can guess and that tells when its task expires."""
    ends = int(((time.time() if now is None else now) + keep_for_s) * 1000)
    return f"{ends:012x}-{secrets.token_hex(12)}"


def ids_of_batch(first: str, count: int) -> list[str]:
    """Makes the ids of tasks that are adapted together: always the same ones of a first id.

    Who knows some of them can guess neither the others nor the first.
    """
    end, _, _ = first.partition("-")
    made = (
        hashlib.blake2b(f"{first} {number}".encode(), digest_size=12).hexdigest()
        for number in range(count)
    )
    return [f"{end}-{name}" for name in made]


def end_of(task_id: str) -> float | None:
    """Returns when a task expires, in seconds since the epoch; None for a malformed id."""
    found = _ID.fullmatch(task_id)
    return int(found[1], 16) / 1000 if found else None


@dataclass
class KeptTasks:
    """The tasks in a folder.

    Args:
        folder: of the tasks alone; made on demand.
        most: tasks kept at once.  Replicas count for themselves, so each may add one to a full
            store at the same moment as another.
        clock: seconds of the epoch.
    """

    folder: AnyPath
    most: int = 1000
    clock: Callable[[], float] = time.time
    _open: OrderedDict[str, Adapted] = field(default_factory=OrderedDict)

    def check_room(self, task_ids: Collection[str]) -> None:
        """Refuses tasks beyond the limit, after it has removed expired ones.

        Raises:
            RequestError: saying when there will be room.
        """
        ends = []
        for kept, end in self._ids():
            if end <= self.clock():
                self._remove(kept)
            elif kept not in task_ids:  # asked again, it takes no more room
                ends.append(end)
        if len(task_ids) > self.most:
            raise RequestError(
                f"there may be at most {self.most} tasks, but the request has {len(task_ids)}"
            )
        beyond = len(ends) + len(task_ids) - self.most
        if beyond > 0:
            wait = max(1, round(sorted(ends)[beyond - 1] - self.clock()))
            which = ("one", "the first ends") if beyond == 1 else (beyond, "so many have ended")
            raise RequestError(
                f"as many tasks are kept as may be ({self.most}); delete {which[0]}, or wait "
                f"{wait} s until {which[1]}",
                429,
            )

    def keep(self, task_id: str, adapted: Adapted) -> None:
        """Keeps a task, or replaces the one with that id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self._file(task_id), adapted.to_bytes())
        self._remember(task_id, adapted)

    def get(self, task_id: str) -> Adapted:
        """Returns the adapted network of a task.

        Raises:
            RequestError: there is none (any more).
        """
        end = end_of(task_id)
        if end is not None and end <= self.clock():
            self._remove(task_id)
            raise RequestError("this task has expired; send its support examples again", 404)
        # The file decides: another replica may have deleted the task.
        if end is None or not self._file(task_id).is_file():
            self._open.pop(task_id, None)
            raise RequestError(
                "there is no such task, or it was deleted; send its support examples again", 404
            )
        if task_id not in self._open:
            try:
                self._remember(task_id, load_adapted(self._file(task_id)))
            except RunError:  # its message names the file, which is the server's business
                raise RequestError(
                    "the file of this task is damaged; send its support examples again", 404
                ) from None
        self._open.move_to_end(task_id)
        return self._open[task_id]

    def delete(self, task_id: str) -> None:
        """Removes a task.

        Raises:
            RequestError: there is none.
        """
        self.get(task_id)
        self._remove(task_id)

    def forget(self, task_ids: Iterable[str]) -> None:
        """Removes those of the tasks that are kept."""
        for task_id in task_ids:
            self._remove(task_id)

    def count(self) -> int:
        """Counts the tasks that have not expired."""
        return sum(end > self.clock() for _, end in self._ids())

    def _ids(self) -> Iterator[tuple[str, float]]:
        if not self.folder.is_dir():
            return
        for file in list_matching(self.folder, f"*{_SUFFIX}"):
            task_id = file.name.removesuffix(_SUFFIX)
            end = end_of(task_id)
            if end is not None:
                yield task_id, end

    def _file(self, task_id: str) -> AnyPath:
        return self.folder / f"{task_id}{_SUFFIX}"

    def _remember(self, task_id: str, adapted: Adapted) -> None:
        self._open[task_id] = adapted
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)

    def _remove(self, task_id: str) -> None:
        self._open.pop(task_id, None)
        with suppress(OSError):  # another replica was faster
            remove_file(self._file(task_id))
