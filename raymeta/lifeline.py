"""Ends a worker process of Ray's soon after the raylet that started it.

After `kill -9` of a driver that started its own Ray, the raylet dies at once, but a worker tries to
reach Ray for up to 100 s before it gives up (Ray 2.60).
"""

from __future__ import annotations

import os
import threading
import time

import ray

POLL_S = 1.0


def end_with_parent() -> None:
    """Lets this process exit, without cleanup, within seconds of its parent.

    Does nothing outside Ray's worker processes.
    """
    if ray._private.worker.global_worker.mode != ray.WORKER_MODE:  # noqa: SLF001
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
