"""The best trial, or the reason for having none."""

from __future__ import annotations

import pytest

from raymeta.errors import SearchError
from raymeta.search.records import Status, TrialRecord
from raymeta.search.results import TrialSummary, best_trial
from tests.search.helpers import tiny_experiment


def summary(status: Status, value: float, error: str | None = None) -> TrialSummary:
    record = TrialRecord({"x": value}, "bo", status, [(6, value, 0.1)])
    return TrialSummary(str(value), record, error)


def test_the_best_trial_has_used_the_full_budget() -> None:
    trials = [summary("completed", 0.5), summary("completed", 0.7), summary("early_stopped", 0.9)]
    assert best_trial(tiny_experiment(), trials) is trials[1]


def test_a_search_without_a_finished_trial_names_the_first_error() -> None:
    trials = [summary("failed", 0.5, "Traceback\n  …\nOSError: disk full\n")]
    with pytest.raises(SearchError, match=r"none of 1 trials .* first error: OSError: disk full"):
        best_trial(tiny_experiment(), trials)
