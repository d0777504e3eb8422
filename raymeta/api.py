"""The Python API: tune, train, watch, evaluate, explain, write_report, compare.

The command line calls them.

from raymeta import tune
report = tune("pen-maml", overrides={"search.num_trials": 8})
report.best.maml.inner_lr, report.meta_test.rows[0].score
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from raymeta import running
from raymeta.console.notebook import is_notebook
from raymeta.console.progress import ProgressView
from raymeta.console.terminal import Terminal
from raymeta.console.watch import watch as watch_folder
from raymeta.data.encoder import is_folder
from raymeta.errors import ExperimentError, RunError, SearchError
from raymeta.experiment.file import (
    load_experiment,
    shipped_experiments,
    with_overrides,
    with_values,
)
from raymeta.experiment.schema import Experiment
from raymeta.report.comparison import Comparison, compared, comparison_page
from raymeta.report.write import write_page
from raymeta.run_folder import DEFAULT_ROOT, Run
from raymeta.running import Report, Watcher, load_report
from raymeta.search.explanation import explain_search
from raymeta.search.preflight import prepare
from raymeta.search.progress import TrialEvent
from raymeta.search.sources import Sources
from raymeta.search.trial_log import logged_trials
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at

__all__ = [
    "Overrides",
    "Report",
    "Watcher",
    "check_experiment",
    "compare",
    "evaluate",
    "explain",
    "load_report",
    "read_experiment",
    "train",
    "tune",
    "watch",
    "write_report",
]
Overrides = Sequence[str] | Mapping[str, Any]


class _Silent:
    def started(self, run: Run, experiment: Experiment) -> None: ...
    def trial(self, event: TrialEvent) -> None: ...
    def phase(self, text: str) -> None: ...


@contextmanager
def _shown(watcher: Watcher | None, *, verbose: bool) -> Iterator[Watcher]:
    """The watcher, or without one the live view of a notebook; a script gets none."""
    if watcher is not None:
        yield watcher
    elif is_notebook():
        with ProgressView(Terminal(), verbose) as view:
            yield view
    else:
        yield _Silent()


def tune(
    experiment: str | Path | Experiment | None = None,
    *,
    overrides: Overrides = (),
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    resume: str | None = None,
    name: str | None = None,
    keep_data: bool = False,
    trust: bool = False,
    watcher: Watcher | None = None,
    verbose: bool = False,
) -> Report:
    """Searches an experiment's hyperparameters and meta-tests the best network with its controls.

    Args:
        experiment: the name of a shipped experiment, the path of a file, or an `Experiment`;
            optional when a run is resumed.
        overrides: `"dotted.key=value"` strings with values in YAML, or a mapping of dotted keys to
            values.
        runs_dir: where the run folder is made: a folder, or a URI such as `s3://bucket/runs`.
        resume: the name or path of a run to continue with its own experiment.
        name: of the run folder; by default the experiment's name with date and time.
        keep_data: copies `tasks.data_dir` into the run folder, so that the run can move.
        trust: resumes a run folder of another user, or with other trackers than it began with.
        watcher: receives the progress; a notebook without one shows it live.
        verbose: shows Ray's own log as well.

    Raises:
        RaymetaError: one of its subclasses; finished work stays in the run folder.
    """
    root = path_at(runs_dir)
    if resume is not None:
        return _resume(
            resume,
            root,
            asked=experiment,
            overrides=overrides,
            trust=trust,
            watcher=watcher,
            verbose=verbose,
        )
    loaded = read_experiment(experiment, overrides)
    if not loaded.search.space:
        raise ExperimentError(
            f"{loaded.name}: search.space is empty, so there is nothing to tune; name keys in it, "
            "or use `raymeta train`"
        )
    return _start(loaded, root, name=name, keep_data=keep_data, watcher=watcher, verbose=verbose)


def train(
    experiment: str | Path | Experiment | None = None,
    *,
    overrides: Overrides = (),
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    resume: str | None = None,
    name: str | None = None,
    keep_data: bool = False,
    trust: bool = False,
    watcher: Watcher | None = None,
    verbose: bool = False,
) -> Report:
    """Meta-trains an experiment's own configuration and meta-tests it; arguments as for `tune`."""
    root = path_at(runs_dir)
    if resume is not None:
        return _resume(
            resume,
            root,
            asked=experiment,
            overrides=overrides,
            trust=trust,
            watcher=watcher,
            verbose=verbose,
        )
    nothing: dict[str, object] = {"search.space": {}, "search.constraints": []}
    loaded = with_values(read_experiment(experiment, overrides), nothing)
    return _start(loaded, root, name=name, keep_data=keep_data, watcher=watcher, verbose=verbose)


def _start(
    loaded: Experiment,
    root: AnyPath,
    *,
    name: str | None,
    keep_data: bool,
    watcher: Watcher | None,
    verbose: bool,
) -> Report:
    """Checks an experiment and runs it in a new folder."""
    prepared = prepare(loaded, root)
    with _shown(watcher, verbose=verbose) as shown:
        return running.start(prepared, root, shown, name=name, keep_data=keep_data, verbose=verbose)


def _resume(
    name: str,
    root: AnyPath,
    *,
    asked: str | Path | Experiment | None,
    overrides: Overrides,
    trust: bool,
    watcher: Watcher | None,
    verbose: bool,
) -> Report:
    """Resumes a run after checking it against the arguments."""
    run = Run.open(name, root)
    run.check_links(of_trials=True)
    if not trust:
        run.check_owner()
    experiment = run.experiment()
    if overrides:
        raise ExperimentError("a resumed run keeps its own settings; leave --set out")
    if asked is not None and read_experiment(asked).name != experiment.name:
        raise RunError(f"{run.path}: is a run of the experiment {experiment.name}, not of {asked}")
    with _shown(watcher, verbose=verbose) as shown:
        return running.resume(run, shown, verbose=verbose, trust=trust)


def watch(
    run: str | Path,
    *,
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    console: Console | None = None,
    verbose: bool = False,
) -> Report:
    """Shows a run live from its folder until it ends, in a notebook or on a terminal.

    Another process works in the run, here or on a cluster that writes to the same storage.  To
    interrupt it leaves the run at work.

    Args:
        run: name or path.
        runs_dir: where runs are looked for by name: a folder or a URI.
        console: what is written to; None for standard output or the notebook.
        verbose: also shows every validation, line by line where there is no live view.

    Raises:
        RunError: there is no such run, or it has not finished and no process is at work in it; in
            storage without locks, nothing was heard of it for a quarter of an hour.
    """
    found = Run.open(str(run), path_at(runs_dir))
    try:
        is_finished = watch_folder(found, console or Terminal(), verbose=verbose)
    except KeyboardInterrupt:
        raise RunError(f"{found.path}: no longer watched; the run itself goes on") from None
    finished = load_report(found) if is_finished else None
    if finished is None:
        raise RunError(
            f"{found.path}: no process is at work in this run, which is {found.status}; go on with "
            f"`{found.resume_command}`"
        )
    return finished


def evaluate(
    run: str | Path,
    *,
    num_episodes: int | None = None,
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    watcher: Watcher | None = None,
) -> Report:
    """Repeats the meta-test of a finished search and replaces the run's results; tells no tracker.

    Args:
        run: name or path.
        num_episodes: of the meta-test; None for the experiment's number.
        runs_dir: where runs are looked for by name: a folder or a URI.
        watcher: receives the progress.

    Raises:
        RunError: there is no such run, or its search has not ended.
    """
    if num_episodes is not None and num_episodes < 2:
        raise RunError(f"the meta-test needs at least 2 episodes, but got {num_episodes}")
    found = Run.open(str(run), path_at(runs_dir))
    if not found.has_best:
        _refuse_if_all_abandoned(found)
    with _shown(watcher, verbose=False) as shown:
        shown.started(found, found.experiment())
        return running.judge(found, shown, num_episodes=num_episodes)


def _refuse_if_all_abandoned(run: Run) -> None:
    """Refuses a run whose trials were all abandoned: resuming it would change nothing."""
    trials = logged_trials(run)
    statuses = {record.status for record in trials.records.values()}
    if statuses == {"abandoned"} and trials.errors:
        reason = next(iter(trials.errors.values()))
        raise RunError(f"{run.path}: no trial has a finite result; the first error: {reason}")


def explain(run: str | Path, *, runs_dir: str | AnyPath = DEFAULT_ROOT) -> Run:
    """Computes from a run's trials which keys matter and how; see `raymeta.search.explain`.

    A search does so at its end; this function also serves running and interrupted searches.  The
    tables are in `Run.search_dir`, the plots in RUN/report.html.

    Raises:
        RunError: there is no such run.
        SearchError: nothing was searched, or too few trials have ended.
    """
    found = Run.open(str(run), path_at(runs_dir))
    experiment = found.experiment()
    if not experiment.search.space:
        raise SearchError(f"{found.path}: nothing was searched in this run")
    explain_search(experiment, found)
    write_page(found)
    return found


def write_report(run: str | Path, *, runs_dir: str | AnyPath = DEFAULT_ROOT) -> AnyPath:
    """Writes RUN/report.html anew, whether or not the run has finished.

    Returns:
        The page's path.

    Raises:
        RunError: there is no such run, or its files cannot be read.
    """
    return write_page(Run.open(str(run), path_at(runs_dir)))


def compare(
    runs: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    runs_dir: str | AnyPath = DEFAULT_ROOT,
) -> Comparison:
    """Compares each run with the first over the same meta-test queries.

    Args:
        runs: names or paths, at least two.
        output: path of an HTML page to write; None for no page.
        runs_dir: where runs are looked for by name: a folder or a URI.

    Raises:
        RunError: there are fewer than two runs, one cannot be read, or the page not be written.
    """
    root = path_at(runs_dir)
    found = compared([Run.open(str(run), root) for run in runs])
    if output is not None:
        write_file(path_at(str(output)), comparison_page(found).encode())
    return found


def check_experiment(
    experiment: str | Path | Experiment | None, overrides: Overrides = ()
) -> Experiment:
    """Reads an experiment and runs every check that needs neither a run nor a cluster.

    Raises:
        ExperimentError: it breaks a rule of the schema.
        DataError: its data are broken, or cannot serve its episodes.
    """
    return prepare(
        read_experiment(experiment, overrides), DEFAULT_ROOT, earlier=[], sources=Sources()
    ).experiment


def read_experiment(
    experiment: str | Path | Experiment | None, overrides: Overrides = ()
) -> Experiment:
    """Reads an experiment with overrides; `tasks.data_dir` and an encoder's folder become absolute.

    Raises:
        ExperimentError: it breaks a rule of the schema.
    """
    if experiment is None:
        raise ExperimentError(
            f"name an experiment ({', '.join(shipped_experiments())}) or a YAML file"
        )
    texts = _texts(overrides)
    if isinstance(experiment, Experiment):
        loaded = with_overrides(experiment, texts)
    else:
        loaded = load_experiment(str(experiment), texts)
    # A run may be resumed from another working folder.
    full: dict[str, object] = {}
    folder, encoder = loaded.tasks.data_dir, loaded.tasks.pretrained()
    if folder is not None:
        full["tasks.data_dir"] = str(path_at(folder).resolve())
    if encoder is not None and is_folder(encoder):
        full["tasks.encoder"] = str(Path(encoder).expanduser().resolve())
    return with_values(loaded, full) if full else loaded


def _texts(overrides: Overrides) -> list[str]:
    """Converts overrides to `dotted.key=value` texts with values in JSON, a subset of YAML."""
    if isinstance(overrides, str):
        raise ExperimentError(f"overrides must be a list or a mapping, but got {overrides!r}")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    texts = []
    for key, value in overrides.items():
        try:
            texts.append(f"{key}={json.dumps(value)}")
        except (TypeError, ValueError):
            raise ExperimentError(
                f"{key} must be a plain value (number, text, list, mapping), but got {value!r:.200}"
            ) from None
    return texts
