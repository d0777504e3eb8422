"""The run folder: its files, and how runs are found.

RUN/run.json            the folder's format, and what the run began with
RUN/experiment.yaml     the experiment as it ran, defaults and overrides included
RUN/trials.jsonl        the record of trials, which a resumed search goes by
RUN/tune/               Ray Tune's files: checkpoints of trials, and a cache of their results
RUN/trials.json         the table of trials, for other programs
RUN/report.html         all that follows as a page for people
RUN/search/             what the model of the search makes of its space
RUN/refit/              the trials of the refit: trials.jsonl, tune/ and trials.json, as above
RUN/refit.json          which trainings of the refit were kept
RUN/best.yaml           the experiment with the best trial's values, and the refit's meta-steps
RUN/models/*.safetensors  the tuned network and the trained controls
RUN/results.json        the meta-test with its controls
RUN/scores.safetensors  the score of every query of the meta-test
RUN/drawings.json       some episodes, forecasts and the confusion, for the report
RUN/sealed.jsonl        the looks at the sealed deal
RUN/time.json           the time spent
RUN/.lock               locked by the process that searches
RUN/data/               the data of the tasks, if they are kept with the run
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from raymeta.errors import ExperimentError, RunError
from raymeta.experiment.data_files import DATA, copy_data, data_files
from raymeta.experiment.file import load_experiment, to_yaml, with_values
from raymeta.experiment.schema import Experiment
from raymeta.run_format import FORMAT_FILE, RunOrigin, read_origin
from raymeta.storage.atomic import write_file
from raymeta.storage.outage import StorageWatch
from raymeta.storage.paths import AnyPath, RemotePath, StorageError, path_at, read_regular

DEFAULT_ROOT = Path("runs")
ANALYSES_FILE = "analyses.json"  # in `Run.search_dir`
LOCK_S = 10  # to wait for a process that is about to end
_FOLDERS = {"models", "search", "tune", "refit", "refit/tune"}  # those that raymeta writes to


@dataclass(frozen=True)
class Run:
    """A run folder, on this machine or in a storage that Arrow knows.

    `part` says whose trials are meant: the search's, or those of the `refit`.
    """

    path: AnyPath
    part: Literal["search", "refit"] = "search"

    @classmethod
    def create(
        cls,
        root: AnyPath,
        experiment: Experiment,
        name: str | None = None,
        keep_data: bool = False,
        fingerprint: str = "",
    ) -> Run:
        """Makes a run's folder under `root` and writes the experiment to it.

        Args:
            root: the folder of run folders.
            experiment: what will run.
            name: of the folder; None for `run_name(experiment)`.
            keep_data: copies the data files into the folder, so that the run can move.
            fingerprint: of the data.

        Raises:
            DataError: `keep_data`, and a data file is a link to a place outside its folder.
            RunError: the folder cannot be written, or there is a run of that name.
        """
        if name is not None:
            check_run_name(name)
        stem = name or run_name(experiment)
        if keep_data:
            list(data_files(experiment))  # what cannot be copied is refused before a folder is made
        for number in range(1, 1000):
            path = root.resolve() / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if name is None:
                    continue
                raise RunError(
                    f"{path}: there is such a run; go on with it by --resume {name}, or take "
                    "another name"
                ) from None
            except OSError as error:
                raise RunError(
                    f"{path}: the run folder cannot be made: {error.strerror or error}; name a "
                    "writable one with --runs-dir"
                ) from error
            run = cls(path)
            if keep_data:
                experiment = copy_data(experiment, path)
            run.write_json(FORMAT_FILE, RunOrigin.now(experiment, fingerprint).to_json())
            # The last one: it makes the folder a run.
            write_file(run.experiment_file, to_yaml(experiment).encode())
            return run
        raise RunError(f"{root}: too many runs called {stem}")

    @classmethod
    def open(cls, name: str, root: AnyPath) -> Run:
        """The run at a path, or of a name under `root`.

        Raises:
            RunError: there is no such run, or its storage cannot be reached.
        """
        for path in (path_at(name), root / name):
            if (path / "experiment.yaml").is_file():
                return cls(path.resolve())
        known = ", ".join(run.path.name for run in runs(root)[-5:]) or "none"
        raise RunError(
            f"{name}: no run folder of that name or path; under {root} there are: {known}"
        )

    @property
    def experiment_file(self) -> AnyPath:
        """The experiment as it ran."""
        return self.path / "experiment.yaml"

    @property
    def refit(self) -> Run:
        """The same run, for the trials of its refit."""
        return replace(self, part="refit")

    @property
    def trials_dir(self) -> AnyPath:
        """The folder of the trials' files."""
        return self.path if self.part == "search" else self.path / self.part

    @property
    def tune_dir(self) -> AnyPath:
        """Ray Tune's own state."""
        return self.trials_dir / "tune"

    @property
    def search_dir(self) -> AnyPath:
        """What the model of the search makes of its space."""
        return self.path / "search"

    @property
    def importance(self) -> dict[str, float]:
        """Searched keys' shares of the metric's variance, the greatest first; empty if unknown."""
        shares: dict[str, float] | None = self.read_json("search/importance.json")
        return shares or {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run against a second search, whose files would mix with ours.

        The lock ends with the process.  Storage without locks, as buckets are, is not locked.

        Raises:
            RunError: another process searches in the run, or a link leads out of its folder.
        """
        if isinstance(self.path, RemotePath):
            yield
            return
        self._check_links(self.path)
        lock = self.path / ".lock"
        try:
            # Neither a link's target nor what is in the file is touched.
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunError(f"{lock}: is a link, not a lock; remove it") from error
            yield  # the next file to be written meets the same error, and says so
            return
        try:
            last = time.monotonic() + LOCK_S
            while not _is_locked(file):
                if time.monotonic() > last:
                    raise RunError(
                        f"{self.path}: another process searches in this run; wait for it, or end "
                        f"it (if there is none, remove {lock})"
                    )
                time.sleep(0.2)
            yield
        finally:
            os.close(file)

    @property
    def is_locked(self) -> bool | None:
        """Whether a process is at work in the run; None where storage has no locks."""
        if isinstance(self.path, RemotePath):
            return None
        try:
            file = os.open(self.path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return True if isinstance(error, BlockingIOError) else None
        finally:
            os.close(file)
        return False

    def _check_links(self, folder: Path) -> None:
        """Refuses links by which a file of the run would be written elsewhere."""
        top = Path(str(self.path)).resolve()
        for entry in os.scandir(folder):
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(top):
                raise RunError(
                    f"{entry.path}: a link that leads out of the run folder, where raymeta writes; "
                    "remove it, or put what it leads to in its place"
                )
            inner = Path(entry.path)
            if str(inner.relative_to(str(self.path))) in _FOLDERS and entry.is_dir():
                self._check_links(inner)

    def check_owner(self) -> None:
        """Refuses the folder of another user: what is in it decides what a resumed run does.

        Raises:
            RunError: another user owns the folder or one of its files.
        """
        if isinstance(self.path, RemotePath):
            return
        own = self._own_uid()
        for path in (self.path, *sorted(self.path.iterdir())):
            owner = path.lstat().st_uid
            if owner != own:
                raise RunError(
                    f"{path}: belongs to user {owner}, not to you ({own}).  A resumed run does "
                    "what its files say; if you trust whoever wrote them, add --trust"
                )

    def _own_uid(self) -> int:
        """The user whom new files in the folder belong to: some storage maps users."""
        uid = os.geteuid()
        if Path(str(self.path)).stat().st_uid == uid:
            return uid
        probe = Path(str(self.path)) / f".owner.{os.getpid()}"
        try:
            file = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        except OSError:
            return uid
        try:
            return os.fstat(file).st_uid
        finally:
            os.close(file)
            probe.unlink()

    def watch(self, say: Callable[[str], object] = lambda _: None) -> StorageWatch:
        """Watches the folder during a search: it may be removed, or its storage be away."""
        return StorageWatch(self.path, "experiment.yaml", say)

    @property
    def has_format(self) -> bool:
        """Whether raymeta 0.2 or later made it: the folders of 0.1 say nothing of themselves."""
        return self.origin is not None or (self.path / "trials.jsonl").is_file()

    @property
    def origin(self) -> RunOrigin | None:
        """What the run began with; None for a run of raymeta 0.1.

        Raises:
            RunError: the file is damaged.
        """
        return read_origin(self.path / FORMAT_FILE)

    def experiment(self) -> Experiment:
        """The experiment as it ran.

        Raises:
            RunError: the file is damaged, or a later raymeta made the run.
        """
        origin = self.origin
        if origin is not None:
            origin.check_format(self.path)
        return self._load(self.experiment_file)

    def unresolved_experiment(self) -> Experiment:
        """The experiment as its file has it, where data in the run folder have no full path."""
        return _read(self.experiment_file)

    def best_experiment(self) -> Experiment:
        """The experiment with the best trial's values in it.

        Raises:
            RunError: the search has not ended.
        """
        if not self.has_best:
            raise RunError(
                f"{self.path}: has no best trial yet; go on with `{self.resume_command}`"
            )
        return self._load(self.path / "best.yaml")

    def _load(self, file: AnyPath) -> Experiment:
        experiment = _read(file)
        if experiment.tasks.data_dir != DATA:
            return experiment
        return with_values(experiment, {"tasks.data_dir": str(self.path / DATA)})

    def keep_best(self, point: Mapping[str, object]) -> None:
        """Writes the experiment with the best trial's values in it."""
        best = with_values(self.unresolved_experiment(), point)
        write_file(self.path / "best.yaml", to_yaml(best).encode())

    def model_file(self, name: str) -> AnyPath:
        """The file of a network: `tuned`, `tuned-1` …, `default` or `joint`."""
        return self.path / "models" / f"{name}.safetensors"

    def write_json(self, name: str, content: Any) -> None:
        """Writes `RUN/name`, whole or not at all."""
        write_file(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """Reads `RUN/name`; None if there is no such file.

        Raises:
            RunError: the file is damaged or cannot be read.
        """
        path = self.path / name
        try:
            return json.loads(read_regular(path))
        except FileNotFoundError:
            return None
        except StorageError:
            raise
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: is damaged: {error}; remove it and go on") from error

    @property
    def seconds(self) -> float:
        """The time spent on the run so far, over all sessions."""
        content = self.read_json("time.json")
        spent = content.get("seconds", 0.0) if isinstance(content, dict) else 0.0
        return float(spent) if isinstance(spent, int | float) else 0.0

    def add_seconds(self, seconds: float) -> None:
        """Adds to the time spent."""
        self.write_json("time.json", {"seconds": self.seconds + seconds})

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        try:
            command = "tune" if _read(self.experiment_file).search.space else "train"
        except (RunError, ExperimentError):
            command = "tune"
        return f"raymeta {command} --resume {shlex.quote(str(self.path))}"

    @property
    def has_best(self) -> bool:
        """Whether the search has ended."""
        return (self.path / "best.yaml").is_file()

    @property
    def status(self) -> str:
        """`done`, or how far it came."""
        if (self.path / "results.json").is_file():
            return "done"
        if self.has_best:
            return "searched"
        return "refitting" if self.refit.trials_dir.is_dir() else "unfinished"


def _read(file: AnyPath) -> Experiment:
    """An experiment in a run folder.

    Raises:
        RunError: it cannot be read, or is not valid.
    """
    try:
        return load_experiment(str(file))
    except ExperimentError as error:
        raise RunError(
            f"{file}: cannot be used: {error}; put back a copy of the file, or start a new run"
        ) from error


def _is_locked(file: int) -> bool:
    """Whether the lock is ours now; True as well if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def is_run_name(name: str) -> bool:
    """Whether a folder of a run may have this name: never a path, an option or a hidden file."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name) is not None


def check_run_name(name: str) -> None:
    """Refuses what cannot name the folder of a run.

    Raises:
        RunError: saying what a name takes.
    """
    if not is_run_name(name):
        raise RunError(
            "the name of a run takes at most 200 letters, digits, `_`, `.` and `-`, but got "
            f"{name!r:.100}"
        )


def run_name(experiment: Experiment) -> str:
    """The name of a run that begins now: NAME-DATE-TIME."""
    return f"{experiment.name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def runs(runs_dir: str | AnyPath = DEFAULT_ROOT) -> list[Run]:
    """All runs under a folder or URI, the oldest first.

    Raises:
        RunError: the storage cannot be reached.
    """
    root = path_at(runs_dir)
    if not root.is_dir():
        return []
    found = [path.parent for path in root.glob("*/experiment.yaml")]
    return [
        Run(path)
        for path in sorted(found, key=lambda p: ((p / "experiment.yaml").stat().st_mtime, p.name))
    ]
