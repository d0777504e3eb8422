"""Watches a search from its driver: silent trials, the raylet, and signals.

Ray notices a process that dies, but not one that hangs: Tune would wait for its trial forever. So
each report has a deadline. A trial that misses it is killed, and Tune restarts it from its last
checkpoint, as after any lost process (`resources.max_failures`).

A trial's clock starts with Tune's `on_trial_start`, when Tune hands out the trial's actor.  All
that may hang comes after that (`raymeta.trial.actor`), but for the start of the process itself,
which Ray watches, and its import of Ray Tune.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from raymeta.errors import REPEAT_S
from raymeta.search.progress import EventKind, Observer, TrialEvent, own_id
from raymeta.trial.actor import own_values

# The default deadline, in multiples of the longest time between reports so far: of the trial itself
# once it has reported, else of all trials, whose sizes may differ.
OWN_MULTIPLE, OTHERS_MULTIPLE = 10, 30
LEAST_S, LEAST_FIRST_S = 60.0, 600.0  # starting a trial includes installing, compiling, pretraining
FIRST_S = 1800.0  # before any trial has reported
OWN_WAIT_S = (
    5.0  # between two of Tune's calls: longer ones are the driver's own, such as for storage
)
WARN_SHARE = 0.5  # fraction of the deadline after which the view names the trial
RAYLET_CHECK_S = 5.0
RAYLET_EXIT_S = 20.0
LOST_RAYLET = "Ray's process on this machine (raylet) has died"


@dataclass
class _Silence:
    """The report times of a running trial."""

    since: float
    longest: float | None = None  # seconds between two of its reports
    is_warned: bool = False


@dataclass
class Watchdog(tune.Callback):
    """A callback that Tune calls at every step of its loop.

    Attributes:
        observer: is told of silent trials (`TrialEvent.kind` "silent" and "hung").
        report_timeout_s: seconds a report may take; None derives it from the reports so far.
        start_timeout_s: seconds the first report of a trial may take; None likewise.
        grace_s: seconds after a signal in which trials may report once more.
        received: the signal that ends the search, if any.
    """

    observer: Observer
    report_timeout_s: float | None
    start_timeout_s: float | None
    grace_s: float
    received: signal.Signals | None = None
    _silences: dict[str, _Silence] = field(default_factory=dict)
    _longest: float | None = None
    _called_at: float | None = None  # by Tune, the last time
    _received_at: float = 0.0
    _reported: set[str] = field(default_factory=set)  # since the signal

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; a resumed search makes new ones

    # ------------------------------------------------------------------- Tune's calls

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        """Starts the clock of a trial."""
        self._leave_out_own_wait()
        self._silences[trial.trial_id] = _Silence(time.monotonic())

    def on_trial_result(self, *, trial: Trial, **_: Any) -> None:
        """Starts the clock of the next report."""
        self._leave_out_own_wait()
        now = time.monotonic()
        silence = self._silences.setdefault(trial.trial_id, _Silence(now))
        took = now - silence.since
        silence.longest = max(silence.longest or 0.0, took)
        self._longest = max(self._longest or 0.0, took)
        silence.since, silence.is_warned = now, False
        self._reported.add(trial.trial_id)

    def on_step_begin(self, *, trials: Sequence[Trial], **_: Any) -> None:
        """Kills the actors of trials that missed their deadline."""
        self._leave_out_own_wait()
        for trial in trials:
            silence = self._silences.get(trial.trial_id)
            if trial.status != Trial.RUNNING or silence is None:
                continue
            silent_s, limit_s = time.monotonic() - silence.since, self._limit_s(silence)
            if silent_s > limit_s:
                self._notify(trial, "hung", silent_s, limit_s)
                silence.since, silence.is_warned = time.monotonic(), False
                actor = trial.temporary_state.ray_actor
                if actor is not None:
                    ray.kill(actor)  # with it go its workers
            elif silent_s > WARN_SHARE * limit_s and not silence.is_warned:
                silence.is_warned = True
                self._notify(trial, "silent", silent_s, limit_s)

    def on_step_end(self, *, trials: Sequence[Trial], **_: Any) -> None:
        """Ends the search after a signal: when all running trials have reported, or in time."""
        self._leave_out_own_wait()
        if self.received is None:
            return
        running = {t.trial_id for t in trials if t.status == Trial.RUNNING}
        if running <= self._reported or time.monotonic() > self._received_at + self.grace_s:
            self._reported = set()
            signal.raise_signal(signal.SIGINT)  # Tune saves its state and ends its actors

    # ------------------------------------------------------------------- signals

    def receive(self, number: int) -> None:
        """Requests the end of the search; a second signal, some seconds later, ends it at once."""
        if self.received is not None:
            if time.monotonic() - self._received_at > REPEAT_S:
                os._exit(128 + number)
            return
        self._reported = set()
        self._received_at = time.monotonic()
        self.received = signal.Signals(number)

    # ------------------------------------------------------------------- within

    def _leave_out_own_wait(self) -> None:
        """Leaves the driver's own wait out of all clocks: reports lie unread meanwhile."""
        now = time.monotonic()
        if self._called_at is not None and now - self._called_at > OWN_WAIT_S:
            for silence in self._silences.values():
                silence.since = min(now, silence.since + now - self._called_at)
        self._called_at = now

    def _limit_s(self, silence: _Silence) -> float:
        if silence.longest is not None:
            return self.report_timeout_s or max(LEAST_S, OWN_MULTIPLE * silence.longest)
        if self.start_timeout_s is not None:
            return self.start_timeout_s
        first_s = max(LEAST_FIRST_S, OTHERS_MULTIPLE * self._longest) if self._longest else FIRST_S
        return max(first_s, self.report_timeout_s or 0.0)

    def _notify(self, trial: Trial, kind: EventKind, silent_s: float, limit_s: float) -> None:
        is_first = self._silences[trial.trial_id].longest is None
        limit = "start_timeout_s" if is_first else "report_timeout_s"
        result = {"silent_s": silent_s, "limit_s": limit_s, "limit": limit}
        self.observer(TrialEvent(own_id(trial), kind, own_values(trial.config), result))


@contextmanager
def ending_at_signals(watchdog: Watchdog) -> Iterator[None]:
    """Hands SIGTERM and SIGHUP to the watchdog unless ignored (`nohup`); main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        watchdog.receive(number)

    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, handle)
        for number in signals
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_with_the_raylet(resume: str) -> Iterator[None]:
    """Ends this process when its machine's raylet dies, since Ray's calls would never return.

    Args:
        resume: the command that continues the search.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(RAYLET_CHECK_S):
            if not _has_raylet():
                signal.raise_signal(signal.SIGINT)  # Tune ends its loop, where it still can
                if not over.wait(RAYLET_EXIT_S):
                    sys.stderr.write(f"error: {LOST_RAYLET}; go on with `{resume}`\n")
                    sys.stderr.flush()
                    os._exit(1)
                return

    thread = threading.Thread(target=watch, name="raylet", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _has_raylet() -> bool:
    """Whether the raylet of this driver still listens."""
    node = ray._private.worker.global_worker.node  # noqa: SLF001  (Ray has no public way)
    if node is None:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(node.raylet_socket_name)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
