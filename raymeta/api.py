"""What raymeta does, as functions: tune, train, evaluate, explain, write_report, compare.

The command line calls them.

from raymeta import tune
report = tune("pen", overrides={"search.num_trials": 8})
report.best.maml.inner_lr, report.meta_test.rows[0].score
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import torch

from raymeta.data.encoder import is_folder
from raymeta.errors import ExperimentError, RunError, SearchError
from raymeta.evaluation.calibration import CALIBRATION_FILE, keep_calibrations, reliability
from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.networks import (
    REFIT_FILE,
    Refitted,
    keep_network,
    open_further,
    open_networks,
)
from raymeta.evaluation.query_scores import SCORES_FILE, QueryScores
from raymeta.evaluation.scores import MetaTest
from raymeta.evaluation.sealed import record_look
from raymeta.experiment.file import (
    load_experiment,
    shipped_experiments,
    with_overrides,
    with_values,
)
from raymeta.experiment.schema import Experiment
from raymeta.report.comparison import Comparison, compared, comparison_page
from raymeta.report.facts import RESULTS_FILE, read_results
from raymeta.report.write import report_summary, write_page
from raymeta.run_folder import DEFAULT_ROOT, Run, check_run_name
from raymeta.search.explanation import explain_search
from raymeta.search.preflight import Prepared, prepare
from raymeta.search.progress import TrialEvent, past_events
from raymeta.search.records import TrialRecord
from raymeta.search.refit import refit, search_outcome, unfinished_trainings
from raymeta.search.session import start_ray, stop_ray
from raymeta.search.sources import Sources
from raymeta.search.trial_log import TrialLog, logged_trials
from raymeta.search.tuner import run_search, unfinished_trials
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, list_matching, path_at, remove_file

Overrides = Sequence[str] | Mapping[str, Any]


class Watcher(Protocol):
    """Receives the progress of a run; `raymeta.console.progress` has one that draws it."""

    def started(self, run: Run, experiment: Experiment) -> None:
        """The run folder exists."""

    def trial(self, event: TrialEvent) -> None:
        """A trial started, reported, ended or failed."""

    def phase(self, text: str) -> None:
        """What is being done besides trials, or what was found damaged."""


class _Silent:
    def started(self, run: Run, experiment: Experiment) -> None: ...
    def trial(self, event: TrialEvent) -> None: ...
    def phase(self, text: str) -> None: ...


@dataclass(frozen=True)
class Report:
    """A finished run: `best` is the experiment with the best trial's values in it.

    `ended_by` is what ended the search, in words: the number of trials, or a stop rule.
    """

    run: Run
    experiment: Experiment
    best: Experiment
    trials: dict[str, TrialRecord]
    meta_test: MetaTest
    seconds: float
    ended_by: str = ""

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer and the meta-test, without scripts."""
        return report_summary(self.meta_test, self.run)


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
        experiment: the name of a shipped experiment, the path of a file, or an `Experiment`; may be
            left out if a run is resumed.
        overrides: `"dotted.key=value"` strings with values in YAML, or a mapping of dotted keys to
            values.
        runs_dir: where the run folder is made: a folder, or a URI such as `s3://bucket/runs`.
        resume: the name or path of a run to go on with, which keeps its own experiment.
        name: of the run folder; by default the experiment's name with date and time.
        keep_data: copies `tasks.data_dir` into the run folder, so that the run can move.
        trust: resumes a run folder of another user.
        watcher: receives the progress.
        verbose: shows Ray's own log as well.

    Raises:
        RaymetaError: of the kind that fits; what was finished by then is in the run folder.
    """
    watcher, root = watcher or _Silent(), path_at(runs_dir)
    if resume is not None:
        return _resume(resume, experiment, overrides, root, trust, watcher, verbose)
    loaded = load(experiment, overrides)
    if not loaded.search.space:
        raise ExperimentError(
            f"{loaded.name}: search.space is empty, so there is nothing to tune; name keys in it, "
            "or use `raymeta train`"
        )
    return _start(prepare(loaded, root), root, name, keep_data, watcher, verbose)


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
    watcher, root = watcher or _Silent(), path_at(runs_dir)
    if resume is not None:
        return _resume(resume, experiment, overrides, root, trust, watcher, verbose)
    nothing: dict[str, object] = {"search.space": {}, "search.constraints": []}
    loaded = with_values(load(experiment, overrides), nothing)
    return _start(prepare(loaded, root), root, name, keep_data, watcher, verbose)


def evaluate(
    run: str | Path,
    *,
    num_episodes: int | None = None,
    runs_dir: str | AnyPath = DEFAULT_ROOT,
    watcher: Watcher | None = None,
) -> Report:
    """Meta-tests the network of a finished search again, and replaces the run's results.

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
    watcher = watcher or _Silent()
    watcher.started(found, found.experiment())
    return _meta_test(found, watcher, num_episodes)


def _refuse_if_all_abandoned(run: Run) -> None:
    """Says why a run has no network if going on with it would change nothing."""
    trials = logged_trials(run)
    statuses = {record.status for record in trials.records.values()}
    if statuses == {"abandoned"} and trials.errors:
        reason = next(iter(trials.errors.values()))
        raise RunError(f"{run.path}: no trial has a finite result; the first error: {reason}")


def explain(run: str | Path, *, runs_dir: str | AnyPath = DEFAULT_ROOT) -> Run:
    """Finds out from a run's trials which keys matter and how; see `raymeta.search.explain`.

    A search does so at its end; this does it while a search is under way, or was interrupted.  The
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
    """Writes a run's page, RUN/report.html, anew: of any run, finished or not.

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
    """Puts runs side by side; each is compared with the first over the same meta-test queries.

    Args:
        runs: names or paths, at least two.
        output: where a page of it is written; None for none.
        runs_dir: where runs are looked for by name: a folder or a URI.

    Raises:
        RunError: there are fewer than two runs, one cannot be read, or the page not be written.
    """
    root = path_at(runs_dir)
    found = compared([Run.open(str(run), root) for run in runs])
    if output is not None:
        write_file(path_at(str(output)), comparison_page(found).encode())
    return found


def load_report(run: Run) -> Report | None:
    """The report of a finished run; None if the run is not finished.

    Raises:
        RunError: a file of the run is damaged.
    """
    result = read_results(run)
    if result is None:
        return None
    trials = logged_trials(run)
    return Report(
        run=run,
        experiment=run.experiment(),
        best=run.best_experiment(),
        trials=trials.records,
        meta_test=result,
        seconds=run.seconds,
        ended_by=trials.ended_by,
    )


def load_checked(
    experiment: str | Path | Experiment | None, overrides: Overrides = ()
) -> Experiment:
    """An experiment, after every check that needs no run and no cluster.

    Raises:
        ExperimentError: it breaks a rule of the schema.
        DataError: its data are broken, or cannot serve its episodes.
    """
    return prepare(
        load(experiment, overrides), DEFAULT_ROOT, earlier=[], sources=Sources()
    ).experiment


def load(experiment: str | Path | Experiment | None, overrides: Overrides = ()) -> Experiment:
    """An experiment with overrides, its `tasks.data_dir` and encoder folder as full paths.

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
    """Overrides as `dotted.key=value` with values in YAML, of which JSON is a part."""
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


def _start(
    prepared: Prepared,
    root: AnyPath,
    name: str | None,
    keep_data: bool,
    watcher: Watcher,
    verbose: bool,
) -> Report:
    if name is not None:
        check_run_name(name)
    with _ray(prepared.experiment, watcher, verbose) as trials_at_once:
        run = Run.create(root, prepared.experiment, name, keep_data, prepared.tasks.fingerprint)
        # With `keep_data` the data are in the run folder now.
        prepared = replace(prepared, experiment=run.experiment())
        watcher.started(run, prepared.experiment)
        with run.locked():
            TrialLog(run).begin(prepared.earlier, prepared.sources.trials)
            _search(prepared, run, watcher, trials_at_once)
    with run.locked():
        return _meta_test(run, watcher, None)


def _resume(
    name: str,
    asked: str | Path | Experiment | None,
    overrides: Overrides,
    root: AnyPath,
    trust: bool,
    watcher: Watcher,
    verbose: bool,
) -> Report:
    """Goes on with a run; a refusal leaves everything as it was."""
    run = Run.open(name, root)
    if not trust:
        run.check_owner()
    origin = run.origin
    experiment = run.experiment()
    if overrides:
        raise ExperimentError("a resumed run keeps its own settings; leave --set out")
    if asked is not None and load(asked).name != experiment.name:
        raise RunError(f"{run.path}: is a run of the experiment {experiment.name}, not of {asked}")
    if origin is not None:
        origin.check_experiment(run.unresolved_experiment(), run.path)
    trials = logged_trials(run)
    finished = load_report(run) if run.has_best else None
    has_failed = any(record.status == "failed" for record in trials.records.values())
    if finished is not None and not (has_failed or unfinished_trainings(experiment, run)):
        watcher.started(run, experiment)
        return finished
    if origin is None:
        raise RunError(
            f"{run.path}: was begun by raymeta 0.1, which deals out data and keeps trials in other "
            "ways; finish it with that version (`pip install raymeta==0.1.0`), or start a new run"
        )
    sources = None if trials.earlier is None else Sources(trials.sources)
    prepared = prepare(experiment, run.path.parent, earlier=trials.earlier, sources=sources)
    origin.check_environment(prepared.tasks.fingerprint, run.path)
    watcher.started(run, experiment)
    with run.locked():
        trials = logged_trials(run)  # as the process that held the lock has left them
        if trials.earlier is None:
            TrialLog(run).begin(prepared.earlier, prepared.sources.trials)
        is_unfinished = bool(unfinished_trials(experiment, run, trials))
        if not run.has_best or is_unfinished or unfinished_trainings(experiment, run):
            with _ray(experiment, watcher, verbose) as trials_at_once:
                past = [trials.records]
                if experiment.search.refit is not None:
                    past.append(logged_trials(run.refit).records)
                for records in past:
                    for event in past_events(experiment, records):
                        watcher.trial(event)
                _search(prepared, run, watcher, trials_at_once)
    with run.locked():
        return load_report(run) or _meta_test(run, watcher, None)


@contextmanager
def _ray(experiment: Experiment, watcher: Watcher, verbose: bool) -> Iterator[int]:
    """Ray during a search, and how many trials run at once; one that ran before goes on running."""
    was_running = ray.is_initialized()
    try:
        yield start_ray(experiment.resources, verbose, watcher.phase)
    finally:
        if not was_running:
            stop_ray()


# Beside the model files: what is said of the network, and what says that there is one.
_OF_THE_NETWORK = (RESULTS_FILE, SCORES_FILE, "best.yaml", REFIT_FILE, CALIBRATION_FILE)


def _search(prepared: Prepared, run: Run, watcher: Watcher, trials_at_once: int) -> None:
    """Searches and refits; writes the winner's values and the networks to the run folder."""
    start, experiment = time.monotonic(), prepared.experiment
    trials = run_search(
        prepared,
        run,
        observer=watcher.trial,
        trials_at_once=trials_at_once,
        say=watcher.phase,
    )
    found = search_outcome(experiment, run, trials)
    if experiment.search.refit is not None:
        found = refit(
            prepared,
            run,
            found,
            observer=watcher.trial,
            trials_at_once=trials_at_once,
            say=watcher.phase,
        )
    run.add_seconds(time.monotonic() - start)
    if run.has_best:
        is_same = with_values(run.experiment(), found.values) == run.best_experiment()
        if is_same and found.refitted == Refitted.of(run):
            return  # the trials that ran again have changed nothing
        # What is there belongs to another network.
        networks = list_matching(run.path / "models", "*.safetensors")
        records = [run.path / name for name in _OF_THE_NETWORK]
        for file in (*records, *networks):
            remove_file(file)
    for name, checkpoint in found.checkpoints.items():
        keep_network(run, name, checkpoint)
    found.refitted.keep(run)
    # This file says that the search is done.
    run.keep_best(found.values)
    if experiment.search.space:
        watcher.phase("explaining the search")
        try:
            explain_search(experiment, run)
        except SearchError as error:
            watcher.phase(f"no explanation of the search: {error}")


def _meta_test(
    run: Run,
    watcher: Watcher,
    num_episodes: int | None,
) -> Report:
    """Meta-tests a run's network beside its controls; the results are written to the run."""
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment, best = run.experiment(), run.best_experiment()
    own, networks = open_networks(run, device, watcher.phase)
    kept = list[QueryScores]()
    further = open_further(run, device)
    num_episodes = num_episodes or experiment.evaluation.num_episodes
    result = meta_test(
        own,
        networks,
        label="tuned network" if experiment.search.space else "meta-trained network",
        num_episodes=num_episodes,
        further=further,
        progress=lambda text: watcher.phase(f"meta-test: {text}"),
        keep=kept.append,
    )
    if experiment.evaluation.sealed:
        record_look(run, result)
    if own.recipe.problem.name == "classification":
        watcher.phase("calibrating")
        together = [own, *further]
        calibration = keep_calibrations(run, together)
        found = reliability(together, calibration, num_episodes)
        result = replace(result, reliability=found)
    kept[0].write(run)
    run.write_json(RESULTS_FILE, {"meta_test": result.to_json()})
    run.add_seconds(time.monotonic() - start)
    write_page(run)
    trials = logged_trials(run)
    return Report(run, experiment, best, trials.records, result, run.seconds, trials.ended_by)
