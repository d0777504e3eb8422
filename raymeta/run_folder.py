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
RUN/calibration.json    what meta-validation says of the answers' certainty
RUN/forecast_errors.json  the errors of forecasts on meta-validation
RUN/familiarity.safetensors  what support examples of new tasks are compared with
RUN/drawings.json       some episodes, forecasts and the confusion, for the report
RUN/sealed.jsonl        the looks at the sealed deal
RUN/time.json           the time spent
RUN/.lock               locked by the process that searches
RUN/data/               the data of the tasks, if they are kept with the run
"""

from __future__ import annotations

import re
import shlex
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
from raymeta.run_guard import check_links, check_owner, is_locked, locked
from raymeta.storage.atomic import write_file
from raymeta.storage.checksum import read_json, to_json
from raymeta.storage.outage import StorageWatch
from raymeta.storage.paths import AnyPath, path_at

DEFAULT_ROOT = Path("runs")
ANALYSES_FILE = "analyses.json"  # in `Run.search_dir`
LOCK_S = 10  # seconds to wait for a process that is about to end
_FOLDERS = ("", "models", "search", "tune", "refit", "refit/tune")  # those that raymeta writes to
_TRIALS = ("tune", "refit/tune")  # those that Tune writes to


@dataclass(frozen=True)
class Run:
    """A run folder, on this machine or in a storage that Arrow knows.

    `part` selects the trials: the search's, or the `refit`'s.
    """

    path: AnyPath
    part: Literal["search", "refit"] = "search"

    @classmethod
    def create(
        cls,
        root: AnyPath,
        experiment: Experiment,
        name: str | None = None,
        *,
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
            list(data_files(experiment))  # refuse what cannot be copied before making the folder
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
            # Written last: this file makes the folder a run.
            write_file(run.experiment_file, to_yaml(experiment).encode())
            return run
        raise RunError(f"{root}: too many runs called {stem}")

    @classmethod
    def open(cls, name: str, root: AnyPath) -> Run:
        """Opens the run at a path, or of a name under `root`.

        Raises:
            RunError: there is no such run, something in it leads elsewhere, or its storage cannot
                be reached.
        """
        for path in (path_at(name), root / name):
            if (path / "experiment.yaml").is_file():
                run = cls(path.resolve())
                run.check_links()
                return run
            if (path / FORMAT_FILE).is_file():
                raise RunError(f"{path / 'experiment.yaml'}: is missing; put back a copy of it")
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
        """The same run with the refit's trials selected."""
        return replace(self, part="refit")

    @property
    def made_anew(self) -> str:
        """The remedy for a damaged file that the meta-test writes, for messages."""
        return f"`raymeta evaluate {self.path.name}` makes it anew"

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
        """The folder of the analyses of the search's model."""
        return self.path / "search"

    @property
    def importance(self) -> dict[str, float]:
        """Each searched key's share of the metric's variance, sorted; empty if unknown."""
        shares: dict[str, float] | None = self.read_json("search/importance.json")
        return shares or {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run against a second search.

        The lock ends with the process.  Storage without locks, as buckets are, is not locked.

        Raises:
            RunError: another process searches in the run, or a link leads out of its folder.
        """
        self.check_links()
        with locked(self.path, LOCK_S):
            yield

    @property
    def is_locked(self) -> bool | None:
        """Whether a process works in the run; None in storage without locks."""
        return is_locked(self.path)

    def check_links(self, *, of_trials: bool = False) -> None:
        """Refuses links by which a file of the run would be read or written elsewhere.

        Args:
            of_trials: looks into the folders of trials too, which only a resumed search reads.

        Raises:
            RunError: naming the link, or what is neither a file nor a folder.
        """
        check_links(self.path, _FOLDERS, trees=_TRIALS if of_trials else ())

    def check_owner(self) -> None:
        """Refuses another user's folder: its files control what a resumed run does.

        Raises:
            RunError: another user owns the folder or one of its files.
        """
        check_owner(self.path)

    def watch(self, say: Callable[[str], object] = lambda _: None) -> StorageWatch:
        """Watches the folder during a search for removal and storage outages."""
        return StorageWatch(self.path, "experiment.yaml", say)

    @property
    def has_format(self) -> bool:
        """Whether raymeta 0.2 or later made the folder: version 0.1 kept no run.json."""
        return self.origin is not None or (self.path / "trials.jsonl").is_file()

    @property
    def origin(self) -> RunOrigin | None:
        """The record of the run's beginning; None for a run of raymeta 0.1.

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
        """The experiment as in its file, with paths relative to the run folder."""
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
        """Writes `RUN/name` with a checksum, whole or not at all."""
        write_file(self.path / name, to_json(content))

    def read_json(self, name: str, remedy: str = "remove it and go on") -> Any:
        """Reads `RUN/name`; None if there is no such file.

        Args:
            name: of the file.
            remedy: for a damaged file.

        Raises:
            RunError: the file is damaged or cannot be read.
        """
        return read_json(self.path / name, remedy)

    @property
    def seconds(self) -> float:
        """Seconds spent on the run so far, over all sessions."""
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
        """`done`, or the phase that the run reached."""
        if (self.path / "results.json").is_file():
            return "done"
        if self.has_best:
            return "searched"
        return "refitting" if self.refit.trials_dir.is_dir() else "unfinished"


def _read(file: AnyPath) -> Experiment:
    """Reads an experiment in a run folder.

    Raises:
        RunError: it cannot be read, or is not valid.
    """
    try:
        return load_experiment(str(file), may_build=False)
    except ExperimentError as error:
        raise RunError(
            f"{file}: cannot be used: {error}; put back a copy of the file, or start a new run"
        ) from error


def is_run_name(name: str) -> bool:
    """Whether a run folder may have this name: not a path, an option or a hidden file."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name) is not None


def check_run_name(name: str) -> None:
    """Refuses a name that no run folder can have.

    Raises:
        RunError: stating the rule for names.
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
    """Lists all runs under a folder or URI, oldest first.

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
