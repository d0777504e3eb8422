"""Wraps a searcher: records every trial, and continues interrupted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from raymeta.search.listed import ListedPoints
from raymeta.search.records import TrialRecord
from raymeta.search.searcher import AxSearcher
from raymeta.search.trial_log import TrialLog
from raymeta.trial.actor import CONTINUED
from raymeta.uncertainty import HALVES


@dataclass(frozen=True)
class Interrupted:
    """A trial to continue from the first whole file of `checkpoints`.

    Tune gives it another id in this session, and a folder of its own.
    """

    trial_id: str
    record: TrialRecord
    folder: str
    checkpoints: tuple[str, ...]


class RecordingSearcher(Searcher):
    """Issues interrupted trials first, then the searcher's; writes all to the log.

    Args:
        searcher: knows the trials of earlier sessions that have ended.
        log: receives the trials.
        interrupted: the other trials of earlier sessions.
    """

    def __init__(
        self,
        searcher: AxSearcher | ListedPoints,
        log: TrialLog,
        interrupted: Sequence[Interrupted] = (),
    ) -> None:
        super().__init__()
        self.inner = searcher
        self.is_exhausted = False  # there is no further trial
        self._log = log
        self._interrupted = list(interrupted)
        self._own_ids: dict[str, str] = {}  # Tune's id -> ours, of interrupted trials
        self._max_concurrent: int | None = None
        self._live: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the log, which belongs to this process."""
        return self.__dict__ | {"_log": None}

    @property
    def metric(self) -> str:
        """The first objective."""
        return self.inner.metric

    @property
    def mode(self) -> str:
        """The direction of the first objective."""
        return self.inner.mode

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Passes the Tuner's properties on."""
        return self.inner.set_search_properties(metric, mode, config, **spec)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Limits the trials that run at once."""
        self._max_concurrent = max_concurrent
        return self.inner.set_max_concurrency(max_concurrent)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The values of an interrupted trial, or a new point."""
        if self._interrupted:
            if self._max_concurrent is not None and len(self._live) >= self._max_concurrent:
                return None
            trial = self._interrupted.pop(0)
            self._own_ids[trial_id] = trial.trial_id
            self._live.add(trial_id)
            continued = {
                "trial_id": trial.trial_id,
                "folder": trial.folder,
                "checkpoints": list(trial.checkpoints),
            }
            return {**self.inner.run_again(trial.trial_id, trial.record), CONTINUED: continued}
        config = self.inner.suggest(trial_id)
        if config == Searcher.FINISHED:
            if not self.is_exhausted:
                self._log.end(self.inner.ended_by or "every point of the space was tried")
            self.is_exhausted = True
        elif config is not None:
            self._live.add(trial_id)
            self._log.set(trial_id, self.inner.records[trial_id])
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records a report."""
        own_id = self._own_ids.get(trial_id, trial_id)
        self.inner.on_trial_result(own_id, result)
        if own_id in self.inner.records:
            self._log.report(own_id, self.inner.records[own_id])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Records an end."""
        self._live.discard(trial_id)
        own_id = self._own_ids.get(trial_id, trial_id)
        self.inner.on_trial_complete(own_id, result, error)
        if own_id in self.inner.records:
            last = result or {}
            self._log.set(
                own_id,
                self.inner.records[own_id],
                error=last.get("training_error"),
                num_skipped=int(last.get("num_skipped", 0)),
                halves=self._halves(last),
            )

    def _halves(self, result: dict[str, Any]) -> tuple[float, float] | None:
        one, other = (result.get(self.metric + suffix) for suffix in HALVES)
        if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
            return None
        return float(one), float(other)

    def save(self, checkpoint_path: str) -> None:
        """Saves the searcher's state among Tune's files."""
        self.inner.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Restores the searcher's state."""
        self.inner.restore(checkpoint_path)
