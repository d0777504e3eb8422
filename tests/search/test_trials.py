"""Results that Tune passes on become records."""

from __future__ import annotations

import logging

import pytest

from raymeta.search.records import Proposal
from raymeta.search.settings import SearchSettings
from raymeta.search.trials import Trials

SETTINGS = SearchSettings(objectives=(("loss", "min"),), step_metric="epoch", max_steps=2)


def ended(results: list[tuple[float, float]]) -> Trials:
    """Makes a trial that reported (epoch, loss) and ended with the last report."""
    trials = Trials()
    trials.begin("a", Proposal({"x": 1}, "sobol"))
    for epoch, loss in results:
        trials.report("a", {"epoch": epoch, "loss": loss}, None, SETTINGS)
    epoch, loss = results[-1]
    trials.end("a", {"epoch": epoch, "loss": loss}, None, SETTINGS, error=False)
    return trials


def test_reports_at_fractions_of_an_epoch_are_all_kept() -> None:
    record = ended([(0.5, 4.0), (1, 3.0), (1.5, 2.0), (2.0, 1.0)]).records["a"]
    assert record.curve == [(0.5, 4.0, None), (1, 3.0, None), (1.5, 2.0, None), (2, 1.0, None)]
    assert record.status == "completed"


def test_a_trial_that_ends_within_an_epoch_counts_with_its_last_value() -> None:
    record = ended([(1, 3.0), (1.5, 2.0)]).records["a"]
    assert record.curve[-1] == (1.5, 2.0, None)
    assert record.status == "early_stopped"


def test_a_step_that_does_not_grow_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = ended([(1, 3.0), (1, 2.0), (1, 1.0)]).records["a"]
    assert record.curve == [(1, 3.0, None)]
    assert sum("several results differ at epoch 1" in text for text in caplog.messages) == 1


def test_a_repeated_last_result_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ended([(1, 3.0), (2, 1.0)])
    assert not caplog.messages


def test_a_mean_of_repeated_trials_is_final_though_it_has_no_step() -> None:
    """As Ray's `Repeater` reports it."""
    trials = Trials()
    trials.begin("a", Proposal({"x": 1}, "sobol"))
    trials.end("a", {"loss": 3.0}, None, SETTINGS, error=False)
    record = trials.records["a"]
    assert (record.status, record.curve) == ("completed", [(2, 3.0, None)])
