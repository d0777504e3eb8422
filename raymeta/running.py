"""A run from its beginning to its meta-test; `raymeta.api` has the functions for users."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import ray
import torch

from raymeta.errors import RunError, SearchError
from raymeta.evaluation.calibration import (
    CALIBRATION_FILE,
    certainty_of_classes,
    interval_coverage,
    keep_calibrations,
)
from raymeta.evaluation.drawings import (
    DRAWINGS_FILE,
    draw_classification,
    draw_forecasts,
    draw_regression,
)
from raymeta.evaluation.familiarity import FAMILIARITY_FILE, keep_reference
from raymeta.evaluation.forecast_errors import ERRORS_FILE, coverage_in_meta_test, keep_errors
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
    with_values,
)
from raymeta.experiment.schema import Experiment
from raymeta.report.facts import RESULTS_FILE, read_results
from raymeta.report.write import report_summary, write_page
from raymeta.run_folder import Run, check_run_name
from raymeta.search.explanation import explain_search
from raymeta.search.preflight import Prepared, prepare
from raymeta.search.progress import TrialEvent, past_events
from raymeta.search.records import TrialRecord
from raymeta.search.refit import refit, search_outcome, unfinished_trainings
from raymeta.search.session import start_ray, stop_ray
from raymeta.search.sources import Sources
from raymeta.search.trial_log import TrialLog, logged_trials
from raymeta.search.tuner import run_search, unfinished_trials
from raymeta.storage.paths import AnyPath, list_matching, remove_file
from raymeta.tracking.meta_test import track_meta_test


class Watcher(Protocol):
    """Receives the progress of a run; `raymeta.console.progress` has one that draws it."""

    def started(self, run: Run, experiment: Experiment) -> None:
        """The run folder exists."""

    def trial(self, event: TrialEvent) -> None:
        """A trial started, reported, ended or failed."""

    def phase(self, text: str) -> None:
        """A phase besides trials began, or damage was found."""


@dataclass(frozen=True)
class Report:
    """A finished run: `best` is the experiment with the best trial's values in it.

    `ended_by` names what ended the search: the number of trials, or a stop rule.
    """

    run: Run
    experiment: Experiment
    best: Experiment
    trials: dict[str, TrialRecord]
    meta_test: MetaTest
    seconds: float
    ended_by: str = ""

    def _repr_html_(self) -> str:
        """The notebook view: the answer and the meta-test, without scripts."""
        return report_summary(self.meta_test, self.run)


def load_report(run: Run) -> Report | None:
    """Loads the report of a finished run; None if it is not finished.

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


def start(
    prepared: Prepared,
    root: AnyPath,
    watcher: Watcher,
    *,
    name: str | None,
    keep_data: bool,
    verbose: bool,
) -> Report:
    """Begins a run in a new folder and takes it to its meta-test.

    Args:
        prepared: the checked experiment.
        root: the folder of run folders.
        watcher: receives the progress.
        name: of the run folder; None for one by experiment, date and time.
        keep_data: copies `tasks.data_dir` into the run folder.
        verbose: shows Ray's own log as well.
    """
    if name is not None:
        check_run_name(name)
    with _ray(prepared.experiment, watcher, verbose=verbose) as trials_at_once:
        run = Run.create(
            root,
            prepared.experiment,
            name,
            keep_data=keep_data,
            fingerprint=prepared.tasks.fingerprint,
        )
        # With `keep_data` the data are in the run folder now.
        prepared = replace(prepared, experiment=run.experiment())
        watcher.started(run, prepared.experiment)
        with run.locked():
            TrialLog(run).begin(prepared.earlier, prepared.sources.trials)
            _search(prepared, run, watcher, trials_at_once)
    with run.locked():
        return judge(run, watcher, is_tracked=True)


def resume(run: Run, watcher: Watcher, *, verbose: bool, trust: bool = False) -> Report:
    """Continues a run; a refusal changes nothing.

    Args:
        run: an interrupted one, or a finished one.
        watcher: receives the progress.
        verbose: shows Ray's own log as well.
        trust: takes trackers that the run did not begin with.
    """
    origin = run.origin
    experiment = run.experiment()
    if origin is not None:
        origin.check_experiment(run.unresolved_experiment(), run.path)
        if not trust:
            origin.check_trackers(experiment.trackers, run.path)
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
        trials = logged_trials(run)  # as the previous holder of the lock left them
        if trials.earlier is None:
            TrialLog(run).begin(prepared.earlier, prepared.sources.trials)
        is_unfinished = bool(unfinished_trials(experiment, run, trials))
        if not run.has_best or is_unfinished or unfinished_trainings(experiment, run):
            with _ray(experiment, watcher, verbose=verbose) as trials_at_once:
                past = [trials.records]
                if experiment.search.refit is not None:
                    past.append(logged_trials(run.refit).records)
                for records in past:
                    for event in past_events(experiment, records):
                        watcher.trial(event)
                _search(prepared, run, watcher, trials_at_once)
    with run.locked():
        return load_report(run) or judge(run, watcher, is_tracked=True)


@contextmanager
def _ray(experiment: Experiment, watcher: Watcher, *, verbose: bool) -> Iterator[int]:
    """Starts Ray for a search; yields the number of trials at once. A running Ray is kept."""
    was_running = ray.is_initialized()
    try:
        yield start_ray(experiment.resources, verbose=verbose, say=watcher.phase)
    finally:
        if not was_running:
            stop_ray()


# Files beside the model files that describe the network or mark it as finished.
_OF_THE_NETWORK = (
    *(RESULTS_FILE, SCORES_FILE, DRAWINGS_FILE, "best.yaml", REFIT_FILE),
    *(CALIBRATION_FILE, FAMILIARITY_FILE, ERRORS_FILE),
)


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
        now = with_values(run.experiment(), found.values)
        best = run.best_experiment().model_copy(update={"trackers": now.trackers})
        is_same = now == best
        if is_same and found.refitted == Refitted.of(run):
            return  # the repeated trials changed nothing
        # These files belong to another network.
        networks = list_matching(run.path / "models", "*.safetensors")
        records = [run.path / name for name in _OF_THE_NETWORK]
        for file in (*records, *networks):
            remove_file(file)
    for name, checkpoint in found.checkpoints.items():
        keep_network(run, name, checkpoint)
    found.refitted.keep(run)
    # This file marks the search as done.
    run.keep_best(found.values)
    if experiment.search.space:
        watcher.phase("explaining the search")
        try:
            explain_search(experiment, run)
        except SearchError as error:
            watcher.phase(f"no explanation of the search: {error}")


def judge(
    run: Run, watcher: Watcher, *, num_episodes: int | None = None, is_tracked: bool = False
) -> Report:
    """Meta-tests a run's network beside its controls; the results are written to the run.

    Args:
        run: whose search has ended.
        watcher: receives the progress.
        num_episodes: of the meta-test; None for the experiment's number.
        is_tracked: tells the experiment's trackers, which gives their servers this user's keys and
            may write anywhere: only for a run that this user has begun or goes on with.
    """
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment, best = run.experiment(), run.best_experiment()
    own, networks = open_networks(run, device, watcher.phase)
    kept, forecasts = list[QueryScores](), dict[str, torch.Tensor]()
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
        keep_forecasts=forecasts.update,
    )
    if experiment.evaluation.sealed:
        record_look(run, result)
    together, problem = [own, *further], own.recipe.problem
    if problem.is_forecast:
        watcher.phase("measuring errors of forecasts on meta-validation")
        errors = keep_errors(run, together)
        result = replace(result, coverage=coverage_in_meta_test(errors, together, num_episodes))
        drawings = draw_forecasts(own.tasks, problem, forecasts)
    else:
        watcher.phase("calibrating")
        calibration = keep_calibrations(run, together)
        if problem.name == "classification":
            found, sets = certainty_of_classes(together, calibration, num_episodes)
            result = replace(result, reliability=found, sets=sets)
            drawings = draw_classification(together, calibration, num_episodes)
        else:
            covered = interval_coverage(together, calibration, num_episodes)
            result = replace(result, coverage=covered)
            drawings = draw_regression(together, num_episodes)
        watcher.phase("describing the tasks of meta-training")
        unlike = keep_reference(run, own).unlike_training(own, num_episodes)
        result = replace(result, unlike=unlike)
    drawings.write(run)
    kept[0].write(run)
    run.write_json(RESULTS_FILE, {"meta_test": result.to_json()})
    run.add_seconds(time.monotonic() - start)
    page = write_page(run)
    if is_tracked:
        track_meta_test(run, experiment, result, page, watcher.phase)
    trials = logged_trials(run)
    return Report(run, experiment, best, trials.records, result, run.seconds, trials.ended_by)
