"""Each patch of Ray is needed and works; if a test of need fails, remove the patch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator

from raymeta.ray_patches import (
    correct_trial_count,
    name_runtime_env_folder,
    out_of_memory_is_a_lost_actor,
    without_idle_services,
)

# ------------------------------------------------------------------- killed for lack of memory


class Manager:
    """The part of Ray's actor manager that handles a failed task."""

    def __init__(self) -> None:
        self._failed_actor_ids: set[int] = set()

    def _cleanup_actor(self, tracked_actor: Any) -> None: ...


def fail_for_memory() -> list[Exception]:
    """Makes Ray handle an actor killed for memory; returns what Tune's trial is told."""
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    error = ray.exceptions.OutOfMemoryError("no memory")
    RayActorManager._actor_task_failed(Manager(), tracked_actor_task=task, exception=error)
    return told


def test_unpatched_ray_ends_the_search_when_an_actor_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail_for_memory()


def test_an_actor_that_was_killed_for_memory_is_lost_as_any_other() -> None:
    with out_of_memory_is_a_lost_actor():
        (error,) = fail_for_memory()
    assert isinstance(error, ray.exceptions.RayActorError)
    test_unpatched_ray_ends_the_search_when_an_actor_runs_out_of_memory()  # undone


# ------------------------------------------------------------------- the restored trial counter


class Corrected(Searcher):
    """Sets a known number of trials on restore."""

    count: int | None = None

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:  # noqa: ARG002
        if self.count is not None:
            correct_trial_count(self, self.count)


def restored_counter(folder: Path, searcher: Corrected, *, limited: bool) -> int:
    """Returns the counter after a restore from a file in which it is 7."""
    saved = SearchGenerator(Corrected())
    saved._counter = 7
    saved.save_to_dir(str(folder), "session")
    inner = ConcurrencyLimiter(searcher, max_concurrent=2) if limited else searcher
    generator = SearchGenerator(inner)
    generator.restore_from_dir(str(folder))
    return int(generator._counter)


@pytest.mark.parametrize("limited", [False, True])
def test_the_searcher_corrects_the_counter_that_tune_restores(
    tmp_path: Path, limited: bool
) -> None:
    searcher = Corrected()
    searcher.count = 9
    assert restored_counter(tmp_path, searcher, limited=limited) == 9
    assert restored_counter(tmp_path, Corrected(), limited=limited) == 7  # undone


def test_unpatched_ray_restores_its_counter_after_the_searcher(tmp_path: Path) -> None:
    """Ray overrules a searcher that sets the counter itself."""

    class Setting(Corrected):
        generator: SearchGenerator

        def restore(self, checkpoint_path: str) -> None:  # noqa: ARG002
            self.generator._counter = 9

    SearchGenerator(Corrected()).save_to_dir(str(tmp_path), "session")
    searcher = Setting()
    searcher.generator = SearchGenerator(searcher)
    searcher.generator.restore_from_dir(str(tmp_path))
    assert searcher.generator._counter == 0


# ------------------------------------------------------------------- nodes on one machine


@pytest.fixture
def runtime_env_folder() -> Iterator[str]:
    name = ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME
    yield name
    ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = name


def test_the_nodes_of_one_machine_have_folders_of_their_own(runtime_env_folder: str) -> None:
    assert RayParams().runtime_env_dir_name == runtime_env_folder  # Ray alone: one for all
    name_runtime_env_folder("runtime_resources_2")
    assert RayParams().runtime_env_dir_name == "runtime_resources_2"


# ------------------------------------------------------------------- processes that serve nothing


class Head:
    """The part of Ray's node that starts a head's processes."""

    _gcs_address = _gcs_client = _logs_dir = None

    def __init__(self) -> None:
        self._ray_params = RayParams(include_dashboard=False, include_log_monitor=True)
        self.started: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def start(**_: Any) -> Head:
            self.started.add(name)
            return self

        return start


def test_unpatched_ray_starts_a_dashboard_and_a_monitor_although_disabled() -> None:
    Node.start_head_processes(head := Head())
    assert {"start_api_server", "start_monitor"} <= head.started


@pytest.mark.parametrize("shows_logs", [True, False])
def test_a_node_is_started_without_what_serves_nothing(shows_logs: bool) -> None:
    before = vars(Node).copy()
    with without_idle_services(shows_logs=shows_logs):
        changed = {name for name, value in vars(Node).items() if before[name] is not value}
        expected = {"start_api_server", "start_monitor", "start_log_monitor"}
        assert changed == expected - ({"start_log_monitor"} if shows_logs else set())
        assert all(getattr(Node, name)(None, include_dashboard=False) is None for name in changed)
    assert vars(Node) == before  # undone
