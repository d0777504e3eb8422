"""What raymeta does, as functions: tune, train, evaluate, explain.  The command line calls them.

from raymeta import tune
report = tune("pen", overrides=["search.num_trials=8"])
report.best.maml.inner_lr, report.meta_test.rows[0].score
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import ray
import torch

from raymeta.errors import ExperimentError, RunError, SearchError
from raymeta.evaluation import MetaTest, meta_test, train_joint_control
from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment, shipped_experiments, with_values
from raymeta.files import write_file
from raymeta.remote import AnyPath, path_at
from raymeta.runs import DEFAULT_ROOT, Run
from raymeta.search.records import TrialRecord
from raymeta.search.space import file_point
from raymeta.search.tuner import (
    TrialEvent,
    best_trial,
    default_trial,
    earlier_trials,
    explain_search,
    past_events,
    read_trials,
    run_search,
    start_ray,
)
from raymeta.tasks import load_tasks
from raymeta.training import build_recipe, load_meta_params, model_bytes

RESULTS_FILE = "results.json"


class Watcher(Protocol):
    """Is told how a run goes on; see `raymeta.console` for one that draws it."""

    def started(self, run: Run, experiment: Experiment) -> None:
        """The run folder exists."""

    def trial(self, event: TrialEvent) -> None:
        """Something happened to a trial."""

    def phase(self, text: str) -> None:
        """What is done after the search."""


class _Silent:
    def started(self, run: Run, experiment: Experiment) -> None: ...
    def trial(self, event: TrialEvent) -> None: ...
    def phase(self, text: str) -> None: ...


@dataclass(frozen=True)
class Report:
    """A finished run: `best` is the experiment with the best trial's values in it."""

    run: Run
    experiment: Experiment
    best: Experiment
    trials: dict[str, TrialRecord]
    meta_test: MetaTest
    seconds: float


def tune(
    experiment: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    resume: str | None = None,
    name: str | None = None,
    keep_data: bool = False,
    watcher: Watcher | None = None,
    verbose: bool = False,
) -> Report:
    """Searches an experiment's hyperparameters and meta-tests the best network with its controls.

    Args:
        experiment: the name of a shipped experiment or the path of a file; may be left out where a
            run is resumed.
        overrides: `dotted.key=value`.
        runs_dir: where the run folder is made: a folder, or a URI such as `s3://bucket/runs`.
        resume: the name or path of a run to go on with; its own experiment holds.
        name: of the run folder; by default the experiment's name with date and time.
        keep_data: copies `tasks.data_dir` into the run folder, which is then whole wherever it is.
        watcher: is told of the progress.
        verbose: Ray's own log lines as well.

    Raises:
        RaymetaError: of the kind that fits; what was finished by then is in the run folder.
    """
    if resume is None:
        loaded = _load(experiment, overrides)
        if not loaded.search.space:
            raise ExperimentError(
                f"{loaded.name}: search.space is empty, so there is nothing to tune; name keys in "
                "it, or use `raymeta train`"
            )
        file_point(loaded)  # before anything is started, like what follows
        earlier_trials(loaded, path_at(runs_dir))
        make = partial(Run.create, path_at(runs_dir), loaded, name, keep_data)
        return _start(loaded, make, watcher or _Silent(), verbose)
    return _resume(resume, experiment, overrides, path_at(runs_dir), watcher or _Silent(), verbose)


def train(
    experiment: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    resume: str | None = None,
    name: str | None = None,
    keep_data: bool = False,
    watcher: Watcher | None = None,
    verbose: bool = False,
) -> Report:
    """Meta-trains an experiment's own configuration and meta-tests it; arguments as for `tune`."""
    if resume is None:
        nothing: dict[str, object] = {"search.space": {}, "search.constraints": []}
        loaded = with_values(_load(experiment, overrides), nothing)
        make = partial(Run.create, path_at(runs_dir), loaded, name, keep_data)
        return _start(loaded, make, watcher or _Silent(), verbose)
    return _resume(resume, experiment, overrides, path_at(runs_dir), watcher or _Silent(), verbose)


def evaluate(
    run: str | Path,
    *,
    num_episodes: int | None = None,
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    watcher: Watcher | None = None,
) -> Report:
    """Meta-tests the network of a finished search again; the run's results are replaced.

    Args:
        run: name or path.
        num_episodes: of the meta-test; None for as many as the experiment says.
        runs_dir: where runs of a name are looked for: a folder or a URI.
        watcher: is told of the progress.

    Raises:
        RunError: there is no such run, or its search has not come to its end.
    """
    if num_episodes is not None and num_episodes < 2:
        raise RunError(f"the meta-test needs at least 2 episodes, but got {num_episodes}")
    found = Run.open(str(run), path_at(runs_dir))
    watcher = watcher or _Silent()
    watcher.started(found, found.experiment())
    return _meta_test(found, watcher, num_episodes)


def explain(run: str | Path, *, runs_dir: str | AnyPath = DEFAULT_ROOT) -> Run:
    """Says of a run's trials which keys matter and how; see `raymeta.search.explain`.

    A search does so by itself at its end; this one does it for one that is under way, or was
    interrupted.  The folder with tables and plots is `Run.search_dir`.

    Raises:
        RunError: there is no such run.
        SearchError: nothing was searched, or too few trials came to their end.
    """
    found = Run.open(str(run), path_at(runs_dir))
    experiment = found.experiment()
    if not experiment.search.space:
        raise SearchError(f"{found.path}: nothing was searched in this run")
    explain_search(experiment, found)
    return found


def load_report(run: Run) -> Report | None:
    """The report of a finished run; None if it is not finished."""
    results = run.read_json(RESULTS_FILE)
    if results is None:
        return None
    return Report(
        run=run,
        experiment=run.experiment(),
        best=run.best_experiment(),
        trials=read_trials(run),
        meta_test=MetaTest.from_json(results["meta_test"]),
        seconds=run.seconds,
    )


def load_checked(experiment: str | Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment, of which all is known to be in order that can be known before a run.

    Raises:
        ExperimentError: it breaks a rule of the schema.
        DataError: its data are broken, or cannot serve its episodes.
    """
    loaded = _load(experiment, overrides)
    if loaded.search.space:
        file_point(loaded)
    _check_tasks(loaded)
    return loaded


def _load(experiment: str | Path | None, overrides: Sequence[str]) -> Experiment:
    if experiment is None:
        raise ExperimentError(
            f"name an experiment ({', '.join(shipped_experiments())}) or a YAML file"
        )
    loaded = load_experiment(str(experiment), overrides)
    folder = getattr(loaded.tasks, "data_dir", None)
    if folder is None:
        return loaded
    # A run may be resumed from another folder.
    return with_values(loaded, {"tasks.data_dir": str(path_at(folder).resolve())})


def _start(
    experiment: Experiment, make_run: Callable[[], Run], watcher: Watcher, verbose: bool
) -> Report:
    _check_tasks(experiment)  # before anything is started or written
    with _ray(experiment, watcher, verbose):
        run = make_run()
        experiment = run.experiment()  # whose data may be within the run folder now
        watcher.started(run, experiment)
        with run.alone():
            _search(experiment, run, watcher, resume=False)
    return _meta_test(run, watcher, None)


def _resume(
    name: str,
    asked: str | Path | None,
    overrides: Sequence[str],
    runs_dir: AnyPath,
    watcher: Watcher,
    verbose: bool,
) -> Report:
    run = Run.open(name, runs_dir)
    experiment = run.experiment()
    if overrides:
        raise ExperimentError("a resumed run keeps its own settings; leave --set out")
    if asked is not None and load_experiment(str(asked)).name != experiment.name:
        raise RunError(f"{run.path}: is a run of the experiment {experiment.name}, not of {asked}")
    watcher.started(run, experiment)
    finished = load_report(run)
    if finished is not None:
        return finished
    if not run.has_best:
        with run.alone(), _ray(experiment, watcher, verbose):
            _search(experiment, run, watcher, resume=True)
    return _meta_test(run, watcher, None)


@contextmanager
def _ray(experiment: Experiment, watcher: Watcher, verbose: bool) -> Iterator[None]:
    """Ray for the time of a search; one that ran before is left running."""
    was_running = ray.is_initialized()
    try:
        start_ray(experiment.resources, verbose, watcher.phase)
        yield
    finally:
        if not was_running:
            ray.shutdown()


def _check_tasks(experiment: Experiment) -> None:
    """Loads the tasks of the file and of every end of a searched range of theirs.

    Raises:
        DataError: the data are broken, or cannot serve one of them.
    """
    load_tasks(experiment)
    for key, dimension in experiment.search.space.items():
        if key.startswith("tasks."):
            whole = experiment.is_integer(key)
            for value in dimension.ends:
                end = int(value) if whole and isinstance(value, float) else value
                load_tasks(with_values(experiment, {key: end}))


def _search(experiment: Experiment, run: Run, watcher: Watcher, resume: bool) -> None:
    """Leaves the best trial's values and the networks in the run folder."""
    start = time.monotonic()
    if resume:
        for event in past_events(experiment, run):
            watcher.trial(event)
    trials = run_search(experiment, run, observer=watcher.trial, resume=resume)
    run.add_seconds(time.monotonic() - start)
    best = best_trial(experiment, trials)
    for name, trial in (("tuned", best), ("default", default_trial(experiment, trials))):
        if trial is not None and trial.checkpoint is not None:
            write_file(run.model_file(name), model_bytes(load_meta_params(trial.checkpoint)))
    # This file says that the search is done.
    run.keep_best(best.record.point)
    if experiment.search.space:
        watcher.phase("explaining the search")
        try:
            explain_search(experiment, run)
        except SearchError as error:
            watcher.phase(f"no explanation of the search: {error}")


def _meta_test(run: Run, watcher: Watcher, num_episodes: int | None) -> Report:
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment, best = run.experiment(), run.best_experiment()
    tasks = load_tasks(best)
    recipe = build_recipe(best, tasks)

    def network(name: str) -> dict[str, torch.Tensor]:
        return {k: v.to(device) for k, v in load_meta_params(run.model_file(name)).items()}

    default = None
    if run.model_file("default").is_file():
        default_tasks = load_tasks(experiment)
        default = default_tasks, build_recipe(experiment, default_tasks), network("default")
    if not run.model_file("joint").is_file():
        watcher.phase("training the joint control")
        joint = train_joint_control(tasks, recipe, device)
        write_file(run.model_file("joint"), model_bytes(joint))
    searched = bool(experiment.search.space)
    result = meta_test(
        tasks,
        recipe,
        network("tuned"),
        network("joint"),
        label="tuned network" if searched else "meta-trained network",
        default=default,
        num_episodes=num_episodes or experiment.evaluation.num_episodes,
        progress=lambda text: watcher.phase(f"meta-test: {text}"),
    )
    run.write_json(RESULTS_FILE, {"meta_test": result.to_json()})
    run.add_seconds(time.monotonic() - start)
    return Report(run, experiment, best, read_trials(run), result, run.seconds)
