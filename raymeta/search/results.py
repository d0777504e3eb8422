"""Summarises a search's trials; finds the best one and the control."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from raymeta.errors import SearchError
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import LoggedTrials, logged_trials
from raymeta.storage.paths import AnyPath, list_matching
from raymeta.training.checkpoint import CHECKPOINT_NAME


@dataclass(frozen=True)
class TrialSummary:
    """A row of the table of trials.

    `error` says why the trial failed or has no finite result; `num_skipped` counts meta-steps that
    were skipped as not finite.
    """

    trial_id: str
    record: TrialRecord
    error: str | None = None
    num_skipped: int = 0

    @property
    def steps(self) -> int:
        """Meta-steps at the last report."""
        return int(self.record.curve[-1][0]) if self.record.curve else 0

    @property
    def value(self) -> float:
        """The metric at the last report; NaN if there is none."""
        return self.record.curve[-1][1] if self.record.curve else math.nan


def summaries(trials: LoggedTrials) -> list[TrialSummary]:
    """Summarises the trials of a search in the order of their suggestion."""
    return [
        TrialSummary(i, record, trials.errors.get(i), trials.num_skipped.get(i, 0))
        for i, record in trials.records.items()
    ]


def finished_best(experiment: Experiment, trials: list[TrialSummary]) -> TrialSummary | None:
    """Finds the best trial that used the full budget; None without one."""
    finished = [t for t in trials if t.record.status == "completed"]
    return max(finished, key=lambda t: experiment.problem.sign * t.value, default=None)


def best_trial(experiment: Experiment, trials: list[TrialSummary]) -> TrialSummary:
    """The trial with the best metric among those that used the full budget.

    Raises:
        SearchError: no trial used the full budget.
    """
    best = finished_best(experiment, trials)
    if best is None:
        errors = [t.error for t in trials if t.error]
        reason = f"; the first error: {errors[0].strip().splitlines()[-1]}" if errors else ""
        raise SearchError(f"none of {len(trials)} trials came to its end{reason}")
    return best


def default_trial(experiment: Experiment, trials: list[TrialSummary]) -> TrialSummary | None:
    """Finds the control, the file's own finished trial; None if nothing was searched."""
    if not experiment.search.space:
        return None
    given = [t for t in trials if t.record.source == "given" and t.record.status == "completed"]
    return given[0] if given else None


def read_trials(run: Run) -> dict[str, TrialRecord]:
    """Reads all trials of a run's search, finished or not, by trial_id.

    Raises:
        RunError: the record of trials cannot be read.
    """
    return logged_trials(run).records


def trial_folders(run: Run, trial_id: str) -> list[AnyPath]:
    """Lists a trial's folders, one per session, the oldest first."""
    folders = {}
    for folder in list_matching(run.tune_dir, f"{trial_id}*"):
        named = re.fullmatch(rf"{trial_id}(?:-(\d+))?", folder.name)
        if named:
            folders[int(named[1] or 1)] = folder
    return [folders[number] for number in sorted(folders)]


def checkpoints(run: Run, trial_id: str) -> list[AnyPath]:
    """Lists a trial's checkpoint files, the latest first."""
    return [
        file
        for folder in reversed(trial_folders(run, trial_id))
        for file in reversed(list_matching(folder, f"checkpoint_*/{CHECKPOINT_NAME}"))
    ]
