"""Connecting to Ray, and the number of trials at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from raymeta.errors import ResourceError
from raymeta.experiment.resources import Resources
from raymeta.placement import NODES_VARIABLE, WORKERS_VARIABLE, Nodes, to_json
from raymeta.search import session
from raymeta.search.session import start_ray
from tests.search.helpers import local_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_of_four_cpus() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


def test_ray_starts_no_more_processes_than_a_search_uses() -> None:
    found = {
        Path(word).name
        for process in psutil.Process().children(recursive=True)
        for word in process.cmdline()
    }
    assert {"gcs_server", "raylet"} <= found
    assert found.isdisjoint({"dashboard.py", "monitor.py", "log_monitor.py"})


def test_a_trial_larger_than_the_cluster_is_refused_by_its_keys() -> None:
    with pytest.raises(ResourceError, match=r"needs 5 CPUs \(resources.num_workers = 5"):
        start_ray(Resources(num_workers=5), verbose=False)


def test_a_trial_fits_a_cluster_that_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = [Nodes("gpu", {"CPU": 4, "GPU": 1}, 5)]
    monkeypatch.setenv(NODES_VARIABLE, to_json(growth))
    start_ray(Resources(num_workers=5, gpus_per_worker=1), verbose=False)
    with pytest.raises(ResourceError, match="hold 5"):
        start_ray(Resources(num_workers=6, gpus_per_worker=1), verbose=False)


def test_nodes_that_are_to_join_are_waited_for_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    start_ray(Resources(), verbose=False, say=said.append)
    assert said == []
    monkeypatch.setattr(session, "JOIN_S", 2)
    monkeypatch.setenv(WORKERS_VARIABLE, "2")
    began = time.monotonic()
    start_ray(Resources(), verbose=False, say=said.append)
    (once,) = said
    assert once.startswith("1 of 2 nodes have joined; waiting 2 s at most")
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize(("asked", "trials"), [(3, 3), (None, 4)])
def test_as_many_trials_run_at_once_as_are_asked_for_or_fit(
    asked: int | None, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODES_VARIABLE, to_json([Nodes("box", {"CPU": 8})]))
    resources = Resources(num_workers=2, max_concurrent_trials=asked)
    assert start_ray(resources, verbose=False) == trials


ENDING_RAY = """
import os, signal, threading, time
from raymeta.experiment.resources import Resources
from raymeta.search.session import start_ray, stop_ray

received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
start_ray(Resources(), verbose=False)

def end():
    while not any(thread.name == "shutdown of Ray" for thread in threading.enumerate()):
        time.sleep(0.001)
    time.sleep(0.15)  # by then Ray has taken the handler away
    os.kill(os.getpid(), signal.SIGTERM)

ending = threading.Thread(target=end)
ending.start()
stop_ray()
ending.join()
print(len(received))
os.kill(os.getpid(), signal.SIGTERM)
print(len(received))
"""


def test_a_signal_is_received_while_ray_ends_and_after_it() -> None:
    # A process of its own: a signal that is not received ends it.
    command = [sys.executable, "-c", ENDING_RAY]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "1\n2\n"), ended.stderr


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("The current node timed out during startup. This could happen because", ResourceError),
        ("something else", ValueError),
    ],
)
def test_a_ray_that_does_not_start_in_time_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception]
) -> None:
    def time_out(**_: object) -> None:
        raise (Exception if kind is ResourceError else ValueError)(said)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(kind, match="run the same command again" if kind is ResourceError else said):
        session.connect(verbose=False)


def test_a_signal_while_ray_starts_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """During its start, Ray has a handler that exits with a code without meaning."""

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        signal.raise_signal(signal.SIGTERM)

    received: list[int] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        session.connect(verbose=False)
        assert received == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
