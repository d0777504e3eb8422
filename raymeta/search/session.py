"""Connects to Ray and computes how many trials run at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raymeta.data.readers.python import allowance
from raymeta.errors import ResourceError
from raymeta.experiment.resources import Resources
from raymeta.placement import NODES_VARIABLE, WORKERS_VARIABLE, Nodes, from_json, place_trials
from raymeta.ray_patches import without_idle_services
from raymeta.storage.token import protect_token

OBJECT_STORE_BYTES = 100_000_000  # trials exchange messages, not data
HANDLER_S = 0.001  # between two resets of signal handlers
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a submitted job
_TIMED_OUT = "timed out during startup"  # in the message of an exception of Ray's
JOIN_S = 600  # how long to wait for nodes that are still being installed


def start_ray(
    resources: Resources, *, verbose: bool, say: Callable[[str], object] = lambda _: None
) -> int:
    """Connects to the cluster in RAY_ADDRESS, or starts Ray on this machine, unless it is running.

    Waits until the nodes of a new cluster have joined.

    Args:
        resources: of one trial.
        verbose: show Ray's own log.
        say: receives messages about what is awaited.

    Returns:
        The number of trials at once: as configured in `resources`, else as many as fit.

    Raises:
        ResourceError: the nodes have no room for a single trial, or Ray did not start in time.
    """
    connect(verbose)
    # Tune logs the traceback of a failed trial; the table of trials shows its last line.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)
    _wait_for_workers(say)
    placement = place_trials(resources, _nodes())
    return resources.max_concurrent_trials or placement.trials


def connect(verbose: bool) -> None:
    """Connects to the cluster in RAY_ADDRESS, or starts Ray on this machine, unless it is running.

    Args:
        verbose: show Ray's own log.

    Raises:
        ResourceError: Ray did not start in time.
    """
    if not ray.is_initialized():
        # Ray's log is for its developers; -v shows it.
        level = logging.INFO if verbose else logging.ERROR
        local: dict[str, Any] = {
            "address": "local",  # even if another Ray runs on this machine
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        # Workers inherit it, but have working folders of their own.
        os.environ.update(allowance())
        # Those of a cluster that runs already inherit nothing; a job has told its own of it.
        remote: dict[str, Any] = {}
        if allowance() and _JOB not in os.environ:
            remote["runtime_env"] = {"env_vars": allowance()}
        is_ended, own = False, signal.getsignal(signal.SIGTERM)
        with _keeping_signal_handlers(), without_idle_services(shows_logs=verbose):
            try:
                ray.init(
                    logging_level=level,
                    log_to_driver=verbose,
                    **(remote if os.environ.get("RAY_ADDRESS") else local),
                )
            except SystemExit:  # of the handler of SIGTERM that Ray has meanwhile
                if not callable(own):
                    raise
                is_ended = True
            except Exception as error:  # Ray raises a plain Exception when it times out
                if _TIMED_OUT not in str(error):
                    raise
                raise ResourceError(
                    "Ray did not start within half a minute, as happens on a machine that is busy "
                    "with other work; wait for that, and run the same command again"
                ) from error
        if is_ended:
            signal.raise_signal(signal.SIGTERM)
        protect_token()


def stop_ray() -> None:
    """Stops the Ray that `start_ray` or `connect` started.

    Ray takes away this process' handler of SIGTERM early in its shutdown, which lasts a second, so
    the main thread sets the handler again until the shutdown has ended.
    """
    shutdown = threading.Thread(target=ray.shutdown, name="shutdown of Ray")
    shutdown.start()
    while shutdown.is_alive():
        with _keeping_signal_handlers():
            shutdown.join(HANDLER_S)


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Restores the former signal handlers: Ray's print a C++ stack and exit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if callable(handler) or handler == signal.SIG_IGN:  # `nohup` ignores SIGHUP
                    signal.signal(number, handler)


def _wait_for_workers(say: Callable[[str], object]) -> None:
    """Waits for a cluster's workers: the head starts before they are installed."""
    wanted, began = int(os.environ.get(WORKERS_VARIABLE, "1")), time.monotonic()
    has_announced = False
    while NODES_VARIABLE not in os.environ and time.monotonic() < began + JOIN_S:
        joined = sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes())
        if joined >= wanted:
            return
        if not has_announced:
            say(
                f"{joined} of {wanted} nodes have joined; waiting {JOIN_S} s at most (where nodes "
                "start on demand alone, submit with --cluster FILE)"
            )
            has_announced = True
        time.sleep(1)


def _nodes() -> list[Nodes]:
    """Lists the nodes that the cluster may grow to, if known, else the live ones."""
    told = os.environ.get(NODES_VARIABLE)
    if told is not None:
        return from_json(told)
    return [Nodes(n["NodeID"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
