"""A searcher that issues the points of a list, for trials that no search proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raymeta.search.records import Proposal, TrialRecord
from raymeta.search.saved import SavedSearch, write_state
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point
from raymeta.search.trials import Trials


class ListedPoints(Searcher):
    """Tries each point once and records the results.

    Args:
        points: to try.
        settings: what trials report.
        records: the trials of earlier sessions that have ended.
    """

    def __init__(
        self,
        points: Sequence[Point],
        settings: SearchSettings,
        records: Mapping[str, TrialRecord],
    ) -> None:
        super().__init__(*settings.objectives[0])
        self._points, self._settings = list(points), settings
        self._trials = Trials(dict(records))
        self._max_concurrent: int | None = None

    @property
    def ended_by(self) -> str:
        """Always empty: no stop rule ends a list early."""
        return ""

    @property
    def records(self) -> dict[str, TrialRecord]:
        """All trials by trial_id."""
        return self._trials.records

    def set_search_properties(
        self,
        metric: str | None,  # noqa: ARG002
        mode: str | None,  # noqa: ARG002
        config: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> bool:
        """Takes nothing from the Tuner."""
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Limits running trials here, as `AxSearcher` does."""
        self._max_concurrent = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next point, None while no slot is free, FINISHED after the last one."""
        if self._max_concurrent is not None and self._trials.num_running >= self._max_concurrent:
            return None
        if not self._points:
            return Searcher.FINISHED
        return dict(self._trials.begin(trial_id, Proposal(self._points.pop(0), "given")).point)

    def run_again(self, trial_id: str, record: TrialRecord) -> dict[str, Any]:
        """Goes on with an interrupted trial; its configuration."""
        self._trials.begin_again(trial_id, record)
        return dict(record.point)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Adds an intermediate result to the trial's curve."""
        self._trials.report(trial_id, result, None, self._settings)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial."""
        self._trials.end(trial_id, result, None, self._settings, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Writes the records, which stand in for lost lines of the run's own."""
        write_state(Path(checkpoint_path), SavedSearch([], self.records))

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: a resumed run reads its own record of trials."""
