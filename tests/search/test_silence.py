"""Deadlines of reports, by a clock of our own; `test_watchdog.py` has real processes."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from raymeta.errors import REPEAT_S
from raymeta.search import watchdog
from raymeta.search.progress import TrialEvent
from raymeta.search.watchdog import OWN_WAIT_S, Watchdog, _Silence

STEP_S = 0.1  # Tune calls as often


class Search:
    """A search of one trial under a watchdog, at a time that the test sets."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        report_timeout_s: float | None,
        start_timeout_s: float | None = None,
    ) -> None:
        self.now = 1000.0
        self.killed: list[object] = []
        self.events: list[TrialEvent] = []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(watchdog, "ray", SimpleNamespace(kill=self.killed.append))
        self.watchdog = Watchdog(self.events.append, report_timeout_s, start_timeout_s, grace_s=25)
        state = SimpleNamespace(ray_actor="the actor")
        self.trial: Any = SimpleNamespace(
            trial_id="one", status="RUNNING", config={}, temporary_state=state
        )
        self.watchdog.on_trial_start(trial=self.trial)

    def pass_time(self, seconds: float) -> None:
        """Time in which Tune's loop goes on, and no report comes."""
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            self.watchdog.on_step_begin(trials=[self.trial])
            self.watchdog.on_step_end(trials=[self.trial])


def test_a_silent_trial_is_named_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, report_timeout_s=None, start_timeout_s=20)
    search.pass_time(9)
    assert search.events == []
    search.pass_time(2)
    assert [event.kind for event in search.events] == ["silent"]
    search.pass_time(8)
    assert search.killed == []
    search.pass_time(2)
    assert search.killed == ["the actor"]
    assert [event.kind for event in search.events] == ["silent", "hung"]


@pytest.mark.parametrize("call", ["on_step_begin", "on_step_end", "on_trial_result"])
def test_a_wait_of_the_driver_is_no_silence_of_its_trials(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    search = Search(monkeypatch, report_timeout_s=20, start_timeout_s=20)
    search.pass_time(8)
    search.now += 290  # for storage
    getattr(search.watchdog, call)(trials=[search.trial], trial=search.trial)
    search.pass_time(1)
    assert search.killed == []
    assert search.events == []
    assert (search.watchdog._longest or 0.0) < 20  # of which later deadlines are multiples
    search.pass_time(21)
    assert search.killed == ["the actor"]


def test_short_waits_of_the_driver_count(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, report_timeout_s=None, start_timeout_s=20)
    for _ in range(5):
        search.now += OWN_WAIT_S - 0.1
        search.watchdog.on_step_begin(trials=[search.trial])
    assert search.killed == ["the actor"]


@pytest.mark.parametrize(
    ("own_s", "others_s", "report_s", "start_s", "limit_s"),
    [
        (None, None, None, None, 1800.0),  # no trial has reported
        (None, 2.0, None, None, 600.0),  # the first report of a trial: at least ten minutes
        (None, 40.0, None, None, 1200.0),  # … and 30 times the longest of all
        (None, 2.0, 7.0, None, 600.0),  # what later reports may take says nothing of a start
        (None, 2.0, 900.0, None, 900.0),  # … unless it is longer
        (None, 40.0, 900.0, 5.0, 5.0),
        (2.0, 40.0, None, 5.0, 60.0),  # a later report: at least a minute
        (9.0, 40.0, None, None, 90.0),  # … and ten times its own longest
        (9.0, 40.0, 7.0, 5.0, 7.0),
    ],
)
def test_the_deadline_follows_the_settings_and_the_reports_so_far(
    own_s: float | None,
    others_s: float | None,
    report_s: float | None,
    start_s: float | None,
    limit_s: float,
) -> None:
    found = Watchdog(lambda _: None, report_s, start_s, grace_s=25, _longest=others_s)
    assert found._limit_s(_Silence(0.0, own_s)) == limit_s


@pytest.mark.parametrize(("reports", "ended_s"), [(True, 0.2), (False, 7.0)])
def test_after_a_signal_trials_may_report_once_more_within_the_grace(
    monkeypatch: pytest.MonkeyPatch, reports: bool, ended_s: float
) -> None:
    search = Search(monkeypatch, report_timeout_s=None)
    search.watchdog.grace_s = 7.0
    raised: list[float] = []
    monkeypatch.setattr(signal, "raise_signal", lambda _: raised.append(search.now))
    search.watchdog.receive(signal.SIGTERM)
    began = search.now
    search.pass_time(0.1)
    assert not raised
    if reports:
        search.watchdog.on_trial_result(trial=search.trial)
    search.pass_time(10)
    assert raised[0] - began == pytest.approx(ended_s, abs=STEP_S)


def test_a_second_signal_ends_a_search_at_once_but_not_the_same_one_sent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = Search(monkeypatch, report_timeout_s=None)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    search.watchdog.receive(signal.SIGTERM)
    search.now += REPEAT_S / 2  # Ray sends it to a job, which passes it on
    search.watchdog.receive(signal.SIGTERM)
    assert codes == []
    search.now += REPEAT_S
    search.watchdog.receive(signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]
