"""Keeps an ssh tunnel to a cluster's dashboard open."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raymeta.errors import ClusterError

_TIMEOUT_S = 60
_RETRY_S = 2.0
_PATIENCE_S = 5.0  # with a process that was told to end
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Runs a command, and ends it when the pipe from this process closes: even SIGKILL closes it.
_KEEPER = """
import os, signal, subprocess, sys, threading

def end():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
raise SystemExit(subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL))
"""


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Opens an ssh tunnel to the dashboard, which the head binds to its loopback.

    A lost tunnel is reopened, such as after the laptop slept or the head restarted. The tunnel ends
    with this process, however the process ends.

    Args:
        cluster: a file of Ray's cluster launcher.

    Yields:
        The dashboard's address on this machine.

    Raises:
        ClusterError: the head cannot be reached.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = _dashboard_command(cluster, port)
    over = threading.Event()
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as log, _exit_on_signals():

        def open_tunnel() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-I", "-c", _KEEPER, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # ssh is its child, and ends with it
            )

        def keep() -> None:
            nonlocal process
            while not over.wait(_RETRY_S):
                if process is None or process.poll() is not None:
                    process = open_tunnel()

        keeper = threading.Thread(target=keep, daemon=True)
        try:
            process = open_tunnel()
            deadline = time.monotonic() + _TIMEOUT_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    reason = said[-1] if said else "no answer"
                    raise ClusterError(
                        f"{cluster}: no tunnel to the head's dashboard: {reason}; is the cluster "
                        f"up (`ray up {cluster}`), and may you ssh to its head?"
                    )
                time.sleep(0.2)
            keeper.start()
            yield f"http://127.0.0.1:{port}"
        finally:
            over.set()
            if keeper.is_alive():
                keeper.join()
            if process is not None:
                end_process(process)


def _dashboard_command(cluster: Path, port: int) -> list[str]:
    ray = [sys.executable, "-m", "ray.scripts.scripts"]  # wherever PATH leads
    return [*ray, "dashboard", str(cluster), "--port", str(port), "--no-config-cache"]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)
            return


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP exit this process normally, `finally` blocks included."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    # `nohup` ignores SIGHUP; keep that.
    handled = [s for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN]

    def leave(number: int, _: object) -> None:
        for other in handled:  # do not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    earlier = {number: signal.signal(number, leave) for number in handled}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _answers(port: int) -> bool:
    """Whether a web server answers, even with an error."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.settimeout(5)
            return connection.recv(4) == b"HTTP"
    except OSError:
        return False
