"""The run folder: where everything about a run is kept, and how it is found again.

RUN/experiment.yaml     the experiment as it ran, defaults and overrides included
RUN/tune/               Ray Tune's own state: trials, their results and checkpoints
RUN/trials.json         the table of trials
RUN/search/             what the search has found out: report.html and its data
RUN/best.yaml           the experiment with the best trial's values in it
RUN/models/*.safetensors  the tuned network and the trained controls
RUN/results.json        the meta-test with its controls
RUN/time.json           the time spent
RUN/.lock               held by the process that searches
RUN/data/               the data of the tasks, where they were to be kept with the run
"""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from raymeta.errors import RunError
from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment, to_yaml, with_values
from raymeta.files import write_file
from raymeta.remote import AnyPath, RemotePath, found_in, path_at

DEFAULT_ROOT = Path("runs")
LOCK_S = 10  # that a process which has been told to end may take
_DATA = "data"


@dataclass(frozen=True)
class Run:
    """A run folder, on this machine or in any storage that Arrow knows."""

    path: AnyPath

    @classmethod
    def create(
        cls,
        root: AnyPath,
        experiment: Experiment,
        name: str | None = None,
        keep_data: bool = False,
    ) -> Run:
        """Makes the run's folder under `root` and keeps the experiment in it.

        Args:
            root: where run folders are kept.
            experiment: what will run.
            name: of the folder; None for `run_name(experiment)`.
            keep_data: copies `tasks.data_dir` into the folder, which is then whole wherever it is.

        Raises:
            RunError: the folder cannot be written, or there is one of that name.
        """
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise RunError(
                f"the name of a run takes letters, digits, `_`, `.` and `-`, but got {name!r}"
            )
        stem = name or run_name(experiment)
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
            folder = getattr(experiment.tasks, "data_dir", None)
            if keep_data and folder is not None:
                for file in found_in(path_at(folder), "*"):
                    if file.is_file():
                        write_file(path / _DATA / file.name, file.read_bytes())
                experiment = with_values(experiment, {"tasks.data_dir": _DATA})
            write_file(run.experiment_file, to_yaml(experiment).encode())
            return run
        raise RunError(f"{root}: too many runs called {stem}")

    @classmethod
    def open(cls, name: str, root: AnyPath) -> Run:
        """The run at a path, or of a name under `root`.

        Raises:
            RunError: there is none.
        """
        for path in (path_at(name), root / name):
            if (path / "experiment.yaml").is_file():
                return cls(path.resolve())
        known = ", ".join(run.path.name for run in list_runs(root)[-5:]) or "none"
        raise RunError(
            f"{name}: no run folder of that name or path; under {root} there are: {known}"
        )

    @property
    def experiment_file(self) -> AnyPath:
        """The experiment as it ran."""
        return self.path / "experiment.yaml"

    @property
    def tune_dir(self) -> AnyPath:
        """Ray Tune's own state."""
        return self.path / "tune"

    @property
    def search_dir(self) -> AnyPath:
        """What the search has found out about its space."""
        return self.path / "search"

    @property
    def importance(self) -> dict[str, float]:
        """Searched keys' shares of the metric's variance, the greatest first; empty if unknown."""
        shares: dict[str, float] | None = self.read_json("search/importance.json")
        return shares or {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others from searching in this run meanwhile, whose files would mix with ours.

        The lock goes with the process, however it ends.  Storage that knows no locks, as buckets
        do, has none.

        Raises:
            RunError: another process searches in it.
        """
        if isinstance(self.path, RemotePath):
            yield
            return
        lock = self.path / ".lock"
        try:
            file = lock.open("wb")
        except OSError:  # what must be written next will tell of it
            yield
            return
        with file:
            last = time.monotonic() + LOCK_S
            while not _is_locked(file):
                if time.monotonic() > last:
                    raise RunError(
                        f"{self.path}: another process searches in this run; let it come to its "
                        f"end, or end it first (if there is none, remove {lock})"
                    )
                time.sleep(0.2)
            yield

    def experiment(self) -> Experiment:
        """The experiment as it ran."""
        return self._load(self.experiment_file)

    def best_experiment(self) -> Experiment:
        """The experiment with the best trial's values in it.

        Raises:
            RunError: the search has not come to its end.
        """
        if not self.has_best:
            raise RunError(
                f"{self.path}: has no best trial yet; go on with `{self.resume_command}`"
            )
        return self._load(self.path / "best.yaml")

    def _load(self, file: AnyPath) -> Experiment:
        experiment = load_experiment(str(file))
        if getattr(experiment.tasks, "data_dir", None) != _DATA:
            return experiment
        return with_values(experiment, {"tasks.data_dir": str(self.path / _DATA)})

    def keep_best(self, point: Mapping[str, object]) -> None:
        """Writes the experiment with the best trial's values in it."""
        best = with_values(load_experiment(str(self.experiment_file)), point)
        write_file(self.path / "best.yaml", to_yaml(best).encode())

    def model_file(self, name: str) -> AnyPath:
        """Where a network is kept: `tuned`, `default` or `joint`."""
        return self.path / "models" / f"{name}.safetensors"

    def write_json(self, name: str, content: Any) -> None:
        """Writes `RUN/name`, complete or not at all."""
        write_file(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """Reads `RUN/name`; None where there is none."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path}: is damaged: {error}; remove it and go on") from error

    @property
    def seconds(self) -> float:
        """The time spent on it so far, over all sessions."""
        spent: float = (self.read_json("time.json") or {"seconds": 0.0})["seconds"]
        return spent

    def add_seconds(self, seconds: float) -> None:
        """Adds to the time spent."""
        self.write_json("time.json", {"seconds": self.seconds + seconds})

    @property
    def resume_command(self) -> str:
        """What goes on with it."""
        command = "tune" if self.experiment().search.space else "train"
        return f"raymeta {command} --resume {shlex.quote(str(self.path))}"

    @property
    def has_best(self) -> bool:
        """Whether the search has come to its end."""
        return (self.path / "best.yaml").is_file()

    @property
    def status(self) -> str:
        """`done`, or how far it came."""
        if (self.path / "results.json").is_file():
            return "done"
        return "searched" if self.has_best else "unfinished"


def _is_locked(file: IO[bytes]) -> bool:
    """Whether it is ours now; True as well where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def run_name(experiment: Experiment) -> str:
    """What a run that begins now is called: NAME-DATE-TIME."""
    return f"{experiment.name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def list_runs(root: AnyPath = DEFAULT_ROOT) -> list[Run]:
    """All runs under `root`, the oldest first."""
    if not root.is_dir():
        return []
    found = [path.parent for path in root.glob("*/experiment.yaml")]
    return [
        Run(path)
        for path in sorted(found, key=lambda p: ((p / "experiment.yaml").stat().st_mtime, p.name))
    ]
