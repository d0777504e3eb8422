"""All that a run folder says of its run, read for people; what is not recorded is named.

The folder may come from a stranger: nothing is unpickled, no file outside it is read, and none that
is longer than a run ever writes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from raymeta.errors import RunError
from raymeta.evaluation.drawings import DRAWINGS_FILE, Drawings
from raymeta.evaluation.query_scores import MAX_BYTES, SCORES_FILE, QueryScores
from raymeta.evaluation.scores import MetaTest
from raymeta.evaluation.sealed import SEALED_FILE, look_lines
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import ANALYSES_FILE, Run
from raymeta.run_format import FORMAT_FILE, RunOrigin
from raymeta.search.trial_log import TRIALS_FILE, LoggedTrials, logged_trials
from raymeta.storage.paths import RemotePath, list_matching, read_regular

RESULTS_FILE = "results.json"
_LONGEST = 64 << 20  # bytes of any file but the scores
_MOST_ANALYSES, _MOST_ROWS = 60, 20_000
_FILES = (
    *("experiment.yaml", "best.yaml", FORMAT_FILE, RESULTS_FILE, TRIALS_FILE, "time.json"),
    *("refit.json", "refit", f"refit/{TRIALS_FILE}", "tune", "refit/tune", "search"),
    *(f"search/{ANALYSES_FILE}", "search/importance.json", SEALED_FILE, SCORES_FILE),
    DRAWINGS_FILE,
)
T = TypeVar("T")


@dataclass(frozen=True)
class Analysis:
    """The data of an analysis of the search's model: its kind, what it is of, and its columns."""

    kind: str
    of: str
    columns: dict[str, list[str]]

    def numbers(self, column: str) -> list[float]:
        """A column as numbers; NaN for what is none."""
        return [_number(text) for text in self.columns.get(column, [])]

    def ending(self, suffix: str) -> str:
        """The first column whose name ends so; empty without one."""
        return next((name for name in self.columns if name.endswith(suffix)), "")


@dataclass(frozen=True)
class RunFacts:
    """The recorded facts of a run; `missing` lists those that are absent, and why."""

    run: Run
    experiment: Experiment
    best: Experiment | None
    trials: LoggedTrials
    refit: LoggedTrials | None
    meta_test: MetaTest | None
    scores: QueryScores | None
    drawings: Drawings | None
    analyses: list[Analysis]
    importance: dict[str, float]
    origin: RunOrigin | None
    seconds: float
    looks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run.path.name


def read_results(run: Run) -> MetaTest | None:
    """The meta-test of a run; None if there was none yet.

    Raises:
        RunError: the file is damaged.
    """
    results = run.read_json(RESULTS_FILE, run.made_anew)
    if results is None:
        return None
    try:
        return MetaTest.from_json(results["meta_test"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run.path / RESULTS_FILE}: is damaged, or of an earlier version; {run.made_anew}"
        ) from error


def read_facts(run: Run) -> RunFacts:
    """Reads a run folder, finished or not.

    Raises:
        RunError: its experiment cannot be read, a file leads out of it, or one is too long.
    """
    _check_files(run)
    experiment = run.experiment()
    missing: list[str] = []

    def tried(read: Callable[[], T], instead: T) -> T:
        try:
            return read()
        except RunError as error:
            missing.append(str(error))
            return instead

    trials = tried(lambda: logged_trials(run), LoggedTrials())
    refit = None
    if experiment.search.refit is not None and run.refit.trials_dir.is_dir():
        refit = tried(lambda: logged_trials(run.refit), None)
    meta_test = tried(lambda: read_results(run), None)
    scores = tried(lambda: QueryScores.read(run), None)
    if meta_test is None:
        missing.append(f"results: the run is {run.status}, so that it has no meta-test yet")
    elif scores is None:
        missing.append(
            "scores task by task: the meta-test of this run kept none; "
            f"`raymeta evaluate {run.path.name}` records them"
        )
    elif scores.own.shape[1] != meta_test.num_episodes:
        missing.append(f"{SCORES_FILE} is of another meta-test than {RESULTS_FILE}")
        scores = None
    drawings = tried(lambda: Drawings.read(run), None) if meta_test is not None else None
    if meta_test is not None and drawings is None:
        missing.append(
            "drawn episodes, forecasts and the confusion matrix: the meta-test of this run kept "
            f"none; `raymeta evaluate {run.path.name}` records them"
        )
    analyses: list[Analysis] = []
    importance: dict[str, float] = {}
    if experiment.search.space:
        analyses = tried(lambda: _analyses(run, missing), [])
        importance = tried(lambda: _importance(run), {})
    origin = tried(lambda: run.origin, None)
    if origin is None:
        missing.append("versions and the data's fingerprint: raymeta 0.1 did not record them")
    looks = list[str]()
    if experiment.evaluation.sealed:
        looks = tried(lambda: look_lines(run), [])
    return RunFacts(
        run=run,
        experiment=experiment,
        best=tried(run.best_experiment, None) if run.has_best else None,
        trials=trials,
        refit=refit,
        meta_test=meta_test,
        scores=scores,
        drawings=drawings,
        analyses=analyses,
        importance=importance,
        origin=origin,
        seconds=tried(lambda: run.seconds, 0.0),
        looks=looks,
        missing=missing,
    )


def _check_files(run: Run) -> None:
    """Refuses files that lead out of the run folder, or are too long to be a run's."""
    run.check_links()
    path = run.path
    if isinstance(path, RemotePath):
        return
    states = [
        f"{folder}/{state.name}"
        for folder in ("tune", "refit/tune")
        for state in list_matching(path / folder, "searcher-state-*")
    ]
    for name in (*_FILES, *states):
        file = path / name
        size = file.stat().st_size if file.is_file() else 0
        most = MAX_BYTES if name == SCORES_FILE else _LONGEST
        if size > most:
            raise RunError(f"{file}: has {size} bytes; a run writes at most {most}; remove it")


def _importance(run: Run) -> dict[str, float]:
    content = run.read_json("search/importance.json")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(
        isinstance(v, int | float) for v in content.values()
    ):
        raise RunError(f"{run.search_dir / 'importance.json'}: is damaged; run `raymeta explain`")
    return {str(key): float(share) for key, share in content.items()}


def _analyses(run: Run, missing: list[str]) -> list[Analysis]:
    """Reads the analyses that `raymeta explain` wrote."""
    index = run.read_json(f"search/{ANALYSES_FILE}")
    if index is None:
        missing.append(
            "what the search's model says (importance, slices, contour): it is not recorded in a "
            f"form that can be drawn; `raymeta explain {run.path.name}` computes it, from four "
            "finished trials on"
        )
        return []
    try:
        found = [(str(a["file"]), str(a["shows"])) for a in index["analyses"]]
        missing += [f"{name}: {why}" for name, why in index["missing"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.search_dir / ANALYSES_FILE}: is damaged; `raymeta explain` makes it anew"
        ) from error
    analyses = []
    for file, shows in found[:_MOST_ANALYSES]:
        if not re.fullmatch(r"[\w.-]+\.csv", file):
            raise RunError(f"{run.search_dir / ANALYSES_FILE}: {file!r:.100} is no file of its own")
        kind, _, of = shows.partition(" ")
        analyses.append(Analysis(kind, of, _columns(run, file)))
    return analyses


def _columns(run: Run, name: str) -> dict[str, list[str]]:
    file = run.search_dir / name
    try:
        if isinstance(file, Path) and not file.resolve().is_relative_to(str(run.path.resolve())):
            raise RunError(f"{file}: a link that leads out of the run folder; remove it")
        content = read_regular(file, _LONGEST).decode()
        rows = csv.reader(io.StringIO(content), strict=True)
        header = next(rows, [])
        body = [row for row, _ in zip(rows, range(_MOST_ROWS), strict=False)]
    except (OSError, ValueError, csv.Error, RuntimeError) as error:
        raise RunError(f"{file}: cannot be read: {error}; run `raymeta explain` again") from error
    if any(len(row) != len(header) for row in body):
        raise RunError(f"{file}: is damaged; `raymeta explain {run.path.name}` makes it anew")
    return {name: [row[n] for row in body] for n, name in enumerate(header)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
