"""A tunnel to a cluster's dashboard, for as long as it is needed."""

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


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """A way through ssh to the dashboard, which the head binds to its loopback.

    It is opened again when it was lost, as by a laptop that slept or a head that started anew.

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
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "dashboard",
        str(cluster),
        "--port",
        str(port),
        "--no-config-cache",
    ]
    over = threading.Event()
    with tempfile.TemporaryFile() as log:

        def open_tunnel() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # ssh is its child, and ends with it
            )

        process = open_tunnel()

        def keep() -> None:
            nonlocal process
            while not over.wait(_RETRY_S):
                if process.poll() is not None:
                    process = open_tunnel()

        keeper = threading.Thread(target=keep, daemon=True)
        try:
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
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(port: int) -> bool:
    """Whether a web server answers, be it with a refusal."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.settimeout(5)
            return connection.recv(4) == b"HTTP"
    except OSError:
        return False
