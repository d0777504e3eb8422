"""Events of trials, and the callback by which Tune reports them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.experiment import Trial

from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point
from raymeta.search.trial_log import TrialLog
from raymeta.storage.outage import StorageWatch
from raymeta.trial.actor import CONTINUED, own_values

CHECK_S = 2.0  # seconds between checks of the run folder
LONGEST_ERROR = 4000  # characters, of a trial's log of errors

# silent: no report for long; hung: the actor is killed and the trial restarts
EventKind = Literal["started", "result", "silent", "hung", "completed", "failed"]


@dataclass(frozen=True)
class TrialEvent:
    """A trial started, reported a result, ended or failed.

    `at_s` says when, in seconds of the search; None for now.
    """

    trial_id: str
    kind: EventKind
    point: Point
    # The latest, empty before the first; of silent and hung trials `silent_s` and `limit_s`.
    result: dict[str, Any]
    at_s: float | None = None

    @property
    def is_refit(self) -> bool:
        """Whether the trial is a training of the refit: only those set the meta-steps."""
        return "training.meta_steps" in self.point


Observer = Callable[[TrialEvent], None]


def own_id(trial: Trial) -> str:
    """The trial's name in the run: Tune's trial_id when it first ran."""
    return str(trial.config.get(CONTINUED, {}).get("trial_id", trial.trial_id))


def past_events(experiment: Experiment, records: dict[str, TrialRecord]) -> Iterator[TrialEvent]:
    """Yields an event for each trial that ended before the search was interrupted."""
    for trial_id, record in records.items():
        if record.status != "running":
            result: dict[str, Any] = {}
            if record.curve:
                step, mean, sem = record.curve[-1]
                result = {STEP_METRIC: step, experiment.metric: mean}
                result |= {} if sem is None else {f"{experiment.metric}_sem": sem}
            kind: EventKind = "failed" if record.status == "failed" else "completed"
            yield TrialEvent(trial_id, kind, record.point, result)


class Progress(tune.Callback):
    """Reports the events of trials to an observer.

    Args:
        observer: receives the events.
        log: receives the errors of trials.
        watch: of the run's folder.
    """

    def __init__(self, observer: Observer, log: TrialLog, watch: StorageWatch) -> None:
        self._observer: Observer | None = observer
        self._log, self._watch = log, watch
        self._checked_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # They belong to this process.
        return self.__dict__ | {"_observer": None, "_log": None, "_watch": None}

    def _notify(self, trial: Trial, kind: EventKind, result: dict[str, Any] | None = None) -> None:
        if self._observer is not None:
            point = own_values(trial.config)
            last = dict(result or trial.last_result or {})
            self._observer(TrialEvent(own_id(trial), kind, point, last))

    def on_step_begin(self, **_: Any) -> None:
        """Ends the search if the run folder is gone: Tune would make it anew."""
        if time.monotonic() > self._checked_at + CHECK_S:
            self._watch.check()
            self._checked_at = time.monotonic()

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        """Reports a start."""
        self._notify(trial, "started")

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        """Reports a result."""
        self._notify(trial, "result", result)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        """Reports an end."""
        self._notify(trial, "completed")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        """Reports a failure, and records its reason."""
        try:
            # The driver's own copy: that in the run folder is missing where a disk is full.
            error = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        except OSError as unreadable:
            error = f"its error cannot be read: {unreadable}"
        self._log.fail(own_id(trial), error[-LONGEST_ERROR:])
        self._notify(trial, "failed")
