"""What tests of searches and trials share: a small Ray, and an experiment of seconds."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.nn.networks import Params
from raymeta.ray_patches import without_idle_services
from raymeta.run_folder import Run
from raymeta.search import AxSearcher, ax_model, ax_process, ax_strategy
from raymeta.search.preflight import prepare
from raymeta.search.progress import Observer
from raymeta.search.results import TrialSummary
from raymeta.search.space import Point
from raymeta.search.tuner import run_search
from raymeta.trial.actor import MetaTrial
from tests.search.trainables import Reported

TIMEOUT_S = 120  # for a candidate: Ax is imported and fits models meanwhile

# Over `pen`: every setting that these tests build on, whatever the shipped file says.
TINY = [
    "search.space={}",
    "search.early_stopping=none",
    "tasks.num_points=8",
    "model={cell: gru, hidden_size: 8}",
    "maml={adaptation_steps: 1, inner_lr: 0.1}",
    "training={meta_steps: 6, eval_every: 3, meta_batch_size: 4, val_episodes: 4}",
    "resources={}",
    "evaluation={num_episodes: 4, adaptation_steps: 2}",
]
SPACE = [
    "search.space.maml.inner_lr={low: 0.01, high: 1, log: true}",
    "search.space.training.outer_lr={low: 0.0001, high: 0.1, log: true}",
]


def tiny_experiment(*overrides: str) -> Experiment:
    """Makes a `pen` that trains within a second."""
    return load_experiment("pen-maml", [*TINY, *overrides])


def search(
    experiment: Experiment, run: Run, observer: Observer = lambda _: None
) -> list[TrialSummary]:
    """Runs the rest of a run's search, four trials at once."""
    prepared = prepare(experiment, run.path.parent)
    return run_search(prepared, run, observer=observer, trials_at_once=4)


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    """Starts a Ray with a stated number of CPUs, which need not exist."""
    with without_idle_services(shows_logs=False):
        ray.init(
            "local",
            num_cpus=num_cpus,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_point(searcher: AxSearcher, trial_id: str) -> Point:
    """Asks for a point again and again, as Tune does."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        point = searcher.suggest(trial_id)
        if point is not None:
            assert isinstance(point, dict)
            return point
        time.sleep(0.05)
    pytest.fail("no point came")


def run_ax_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs Ax in this process, with a cheaper search of its acquisition function.

    For tests of what becomes of many trials, in which no one minds how good a point is.
    """

    def call(self: ax_process.AxProcess, method: str, *args: Any) -> Any:
        if self._actor is None:
            self._actor = ax_model.AxModel(*self._arguments)
        # Copies, as an actor gets: the searcher changes its records later.
        return ray.put(getattr(self._actor, method)(*copy.deepcopy(args)))

    monkeypatch.setattr(ax_process.AxProcess, "_call", call)
    monkeypatch.setattr(ax_model, "ACQUISITION_SEARCH", ax_strategy.QUICK_SEARCH)


def fit(
    searcher: Searcher,
    folder: Path,
    space: dict[str, Any] | None = None,
    num_samples: int = 2,
    callbacks: tuple[tune.Callback, ...] = (),
    metric: str | None = "loss",
    mode: str | None = "min",
    trainable: type[tune.Trainable] = Reported,
    **settings: Any,
) -> tune.ResultGrid:
    """Runs a search through Tune, in `folder / "tune"`."""
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            search_alg=searcher,
            num_samples=num_samples,
            reuse_actors=True,
            **settings,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=list(callbacks),
            verbose=0,
        ),
    ).fit()


class StopDriver(tune.Callback):
    """Ends the driver's loop by an exception after a number of regular ends of trials."""

    def __init__(self, after: int) -> None:
        self._left: float = after

    def on_trial_complete(self, **_: Any) -> None:
        self._left -= 1

    def on_step_end(self, **_: Any) -> None:  # the state was saved just before
        if self._left <= 0:
            raise InterruptedError

    def __getstate__(self) -> dict[str, Any]:
        return {"_left": 1000}  # not again after a restore


def saved_state(folder: Path, num_ended: int = 1) -> Path:
    """Waits until a search's state is whole, which Tune copies in a thread of its own."""
    (file,) = folder.glob("searcher-state-*")
    deadline, since, before = time.monotonic() + 60, time.monotonic(), b""
    while not _has_ended(before, num_ended) or time.monotonic() < since + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        if file.read_bytes() != before:
            since, before = time.monotonic(), file.read_bytes()
    return file


def _has_ended(state: bytes, num_ended: int) -> bool:
    try:
        records = json.loads(state)["records"].values()
    except json.JSONDecodeError:
        return False
    return sum(record["status"] != "running" for record in records) >= num_ended


def ax_pids() -> list[int]:
    """Returns the processes of this process's Ray in which Ax runs."""
    return actor_pids("ray::_AxActor")


def worker_pids() -> list[int]:
    """Returns the data-parallel workers of this process's Ray."""
    return actor_pids("ray::Worker")


def actor_pids(title_start: str) -> list[int]:
    """Returns the processes of this process's Ray whose titles begin so."""
    pids = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            title = process.cmdline()
        except psutil.Error:  # ended meanwhile
            continue
        if title and title[0].startswith(title_start):
            pids.append(process.pid)
    return pids


def kill_driver(driver: subprocess.Popen[bytes], grace_s: float = 5) -> None:
    """Kills a driver, and waits until its Ray, whose processes are its descendants, is gone."""
    if driver.poll() is not None:
        return
    descendants = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(descendants, timeout=grace_s)
    for process in alive:  # Ray's agents notice it a minute later
        process.kill()
    psutil.wait_procs(alive, timeout=30)


def trial_config(experiment: Experiment, **values: Any) -> dict[str, Any]:
    """Makes a trial's configuration as Tune passes it, `values` by dotted key."""
    return {"experiment": experiment.model_dump(), **values}


@contextmanager
def new_trial(experiment: Experiment, **values: Any) -> Iterator[MetaTrial]:
    """Makes the inside of a trial actor in this process, with its workers in theirs."""
    trial = MetaTrial(trial_config(experiment, **values))
    try:
        yield trial
    finally:
        trial.stop()


def assert_same_bits(found: Params, expected: Params) -> None:
    """Checks that tensors are equal bit for bit."""
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing
