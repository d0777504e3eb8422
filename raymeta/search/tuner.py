"""Runs a search: assembles searcher, scheduler and trials into a Ray Tuner, and resumes one."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from raymeta.errors import RunError, SearchError
from raymeta.experiment import Experiment, Resources
from raymeta.experiment_file import with_values
from raymeta.placement import (
    NODES_VARIABLE,
    STRATEGIES,
    WORKERS_VARIABLE,
    Nodes,
    from_json,
    place_trials,
    placement_bundles,
)
from raymeta.remote import AnyPath
from raymeta.runs import Run
from raymeta.search.records import Status, TrialRecord
from raymeta.search.saved import is_saved, saved_records
from raymeta.search.searcher import AxSearcher
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, file_point, search_space
from raymeta.storage import run_storage
from raymeta.training import CHECKPOINT_NAME
from raymeta.trial import STEP_METRIC, MetaTrial

OBJECT_STORE_BYTES = 100_000_000  # trials exchange messages, not data
JOIN_S = 600  # for nodes to be installed and to join


@dataclass(frozen=True)
class TrialEvent:
    """Something that happened to a trial: it started, reported, came to an end, or failed."""

    trial_id: str
    kind: Literal["started", "result", "completed", "failed"]
    point: Point
    result: dict[str, Any]  # the last one reported; empty before the first


Observer = Callable[[TrialEvent], None]


@dataclass(frozen=True)
class TrialSummary:
    """A trial as the table shows it; `checkpoint` is its last one, None if it left none."""

    trial_id: str
    record: TrialRecord
    checkpoint: AnyPath | None
    error: str | None

    @property
    def steps(self) -> int:
        """Meta-steps at the last report."""
        return self.record.curve[-1][0] if self.record.curve else 0

    @property
    def value(self) -> float:
        """The metric at the last report; NaN without one."""
        return self.record.curve[-1][1] if self.record.curve else math.nan


def start_ray(
    resources: Resources, verbose: bool, say: Callable[[str], object] = lambda _: None
) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray on this machine, unless done already.

    Of a cluster that has just been started, waits for the nodes that are to join.

    Args:
        resources: of one trial.
        verbose: show Ray's own log.
        say: told what is being waited for.

    Raises:
        ResourceError: not one trial fits on the nodes.
    """
    if not ray.is_initialized():
        # Ray's own log lines are for its developers; -v brings them back.
        level = logging.INFO if verbose else logging.ERROR
        local: dict[str, Any] = {
            "address": "local",  # also where another Ray runs on this machine
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        ray.init(
            logging_level=level,
            log_to_driver=verbose,
            **({} if os.environ.get("RAY_ADDRESS") else local),
        )
    # Tune logs a trial's failure with its traceback; the table of trials keeps its last line.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)
    _wait_for_workers(say)
    place_trials(resources, _nodes())


def _wait_for_workers(say: Callable[[str], object]) -> None:
    """Until they have joined, or could have: a head comes up before its workers are installed."""
    wanted, began, said = int(os.environ.get(WORKERS_VARIABLE, "1")), time.monotonic(), False
    while NODES_VARIABLE not in os.environ and time.monotonic() < began + JOIN_S:
        joined = sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes())
        if joined >= wanted:
            return
        if not said:
            say(
                f"{joined} of {wanted} nodes have joined; waiting {JOIN_S} s at most (where nodes "
                "start on demand alone, submit with --cluster FILE)"
            )
            said = True
        time.sleep(1)


def concurrency(resources: Resources) -> int:
    """How many trials run at once: as many as asked for, or as there is room for."""
    return resources.max_concurrent_trials or place_trials(resources, _nodes()).trials


def _nodes() -> list[Nodes]:
    """What the cluster may grow to, where that is told, else what is there."""
    told = os.environ.get(NODES_VARIABLE)
    if told is not None:
        return from_json(told)
    return [Nodes(n["NodeID"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def run_search(
    experiment: Experiment, run: Run, *, observer: Observer, resume: bool = False
) -> list[TrialSummary]:
    """Runs, or goes on with, the search of `experiment` in `run`.

    An empty search space makes one trial, of the file's own values.

    Raises:
        SearchError: it was interrupted, or no trial came to its end.
        RunError: there is nothing to resume, or the run folder cannot be written.
    """
    # Tune saves its state, and the searcher's with it, at this interval: all that a crash can lose.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    trainable = tune.with_resources(
        MetaTrial,
        tune.PlacementGroupFactory(
            placement_bundles(experiment.resources),
            strategy=STRATEGIES[experiment.resources.placement],
        ),
    )
    filesystem, folder = run_storage(run.path)
    tune_dir = f"{folder}/{run.tune_dir.name}"
    if resume and is_saved(run.tune_dir):
        # What a trial failed of, a full disk or a lost machine, may be mended: it gets another go.
        tuner = tune.Tuner.restore(
            tune_dir,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
        # The callbacks were pickled with the tuner, and tell an observer that is gone.
        run_config = tuner._local_tuner.get_run_config()  # noqa: SLF001  (`restore` takes none)
        run_config.callbacks = [_Progress(observer)]
    else:
        tuner = _new_tuner(experiment, run, trainable, observer)
    try:
        with _killed_for_memory_is_lost():
            results = tuner.fit()
        trials = _summaries(results, run)
    except (OSError, EOFError) as error:  # EOFError: Tune's own file, left empty by a full disk
        run.add_seconds(0.0)  # says so, if nothing can be written
        raise RunError(
            f"{run.path}: Tune's files there cannot be read or written ({error}); mend that and go "
            f"on with `{run.resume_command}`"
        ) from error
    run.write_json(
        "trials.json",
        [{"trial_id": t.trial_id, "error": t.error, **asdict(t.record)} for t in trials],
    )
    if any(trial.record.status == "running" for trial in trials):
        raise SearchError(f"the search was interrupted; go on with `{run.resume_command}`")
    return trials


@contextmanager
def _killed_for_memory_is_lost() -> Iterator[None]:
    """An actor that Ray has killed for want of memory is lost like any other: its trial restarts.

    Tune would take the error for a fault of its own, and end the search (Ray 2.60).
    """
    task_failed = RayActorManager._actor_task_failed  # noqa: SLF001

    # Tune calls it by keywords.
    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        task_failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = task_failed  # noqa: SLF001


def _summaries(results: tune.ResultGrid, run: Run) -> list[TrialSummary]:
    """The trials of a search, in the order in which they were suggested."""
    records = saved_records(run.tune_dir)
    trials = []
    for result in results:
        trial_id = Path(result.path).name
        trial_dir = run.tune_dir / trial_id
        trials.append(
            TrialSummary(
                trial_id=trial_id,
                record=records.get(trial_id) or TrialRecord(_point(result.config or {}), "given"),
                checkpoint=(
                    trial_dir / Path(result.checkpoint.path).name / CHECKPOINT_NAME
                    if result.checkpoint
                    else None
                ),
                error=str(result.error) if result.error else None,
            )
        )
    order = {trial_id: number for number, trial_id in enumerate(records)}
    return sorted(trials, key=lambda trial: order.get(trial.trial_id, len(order)))


def _point(config: dict[str, Any]) -> Point:
    """The trial's own values in its configuration."""
    return {key: value for key, value in config.items() if key != "experiment"}


def best_trial(experiment: Experiment, trials: list[TrialSummary]) -> TrialSummary:
    """The trial with the best metric among those that used the full budget.

    Raises:
        SearchError: there is none.
    """
    finished = [t for t in trials if t.record.status == "completed" and t.checkpoint]
    if not finished:
        errors = [t.error for t in trials if t.error]
        reason = f"; the first error: {errors[0].strip().splitlines()[-1]}" if errors else ""
        raise SearchError(f"none of {len(trials)} trials came to its end{reason}")
    sign = 1 if experiment.mode == "max" else -1
    return max(finished, key=lambda t: sign * t.value)


def default_trial(experiment: Experiment, trials: list[TrialSummary]) -> TrialSummary | None:
    """The finished trial of the experiment file's own values; None if no search was asked for."""
    if not experiment.search.space:
        return None
    given = [t for t in trials if t.record.source == "given" and t.record.status == "completed"]
    return given[0] if given else None


def read_trials(run: Run) -> dict[str, TrialRecord]:
    """The trials of a run's search by Tune's trial_id, finished or not."""
    return saved_records(run.tune_dir)


def earlier_trials(experiment: Experiment, root: AnyPath) -> list[TrialRecord]:
    """The trials of the run that `search.warm_start` names, at the budget of this experiment.

    Keys that were not searched then had the value of that run's file.  A trial that went on longer
    counts with what it had at this budget, one that ended before as stopped early.

    Raises:
        RunError: there is no such run, or it was judged by another metric.
    """
    if experiment.search.warm_start is None:
        return []
    run = Run.open(experiment.search.warm_start, root)
    before = run.experiment()
    judged, asked = (
        " and ".join(metric for metric, _ in e.objectives) for e in (before, experiment)
    )
    if before.objectives[: len(experiment.objectives)] != experiment.objectives:
        raise RunError(
            f"search.warm_start: {run.path} was judged by {judged}, this experiment is by {asked}"
        )
    space, budget = search_space(experiment), experiment.training.meta_steps
    records = []
    for record in read_trials(run).values():
        curve = [point for point in record.curve if point[0] <= budget]
        if record.status not in ("completed", "early_stopped") or not curve:
            continue
        values = {p.name: record.point.get(p.name, before.value(p.name)) for p in space.parameters}
        names = space.names_in(values)
        ended: Status = "completed" if curve[-1][0] == budget else "early_stopped"
        point = {name: value for name, value in values.items() if name in names}
        others = {name: [p for p in c if p[0] <= budget] for name, c in record.others.items()}
        records.append(TrialRecord(point, "earlier", ended, curve, others))
    return records


def explain_search(experiment: Experiment, run: Run) -> None:
    """Leaves what the search has found out about its space in the run folder.

    Raises:
        SearchError: there are too few trials, or the model cannot be fitted to them.
        RunError: the run folder cannot be written.
    """
    logging.disable(logging.INFO)  # Ax tells on import what it has found
    try:
        from raymeta.search.explain import explain  # noqa: PLC0415  (Ax takes seconds to import)
    finally:
        logging.disable(logging.NOTSET)
    search = experiment.search
    settings = SearchSettings(
        objectives=experiment.objectives,
        model=search.model,
        curves=search.curves,
        seed=experiment.seed,
    )
    explain(search_space(experiment), settings, read_trials(run)).write(run.search_dir)


def past_events(experiment: Experiment, run: Run) -> Iterator[TrialEvent]:
    """The ends of the trials that an interrupted search has behind it."""
    for trial_id, record in read_trials(run).items():
        if record.status != "running":
            result: dict[str, Any] = {}
            if record.curve:
                step, mean, sem = record.curve[-1]
                result = {STEP_METRIC: step, experiment.metric: mean}
                result |= {} if sem is None else {f"{experiment.metric}_sem": sem}
            kind: Literal["completed", "failed"] = (
                "failed" if record.status == "failed" else "completed"
            )
            yield TrialEvent(trial_id, kind, record.point, result)


def _new_tuner(experiment: Experiment, run: Run, trainable: Any, observer: Observer) -> tune.Tuner:
    search, training = experiment.search, experiment.training
    filesystem, folder = run_storage(run.path)
    space = search_space(experiment)
    searcher = AxSearcher(
        space,
        metric=[metric for metric, _ in experiment.objectives],
        mode=[mode for _, mode in experiment.objectives],
        step_metric=STEP_METRIC,
        max_steps=training.meta_steps,
        curves=search.curves,
        method=search.method,
        model=search.model,
        acquisition=search.acquisition,
        num_sobol=search.num_sobol,
        seed=experiment.seed,
        points_to_evaluate=[file_point(experiment)],
        earlier=earlier_trials(experiment, run.path.parent),
    )
    scheduler: TrialScheduler = FIFOScheduler()
    if search.early_stopping == "asha" and search.grace_steps < training.meta_steps:
        scheduler = _Asha(
            file_point(experiment),
            time_attr=STEP_METRIC,
            metric=experiment.metric,
            mode=experiment.mode,
            grace_period=search.grace_steps,
            max_t=training.meta_steps,
            reduction_factor=search.reduction_factor,
        )
    return tune.Tuner(
        trainable,
        # Trials need no space; without one, a proposal that rounding put past an end is no error.
        param_space={"experiment": with_values(experiment, {"search.space": {}}).model_dump()},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=search.num_trials if space.parameters else 1,
            max_concurrent_trials=concurrency(experiment.resources),
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=run.tune_dir.name,
            storage_path=folder,
            storage_filesystem=filesystem,
            callbacks=[_Progress(observer)],
            failure_config=tune.FailureConfig(max_failures=experiment.resources.max_failures),
            # The last but one stays: Tune's saved state may still point to it.
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
            ),
            verbose=0,
        ),
    )


def _trial_name(trial: Trial) -> str:
    return str(trial.trial_id)


class _Asha(AsyncHyperBandScheduler):
    """ASHA that lets the given point, the experiment file's own, train to its end.

    It is the control that the tuned configuration is compared with at equal training budget.
    """

    def __init__(self, given: Point, **settings: Any) -> None:
        super().__init__(**settings)
        self._given = given

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        given = all(trial.config.get(key) == value for key, value in self._given.items())
        unfinished = result[STEP_METRIC] < self._max_t
        return TrialScheduler.CONTINUE if given and unfinished else decision


class _Progress(tune.Callback):
    """Tells an observer what the trials do."""

    def __init__(self, observer: Observer) -> None:
        self._observer: Observer | None = observer

    def __getstate__(self) -> dict[str, Any]:
        return {"_observer": None}  # of this session alone

    def _notify(
        self,
        trial: Trial,
        kind: Literal["started", "result", "completed", "failed"],
        result: dict[str, Any] | None = None,
    ) -> None:
        if self._observer is not None:
            point = _point(trial.config)
            last = dict(result or trial.last_result or {})
            self._observer(TrialEvent(trial.trial_id, kind, point, last))

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        self._notify(trial, "started")

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        self._notify(trial, "result", result)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        self._notify(trial, "completed")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        self._notify(trial, "failed")
