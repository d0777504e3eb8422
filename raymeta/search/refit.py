"""The refit: trains a search's winner again, longer and from several seeds.

The trainings are trials in a folder of their own, RUN/refit, so that neither the search's model nor
its explanation sees them.  The meta-test begins after they have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ray.tune.schedulers import FIFOScheduler

from raymeta.evaluation.networks import NO_REFIT, Refitted
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.run_folder import Run
from raymeta.search.listed import ListedPoints
from raymeta.search.preflight import Prepared
from raymeta.search.progress import Observer
from raymeta.search.results import TrialSummary, best_trial, checkpoints, default_trial
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point
from raymeta.search.trial_log import LoggedTrials, logged_trials
from raymeta.search.tuner import Batch, is_damaged, run_trials
from raymeta.storage.paths import AnyPath

SEED, META_STEPS = "training.seed", "training.meta_steps"


@dataclass(frozen=True)
class Outcome:
    """The result of a search before the meta-test.

    `values` are the winner's values by dotted key, `checkpoints` the networks by their role in the
    meta-test.
    """

    values: Point
    checkpoints: Mapping[str, AnyPath]
    refitted: Refitted = NO_REFIT


def search_outcome(experiment: Experiment, run: Run, trials: list[TrialSummary]) -> Outcome:
    """Gets the best trial and the control as trained by the search.

    Raises:
        SearchError: no trial used the full budget.
    """
    best, default = best_trial(experiment, trials), default_trial(experiment, trials)
    found = {"tuned": best, "default": default}
    # A run whose networks are kept may have lost them.
    files = {role: checkpoints(run, t.trial_id)[:1] for role, t in found.items() if t is not None}
    return Outcome(best.record.point, {role: last for role, held in files.items() for last in held})


def refit(
    prepared: Prepared,
    run: Run,
    searched: Outcome,
    *,
    observer: Observer,
    trials_at_once: int,
    say: Callable[[str], object],
) -> Outcome:
    """Trains the winner again as `search.refit` says, or continues to.

    The control of the file's configuration is trained as long.  Trainings of the same length and
    seed are taken from the search.

    Args:
        prepared: what `prepare` found.
        run: its folder.
        searched: the search's result, kept if no training of the refit ends.
        observer: receives the events of trials.
        trials_at_once: the most that run at the same time.
        say: receives messages about damage and its replacement.

    Raises:
        SearchError: the refit was interrupted.
        RunError: the run folder is gone, or cannot be read or written.
    """
    experiment, part = prepared.experiment, run.refit
    points = _points(experiment, searched.values, prepared.point)
    short = {"tuned": searched.values, "default": prepared.point}
    done = {
        role: searched.checkpoints[role]
        for role, point in points.items()
        if role in searched.checkpoints
        and with_values(experiment, point) == with_values(experiment, short[role])
    }
    wanted: list[Point] = []
    for role, point in points.items():
        if role not in done and point not in wanted:
            wanted.append(point)
    known = logged_trials(part)
    unfinished = _unfinished(part, known, wanted)
    tried = [record.point for record in known.records.values()]
    new = [point for point in wanted if point not in tried]
    ended = {i: record for i, record in known.records.items() if i not in unfinished}
    settings = SearchSettings(
        objectives=((experiment.metric, experiment.mode),),
        step_metric=STEP_METRIC,
        max_steps=experiment.refit_meta_steps,
    )
    searcher = ListedPoints(new, settings, ended)
    batch = Batch(experiment, searcher, FIFOScheduler(), known, unfinished, len(new))
    if batch.unfinished or new:
        say(
            f"refit: {len(batch.unfinished) + len(new)} trainings of "
            f"{experiment.refit_meta_steps} meta-steps"
        )
    trials = run_trials(batch, part, observer=observer, trials_at_once=trials_at_once, say=say)
    for role, point in points.items():
        same = [t for t in trials if t.record.point == point and t.record.status == "completed"]
        if same and role not in done:
            done[role] = checkpoints(part, same[-1].trial_id)[0]
    return _outcome(experiment, points, searched, done)


def unfinished_trainings(experiment: Experiment, run: Run) -> bool:
    """Whether a resumed run has unfinished trainings of the refit."""
    records = logged_trials(run.refit).records.values() if experiment.search.refit else ()
    return any(record.status in ("running", "failed") for record in records)


def _points(experiment: Experiment, winner: Point, given: Point) -> dict[str, Point]:
    """Lists the points to train, by role."""
    refit = experiment.search.refit
    assert refit is not None, "a refit was asked for"
    first, steps = experiment.training.seed, experiment.refit_meta_steps
    points = {
        ("tuned" if number == 0 else f"tuned-{number}"): {
            **winner,
            META_STEPS: steps,
            SEED: first + number,
        }
        for number in range(refit.seeds)
    }
    if experiment.search.space:
        points["default"] = {**given, META_STEPS: steps, SEED: first}
    return points


def _unfinished(part: Run, known: LoggedTrials, wanted: list[Point]) -> list[str]:
    """The trainings that run again: interrupted, failed, or with a damaged last checkpoint.

    Trainings of other points belong to a winner that a resumed search has replaced.
    """
    found = []
    for trial_id, record in known.records.items():
        if record.point not in wanted:
            continue
        is_over = record.status not in ("running", "failed")
        is_done = record.status == "completed"
        if not is_over or (is_done and is_damaged(part, trial_id, known.notes)):
            found.append(trial_id)
    return found


def _outcome(
    experiment: Experiment,
    points: Mapping[str, Point],
    searched: Outcome,
    done: Mapping[str, AnyPath],
) -> Outcome:
    """Collects the finished trainings, `tuned` first; without any, the search's result."""
    ended = [role for role in points if role in done and role != "default"]
    if not ended:
        return searched
    files = {role: done[kept] for role, kept in zip(points, ended, strict=False)}
    is_default_done = "default" in done
    if is_default_done:
        files["default"] = done["default"]
    elif "default" in searched.checkpoints:
        files["default"] = searched.checkpoints["default"]
    values = {
        **searched.values,
        META_STEPS: experiment.refit_meta_steps,
        SEED: points[ended[0]][SEED],
        "search.refit.steps": 1.0,  # of what is in best.yaml
    }
    return Outcome(
        values,
        files,
        Refitted(
            seeds=tuple(points[role][SEED] for role in ended),
            default_meta_steps=(
                experiment.refit_meta_steps if is_default_done else experiment.training.meta_steps
            ),
        ),
    )
