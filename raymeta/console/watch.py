"""Draws a run from its folder while another process searches in it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from raymeta.console.progress import ProgressView
from raymeta.errors import RunError
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.run_folder import Run
from raymeta.search.progress import EventKind, TrialEvent
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import LoggedTrials, logged_trials

POLL_S = 1.0
# Without any news, in storage that cannot tell whether a process is at work. A search restarts a
# silent trial after 10 minutes at most, once another has reported, and a meta-test takes minutes.
SILENT_S = 900.0
_FREE_POLLS = 5  # without a lock before a run counts as left: a driver takes it within seconds


def watch(
    run: Run,
    console: Console,
    *,
    verbose: bool = False,
    poll_s: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Shows a run until it ends or its process is gone.

    In storage without locks it ends with the meta-test's results, or after `SILENT_S` without any
    news (after `resources.report_timeout_s`, if that is longer).

    Args:
        run: to show.
        console: what is written to.
        verbose: also shows every validation, line by line where there is no live view.
        poll_s: seconds between two looks at the folder.
        clock: tells the seconds without news.

    Returns:
        Whether the run is finished.

    Raises:
        RunError: the run cannot be read, or nothing is heard of it where nobody can tell whether a
            process is at work.
    """
    experiment = run.experiment()
    most_silent_s = max(SILENT_S, experiment.resources.report_timeout_s or 0.0)
    trials = logged_trials(run)
    spent = max((record.latest_s for record in trials.records.values()), default=0.0)
    seen: dict[str, tuple[str, int]] = {}
    free, phase = 0, ""
    began, heard = time.monotonic() - spent, clock()
    with ProgressView(console, verbose, _start=began) as view:
        view.started(run, experiment)
        while True:
            # Check the lock first: files read after its release are complete.
            is_locked = run.is_locked
            status = run.status
            for part in (run, run.refit):
                if part is run or part.trials_dir.is_dir():
                    for event in _news(experiment, logged_trials(part), seen):
                        heard = clock()
                        # The clock of the refit begins anew.
                        view.trial(event if part is run else replace(event, at_s=None))
            if status == "done" and not is_locked:
                return True
            free = free + 1 if is_locked is False else 0
            if free >= _FREE_POLLS:
                return False
            if is_locked is None and clock() - heard >= most_silent_s:
                raise RunError(_silence(run, status, most_silent_s))
            if status != phase:
                phase, heard = status, clock()
                text = {"searched": "meta-test", "refitting": "refit"}.get(status)
                if text is not None:
                    view.phase(text)
            view.refresh()
            time.sleep(poll_s)


def _silence(run: Run, status: str, silent_s: float) -> str:
    return (
        f"{run.path}: nothing new for {silent_s / 60:.0f} minutes, and this storage does not tell "
        f"whether a process is at work in the run, which is {status}; if one is, watch it again "
        f"with `raymeta watch {shlex.quote(str(run.path))}`; if it is gone, go on with "
        f"`{run.resume_command}`"
    )


def _news(
    experiment: Experiment, trials: LoggedTrials, seen: dict[str, tuple[str, int]]
) -> Iterator[TrialEvent]:
    """Yields an event for each trial that changed since it was last `seen`."""
    for trial_id, record in trials.records.items():
        state = record.status, len(record.curve)
        if seen.get(trial_id) == state:
            continue
        if trial_id not in seen:
            yield TrialEvent(trial_id, "started", record.point, {}, record.began_s)
        seen[trial_id] = state
        if record.status != "running" or record.curve:
            kinds: Mapping[str, EventKind] = {"running": "result", "failed": "failed"}
            kind = kinds.get(record.status, "completed")
            result = _result(experiment, record) | _remarks(trials, trial_id, record)
            at_s = None if record.began_s is None else record.latest_s
            yield TrialEvent(trial_id, kind, record.point, result, at_s)


def _result(experiment: Experiment, record: TrialRecord) -> dict[str, Any]:
    if not record.curve:
        return {}
    step, mean, sem = record.curve[-1]
    result: dict[str, Any] = {STEP_METRIC: step, experiment.metric: mean}
    result |= {} if sem is None else {f"{experiment.metric}_sem": sem}
    if record.began_s is not None and record.latest_s > record.began_s:
        result["meta_steps_per_s"] = step / (record.latest_s - record.began_s)
    return result


def _remarks(trials: LoggedTrials, trial_id: str, record: TrialRecord) -> dict[str, Any]:
    remarks: dict[str, Any] = {"num_skipped": trials.num_skipped.get(trial_id, 0)}
    if record.status == "abandoned":
        remarks["outcome"] = "diverged"
    if trial_id in trials.errors:
        lines = trials.errors[trial_id].strip().splitlines() or ["no reason is known"]
        remarks["training_error"] = lines[-1]
    return remarks
