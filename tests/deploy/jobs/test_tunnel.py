"""The tunnel to a dashboard ends with the process that opened it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raymeta.deploy.jobs import tunnel
from raymeta.errors import ClusterError

TIMEOUT_S = 60
# In place of `ray dashboard`: a web server that has a child, as `ray dashboard` has ssh.
SCRIPT = """
import sys, time
from pathlib import Path
from raymeta.deploy.jobs import tunnel

def command(cluster, port):
    return ["sh", "-c", f"sleep 600 & exec {sys.executable} -m http.server --bind 127.0.0.1 {port}"]

tunnel._dashboard_command = command
with tunnel.tunnel(Path("cluster.yaml")) as address:
    print(address, flush=True)
    while True:
        time.sleep(0.1)
"""


@pytest.fixture
def follower() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Starts a process with an open tunnel; returns it and the tunnel's processes."""
    process = subprocess.Popen(
        # Whoever runs the tests may ignore signals, and children inherit that.
        ["env", "--default-signal=HUP,INT,TERM", sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3  # who ends the other two with the process
    yield process, children
    for child in [*children, process]:
        if child.is_running() if isinstance(child, psutil.Process) else child.poll() is None:
            child.kill()
    process.wait()


def are_gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while alive := [p for p in processes if p.is_running() and p.status() != "zombie"]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_tunnel_with_its_process(
    follower: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    process, children = follower
    process.send_signal(number)
    code = process.wait(TIMEOUT_S)
    assert are_gone(children)
    if number in (signal.SIGTERM, signal.SIGHUP):
        assert code == 128 + number


def test_a_second_signal_does_not_break_off_the_end(
    follower: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, children = follower
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.02)
    assert process.wait(TIMEOUT_S) != 0
    assert are_gone(children)


def test_a_tunnel_that_does_not_open_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(
        tunnel, "_dashboard_command", lambda *_: ["sh", "-c", "echo no route to host; exit 1"]
    )
    with (
        pytest.raises(ClusterError, match="no tunnel to the head's dashboard: no route to host"),
        tunnel.tunnel(Path("cluster.yaml")),
    ):
        pytest.fail("there is no tunnel")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
