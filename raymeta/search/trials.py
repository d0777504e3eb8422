"""Turns Ray Tune's calls into the records of a search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from raymeta.errors import SearchError
from raymeta.search.observations import Observation, observe
from raymeta.search.records import Curve, Proposal, Status, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.tune_space import TuneSpace

_log = logging.getLogger(__name__)


class Trials:
    """The records of a search: `begin`, `report` and `end` for each trial.

    Args:
        records: trials known before, by Tune's trial_id.
        spent_s: seconds that the search took in earlier sessions, if more than these trials show.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        records: dict[str, TrialRecord] | None = None,
        *,
        spent_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.records = {} if records is None else records  # in order of suggestion
        self._clock, self._least_s = clock, spent_s
        self.begin_session()
        self.mistake: SearchError | None = None  # mistake of the trainable that ends the search
        self._num_unusable = 0  # trials that ended without a usable value
        self._has_warned_of_step = False
        self._has_warned_of_repeat = False

    @property
    def num_running(self) -> int:
        """The number of running trials."""
        return sum(record.status == "running" for record in self.records.values())

    def begin_session(self) -> None:
        """Continues the search's clock from the last report of a trial."""
        times = [record.latest_s for record in self.records.values()]
        self._before_s = max([self._least_s, *times])
        self._since = self._clock()

    @property
    def spent_s(self) -> float:
        """Seconds that the search has taken so far, over all sessions."""
        return self._before_s + self._clock() - self._since

    def begin(self, trial_id: str, proposal: Proposal) -> TrialRecord:
        """Adds the record of a new trial."""
        now = self.spent_s
        record = self.records[trial_id] = TrialRecord(
            dict(proposal.point),
            proposal.source,
            reason=proposal.reason,
            began_s=now,
            latest_s=now,
            gain=proposal.gain,
            passed_over=proposal.passed_over,
        )
        return record

    def begin_again(self, trial_id: str, record: TrialRecord) -> None:
        """Continues a trial of an earlier session."""
        self.records[trial_id] = replace(record, status="running")

    def report(
        self,
        trial_id: str,
        result: Mapping[str, Any],
        space: TuneSpace | None,
        settings: SearchSettings,
    ) -> bool:
        """Records an intermediate result; returns whether the record changed."""
        known = self.records.get(trial_id)
        status_before = known.status if known else None
        record = self._running(trial_id, result, space)
        if record is None:
            return False
        observation = observe(result, settings)
        if observation.is_mistake:
            self._stop_for(trial_id, observation)
        elif observation.problem is None and observation.step is None:
            self._warn_of_missing_step(settings)
        elif observation.step is not None:
            if _add(record, observation.step, observation):
                record.latest_s = self.spent_s
                return True
            if _contradicts(record, observation.step, observation):
                self._warn_of_repeated_step(observation.step, settings)
        return status_before != "running"

    def end(
        self,
        trial_id: str,
        result: Mapping[str, Any] | None,
        space: TuneSpace | None,
        settings: SearchSettings,
        *,
        error: bool,
    ) -> bool:
        """Sets a trial's final status; returns whether it was known and running."""
        record = self._running(trial_id, result, space)
        if record is None:
            return False
        observation = None if result is None else observe(result, settings)
        record.status = self._final_status(trial_id, record, observation, settings, error=error)
        record.latest_s = self.spent_s
        return True

    def abandon_running(self, reason: str) -> list[str]:
        """Ends the trials that no longer run; returns their ids."""
        ended = [i for i, record in self.records.items() if record.status == "running"]
        for trial_id in ended:
            _log.warning("trial %s counts as abandoned: %s", trial_id, reason)
            self.records[trial_id].status = "abandoned"
        return ended

    # ------------------------------------------------------------------- within

    def _running(
        self, trial_id: str, result: Mapping[str, Any] | None, space: TuneSpace | None
    ) -> TrialRecord | None:
        """The record of a running trial; None if the trial is unknown or over.

        A failed trial with a new report runs again: `resume_errored` continues it.  A trial that
        only Tune knows began just before a crash, after the searcher's state was saved.
        """
        record = self.records.get(trial_id)
        if record is None:
            point = space.point_of_result(result or {}) if space is not None else None
            if point is None:
                _log.warning(
                    "trial %s is unknown to the search, which learns nothing from it", trial_id
                )
                return None
            record = self.begin(trial_id, Proposal(point, "given"))
            record.began_s = None
            return record
        if record.status == "failed":
            record.status = "running"
        return record if record.status == "running" else None

    def _final_status(
        self,
        trial_id: str,
        record: TrialRecord,
        observation: Observation | None,
        settings: SearchSettings,
        *,
        error: bool,
    ) -> Status:
        """Determines the status of an ended trial; a usable last result goes into its curve."""
        is_usable = observation is not None and observation.problem is None
        if error and not is_usable:
            return "failed"
        if observation is None:
            return "abandoned"  # stopped before it reported
        if observation.problem is not None:
            self._num_unusable += 1
            if observation.is_mistake:
                self._stop_for(trial_id, observation)
            else:
                self._warn_of_unusable(trial_id, observation.problem)
            return "abandoned"
        step = observation.step
        if step is None:  # a Repeater's mean has no step: it is final
            if settings.max_steps is not None:
                self._warn_of_missing_step(settings)
            last = record.curve[-1][0] if record.curve else 0
            step = max(last + 1, settings.max_steps or 0)
        if not _add(record, step, observation) and _contradicts(record, step, observation):
            self._warn_of_repeated_step(step, settings)
        is_whole = settings.max_steps is None or step >= settings.max_steps
        return "completed" if is_whole else "early_stopped"

    def _stop_for(self, trial_id: str, observation: Observation) -> None:
        """Records a mistake of the trainable, which ends the search."""
        message = (
            f"the search needs plain numbers, but in trial {trial_id} {observation.problem}; "
            "report float(...)"
        )
        if self.mistake is None:
            _log.warning("%s", message)
            self.mistake = SearchError(message)

    def _warn_of_unusable(self, trial_id: str, problem: str) -> None:
        """Warns of a trial without a usable value, with their count, less often as it grows."""
        count = self._num_unusable
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …
            num_ended = len(self.records) - self.num_running + 1
            _log.warning(
                "trial %s counts as abandoned, since %s; so far %d of %d ended trials gave the "
                "search no usable value",
                trial_id,
                problem,
                count,
                num_ended,
            )

    def _warn_of_repeated_step(self, step: float, settings: SearchSettings) -> None:
        if not self._has_warned_of_repeat:
            self._has_warned_of_repeat = True
            _log.warning(
                "several results differ at %s %s (the step_metric), and only the first counts; "
                "report a step_metric that grows from result to result",
                settings.step_metric,
                step,
            )

    def _warn_of_missing_step(self, settings: SearchSettings) -> None:
        if not self._has_warned_of_step:
            self._has_warned_of_step = True
            _log.warning(
                "results without %s (the step_metric) count only as the last of their trial, whose "
                "budget they are taken to have used",
                settings.step_metric,
            )


def _contradicts(record: TrialRecord, step: float, observation: Observation) -> bool:
    """Whether an observation gives the latest step another value."""
    last_step, last_mean, _ = record.curve[-1]
    mean, _ = next(iter(observation.values.values()))
    return step == last_step and mean != last_mean


def _add(record: TrialRecord, step: float, observation: Observation) -> bool:
    """Adds an observation to the curves; returns False for a repeated one."""
    if record.curve and step <= record.curve[-1][0]:
        return False  # Tune's last result again, or a retry on its way back
    for number, (metric, (mean, sem)) in enumerate(observation.values.items()):
        curve: Curve = record.curve if number == 0 else record.others.setdefault(metric, [])
        curve.append((step, mean, sem))
    return True
