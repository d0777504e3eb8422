"""Assembles searcher, scheduler and trials into a Ray Tuner, and runs or resumes a search.

The trials of a refit run in the same way.  A resumed search gets a new Tuner: it starts from the
run's record of trials, and of Tune's files reads only the checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raymeta.errors import EndedBySignalError, RunError, SearchError
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.placement import STRATEGIES, placement_bundles
from raymeta.ray_patches import out_of_memory_is_a_lost_actor
from raymeta.run_folder import Run
from raymeta.search.asha import scheduler_of
from raymeta.search.listed import ListedPoints
from raymeta.search.memory import MemoryLimit
from raymeta.search.preflight import Prepared
from raymeta.search.progress import Observer, Progress
from raymeta.search.recorder import Interrupted, RecordingSearcher
from raymeta.search.records import TrialRecord
from raymeta.search.results import (
    TrialSummary,
    checkpoints,
    default_trial,
    finished_best,
    summaries,
    trial_folders,
)
from raymeta.search.searcher import AxSearcher
from raymeta.search.space import search_space
from raymeta.search.trackers import loggers, own_loggers_alone
from raymeta.search.trial_log import LoggedTrials, TrialLog, logged_trials
from raymeta.search.watchdog import Watchdog, ending_at_signals, ending_with_the_raylet
from raymeta.storage.tune import run_storage
from raymeta.training.checkpoint import read_state
from raymeta.trial.actor import CONTINUED, RUN_FOLDER, MetaTrial


@dataclass(frozen=True)
class Batch:
    """Trials that run under one Tuner: the search's or the refit's.

    `known` are the trials of earlier sessions, `unfinished` those that run again, and `num_new`
    counts new trials.
    """

    experiment: Experiment
    searcher: AxSearcher | ListedPoints
    scheduler: TrialScheduler
    known: LoggedTrials
    unfinished: list[str]
    num_new: int


def unfinished_trials(experiment: Experiment, run: Run, trials: LoggedTrials) -> list[str]:
    """Lists the trials that a resumed search runs again.

    They were interrupted, failed, or are the best trial or the control with a damaged last
    checkpoint.
    """
    found = [i for i, r in trials.records.items() if r.status in ("running", "failed")]
    rows = summaries(trials)
    for trial in (finished_best(experiment, rows), default_trial(experiment, rows)):
        if trial is not None and not run.model_file("tuned").is_file():
            found += [trial.trial_id] * is_damaged(run, trial.trial_id, trials.notes)
    return list(dict.fromkeys(found))


def is_damaged(run: Run, trial_id: str, notes: list[str]) -> bool:
    """Whether a trial's last checkpoint is damaged, so that it continues from the one before.

    `notes` receives descriptions of damage.
    """
    files = checkpoints(run, trial_id)
    try:
        if files:
            read_state(files[0])
            return False
        notes.append(f"trial {trial_id} has lost its checkpoints; it begins anew")
    except RunError as error:
        notes.append(f"{error}; the trial goes on from the checkpoint before")
    return True


def num_new_trials(experiment: Experiment, run: Run, trials: LoggedTrials) -> int:
    """Counts the trials still to start."""
    if run.has_best or trials.ended_by:
        return 0
    wanted = experiment.search.num_trials if experiment.search.space else 1
    return max(0, wanted - len(trials.records))


def run_search(
    prepared: Prepared,
    run: Run,
    *,
    observer: Observer,
    trials_at_once: int,
    say: Callable[[str], object] = lambda _: None,
) -> list[TrialSummary]:
    """Runs the search in `run`, or the rest of it.

    An empty search space makes one trial with the file's own values.

    Args:
        prepared: what `prepare` found.
        run: its folder.
        observer: receives the events of trials.
        trials_at_once: the most that run at the same time.
        say: receives messages about damage and its replacement.

    Raises:
        SearchError: the search was interrupted.
        RunError: the run folder is gone, or cannot be read or written.
    """
    experiment = prepared.experiment
    for note in prepared.sources.notes:
        say(note)
    trials = logged_trials(run)
    unfinished = unfinished_trials(experiment, run, trials)
    batch = Batch(
        experiment,
        _searcher(prepared, trials.records, unfinished),
        scheduler_of(experiment, prepared.point, trials.records),
        trials,
        unfinished,
        num_new_trials(experiment, run, trials),
    )
    ended = run_trials(batch, run, observer=observer, trials_at_once=trials_at_once, say=say)
    if experiment.search.space:
        rule = logged_trials(run).ended_by
        if not rule:
            rule = f"num_trials: all {experiment.search.num_trials} were made"
            TrialLog(run).end(rule)
        say(f"the search has ended by {rule}")
    return ended


def run_trials(
    batch: Batch,
    run: Run,
    *,
    observer: Observer,
    trials_at_once: int,
    say: Callable[[str], object],
) -> list[TrialSummary]:
    """Runs the trials of a batch; returns all trials of its part of the run, including known ones.

    Raises:
        SearchError: it was interrupted.
        RunError: the run folder is gone, or cannot be read or written.
    """
    # The interval at which Tune saves its files.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    known = batch.known
    for note in known.notes:
        say(note)
    count = len(batch.unfinished) + batch.num_new
    if count == 0:
        return summaries(known)
    watch = run.watch(say)
    log = TrialLog(run, watch)
    interrupted = [_interrupted(run, i, known.records[i]) for i in batch.unfinished]
    searcher = RecordingSearcher(batch.searcher, log, interrupted)
    resources = batch.experiment.resources
    watchdog = Watchdog(
        observer, resources.report_timeout_s, resources.start_timeout_s, resources.grace_s
    )
    callbacks: list[tune.Callback] = [Progress(observer, log, watch), watchdog]
    callbacks += loggers(batch.experiment, run, say)
    try:
        run.trials_dir.mkdir(parents=True, exist_ok=True)
        tuner = _tuner(batch, run, searcher, callbacks, count, trials_at_once)
        with (
            out_of_memory_is_a_lost_actor(),
            ending_at_signals(watchdog),
            ending_with_the_raylet(run.resume_command),
            own_loggers_alone(),
        ):
            tuner.fit()
        log.flush()
    except (OSError, EOFError, TuneError) as error:
        watch.check()
        if isinstance(error, TuneError):
            raise
        run.add_seconds(0.0)  # raises if nothing can be written
        raise RunError(
            f"{run.path}: files there cannot be read or written ({error}); mend that and go on "
            f"with `{run.resume_command}`"
        ) from error
    watch.check()
    ended = summaries(logged_trials(run))
    Run(run.trials_dir).write_json(
        "trials.json",
        [
            {
                "trial_id": t.trial_id,
                "error": t.error,
                "num_skipped": t.num_skipped,
                **asdict(t.record),
            }
            for t in ended
        ],
    )
    if watchdog.received is not None:
        raise EndedBySignalError(
            f"ended by {watchdog.received.name}; go on with `{run.resume_command}`",
            watchdog.received,
        )
    missing = len(known.records) + batch.num_new - len(ended)
    running = any(trial.record.status == "running" for trial in ended)
    if running or (missing > 0 and not searcher.is_exhausted):
        raise SearchError(f"the {run.part} was interrupted; go on with `{run.resume_command}`")
    return ended


def _searcher(
    prepared: Prepared, records: Mapping[str, TrialRecord], unfinished: list[str]
) -> AxSearcher:
    experiment = prepared.experiment
    search = experiment.search
    searcher = AxSearcher(
        search_space(experiment),
        metric=[metric for metric, _ in experiment.objectives],
        mode=[mode for _, mode in experiment.objectives],
        step_metric=STEP_METRIC,
        max_steps=experiment.training.meta_steps,
        curves=search.curves,
        method=search.method,
        model=search.model,
        acquisition=search.acquisition,
        num_sobol=search.num_sobol,
        seed=experiment.seed,
        budget_s=search.budget_s,
        stop_when_gain_below=search.stop_when_gain_below,
        points_to_evaluate=[prepared.point],
        earlier=prepared.earlier,
        sources=prepared.sources.trials,
        why_not=MemoryLimit(experiment),
    )
    if records:
        is_tried = any(record.source == "given" for record in records.values())
        ended = {i: record for i, record in records.items() if i not in unfinished}
        spent_s = max(record.latest_s for record in records.values())
        searcher.continue_from(ended, [] if is_tried else [prepared.point], spent_s)
    return searcher


def _interrupted(run: Run, trial_id: str, record: TrialRecord) -> Interrupted:
    number = len(trial_folders(run, trial_id)) + 1
    files = tuple(str(file) for file in checkpoints(run, trial_id))
    folder = trial_id if number == 1 else f"{trial_id}-{number}"
    return Interrupted(trial_id, record, folder, files)


def _tuner(
    batch: Batch,
    run: Run,
    searcher: RecordingSearcher,
    callbacks: list[tune.Callback],
    count: int,
    trials_at_once: int,
) -> tune.Tuner:
    experiment = batch.experiment
    filesystem, folder = run_storage(run.trials_dir)
    trainable = tune.with_resources(
        MetaTrial,
        tune.PlacementGroupFactory(
            placement_bundles(experiment.resources),
            strategy=STRATEGIES[experiment.resources.placement],
        ),
    )
    return tune.Tuner(
        trainable,
        # Trials need no space; without one, a proposal that rounding put past an end is no error.
        param_space={
            "experiment": with_values(experiment, {"search.space": {}}).model_dump(),
            RUN_FOLDER: str(run.path),
        },
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=batch.scheduler,
            num_samples=count,
            max_concurrent_trials=trials_at_once,
            reuse_actors=True,
            trial_name_creator=_folder_name,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=run.tune_dir.name,
            storage_path=folder,
            storage_filesystem=filesystem,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=experiment.resources.max_failures),
            # Keep two: if the last is damaged, the trial continues from the one before.
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
            ),
            verbose=0,
        ),
    )


def _folder_name(trial: Trial) -> str:
    return str(trial.config.get(CONTINUED, {}).get("folder", trial.trial_id))
