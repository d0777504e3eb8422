"""The patches of Ray, each with the version that needs it.

`tests/test_ray_patches.py` fails for each patch that Ray no longer needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.search import Searcher, SearchGenerator


@contextmanager
def out_of_memory_is_a_lost_actor() -> Iterator[None]:
    """Makes Tune restart the trial of an actor that Ray killed for lack of memory.

    Made for Ray 2.60, where Tune does not know `OutOfMemoryError` and ends the whole search.
    """
    task_failed = RayActorManager._actor_task_failed  # noqa: SLF001

    # Tune passes keywords.
    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        task_failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = task_failed  # noqa: SLF001


def correct_trial_count(searcher: Searcher, count: int) -> None:
    """Corrects the trial counter that Tune restores together with `searcher`.

    Made for Ray 2.60: Tune reads the counter from a separate file, which a kill may leave older or
    newer than the file of trials.  It reads that file before it restores the searcher, sets the
    counter right after that, and gives a searcher no other way to correct it.  Too low a counter
    makes a trial too many, too high a counter one too few.
    """
    set_state = SearchGenerator.set_state

    def corrected(generator: SearchGenerator, state: dict[str, Any]) -> None:
        SearchGenerator.set_state = set_state
        inner = generator.searcher
        while inner is not searcher and hasattr(inner, "searcher"):  # in a ConcurrencyLimiter
            inner = inner.searcher
        set_state(generator, state | ({"counter": count} if inner is searcher else {}))

    SearchGenerator.set_state = corrected


def name_runtime_env_folder(name: str) -> None:
    """Names the folder for the code of jobs of the node that this process starts next.

    Made for Ray 2.60, whose node removes that folder when it ends: nodes that share a machine share
    it too, and a job on another node loses its code.
    """
    ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = name


@contextmanager
def without_idle_services(*, shows_logs: bool) -> Iterator[None]:
    """Makes `ray.init` start only the processes that a search uses, on this machine.

    Made for Ray 2.60, which starts a web server although it has `include_dashboard=False`, and
    waits a second for it; a monitor for an autoscaler that no file describes; and a reader of logs.

    Args:
        shows_logs: keep the reader of logs, without which `log_to_driver` shows nothing.
    """
    names = ["start_api_server", "start_monitor", *([] if shows_logs else ["start_log_monitor"])]
    starts = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


def _start_nothing(*_: Any, **__: Any) -> None:
    """Replaces a method of Ray's `Node` that would start a process."""
