"""The trial actor and its data-parallel workers, with real processes and real gloo."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.train._internal.session import _TrainingResult
from safetensors.torch import load

from raymeta.errors import ExperimentError
from raymeta.experiment.file import load_experiment
from raymeta.experiment.resources import Resources
from raymeta.experiment.schema import STEP_METRIC
from raymeta.storage.tune import run_storage
from raymeta.training.checkpoint import CHECKPOINT_NAME
from raymeta.training.trainer import build_trainer
from raymeta.trial.actor import MetaTrial
from raymeta.trial.workers import WorkerGroup
from tests.search.helpers import (
    assert_same_bits,
    local_ray,
    new_trial,
    tiny_experiment,
    trial_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXACT = ["training.precision=float64"]
DIVERGING = {"maml.inner_lr": 1e300}


@pytest.fixture(scope="module", autouse=True)
def ray_of_four_cpus() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


def metrics(result: dict[str, Any]) -> dict[str, float]:
    """Returns the trainer's measurements, without times and Tune's own keys."""
    own = ("train_", "val_", "meta_grad_norm", "num_skipped")
    return {k: v for k, v in result.items() if k == STEP_METRIC or k.startswith(own)}


def train_to_the_end(trial: MetaTrial) -> list[dict[str, float]]:
    """Returns the metrics of every report."""
    reports = []
    done = False
    while not done:
        result = trial.train()
        reports.append(metrics(result))
        done = result["done"]
    return reports


def state(trial: MetaTrial, folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of the trial's checkpoint."""
    folder.mkdir(exist_ok=True)
    trial.save_checkpoint(str(folder))
    return load((folder / CHECKPOINT_NAME).read_bytes())


def pids(trial: MetaTrial) -> list[int]:
    return ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in trial._workers()._actors])


def test_one_two_and_three_workers_train_the_same_network() -> None:
    # Three ranks share four episodes: 2, 1, 1.
    experiment = tiny_experiment(*EXACT)
    trainer = build_trainer(experiment)
    reports = [{STEP_METRIC: 3, **trainer.train(3), **trainer.validate()}]
    reports += [{STEP_METRIC: 6, **trainer.train(3), **trainer.validate()}]
    expected = load(trainer.serialize())
    for num_workers in (1, 2, 3):
        with closing(WorkerGroup(Resources(num_workers=num_workers))) as workers:
            workers.call("start", experiment.model_dump())
            for report in reports:
                found = workers.call("train", 3)
                assert metrics(found) == pytest.approx(metrics(report), abs=1e-10, rel=0)
            first = workers.call_first("serialize")
            others = ray.get([actor.serialize.remote() for actor in workers._actors])
        assert all(other == first for other in others), "ranks differ"
        tensors = load(first)
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(tensors[name], value, atol=1e-10, rtol=0)


def test_a_reused_actor_keeps_its_processes_and_nothing_of_the_trial_before(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment("resources.num_workers=2")
    values = {"maml.inner_lr": 0.4, "model.cell": "lstm", "training.outer_lr": 0.02}
    with new_trial(experiment) as reused:
        before = pids(reused)
        first = train_to_the_end(reused)
        assert reused.reset(trial_config(experiment, **values))
        second = train_to_the_end(reused)
        second_state = state(reused, tmp_path / "second")
        assert reused.reset(trial_config(experiment))
        assert train_to_the_end(reused) == first
        assert pids(reused) == before
        assert len(set(before) - {os.getpid()}) == 2
    with new_trial(experiment, **values) as fresh:
        assert set(pids(fresh)).isdisjoint(before)
        assert train_to_the_end(fresh) == second != first
        assert_same_bits(state(fresh, tmp_path / "fresh"), second_state)


def test_a_trial_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    experiment = tiny_experiment("resources.num_workers=2")
    with new_trial(experiment) as trial:
        trial.train()
        state(trial, tmp_path / "middle")
        end = metrics(trial.train())
        expected = state(trial, tmp_path / "end")
        # Another trial in between, as on a reused actor.
        trial.reset(trial_config(experiment, **{"maml.inner_lr": 0.4}))
        trial.train()
        trial.reset(trial_config(experiment))
        trial.load_checkpoint(str(tmp_path / "middle"))
        assert metrics(trial.train()) == end
        assert_same_bits(state(trial, tmp_path / "again"), expected)


def test_trial_continues_from_the_nearest_checkpoint_when_the_known_one_is_gone(
    tmp_path: Path,
) -> None:
    """A kill between Tune's removal of a checkpoint and its next save leaves this."""
    filesystem, folder = run_storage(tmp_path)
    with new_trial(tiny_experiment()) as trial:
        trial.train()
        state(trial, tmp_path / "checkpoint_000001")
        end = metrics(trial.train())
        trial.reset(trial_config(tiny_experiment()))
        removed = tune.Checkpoint(f"{folder}/checkpoint_000000", filesystem)
        trial.restore(_TrainingResult(removed, {"training_iteration": 1}))
        assert metrics(trial.train()) == end
        trial.reset(trial_config(tiny_experiment()))
        later = tune.Checkpoint(f"{folder}/checkpoint_000002", filesystem)
        trial.restore(_TrainingResult(later, {"training_iteration": 1}))  # the one before it
        assert metrics(trial.train()) == end


def call_until_gone(actor: Any) -> None:
    """Ray ends an actor soon after it is told to, not at once."""
    for _ in range(300):
        ray.get(actor.free_address.remote())
        time.sleep(0.1)


def test_a_lost_worker_is_an_error_and_ends_the_others() -> None:
    experiment = tiny_experiment("resources.num_workers=2", "training.meta_steps=1000000")
    workers = WorkerGroup(experiment.resources)
    workers.call("start", experiment.model_dump())
    actors = list(workers._actors)
    killed = ray.get(actors[1].__ray_call__.remote(lambda _: os.getpid()))
    answers = [actor.train.remote(1_000_000) for actor in actors]  # until one is gone
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayError):
        workers._wait(answers)
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            call_until_gone(actor)


def test_a_configuration_that_cannot_start_is_never_taken_for_one_that_has() -> None:
    with new_trial(tiny_experiment(), **{"model.hidden_size": 0}) as trial:
        for _ in range(2):
            with pytest.raises(ExperimentError, match="hidden_size"):
                trial.train()
        assert trial.reset(trial_config(tiny_experiment()))
        assert trial.train()[STEP_METRIC] == 3


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_diverged_trial_reports_nan_and_its_actor_serves_the_next(
    num_workers: int, tmp_path: Path
) -> None:
    experiment = tiny_experiment(f"resources.num_workers={num_workers}", "training.max_skipped=0")
    with new_trial(experiment, **DIVERGING) as trial:
        result = trial.train()
        assert result["done"]
        assert result["val_accuracy"] != result["val_accuracy"]
        assert result["outcome"] == "diverged"
        assert "non-finite" in result["training_error"]
        state(trial, tmp_path)  # Tune saves what has ended
        assert trial.reset(trial_config(experiment))
        reports = train_to_the_end(trial)
        assert [report[STEP_METRIC] for report in reports] == [3, 6]
        assert all(torch.tensor(list(report.values())).isfinite().all() for report in reports)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_that_overflows_only_in_validation_has_an_outcome_of_its_own(
    num_workers: int,
) -> None:
    experiment = load_experiment(
        "sinusoid",
        [
            "search.space={}",
            f"resources={{num_workers: {num_workers}}}",
            "model={hidden_size: 4}",
            "maml={adaptation_steps: 1, inner_lr: 1e10, adapt: head}",
            "training={meta_steps: 6, eval_every: 3, meta_batch_size: 4, val_episodes: 4}",
            "evaluation.adaptation_steps=10",
        ],
    )
    with new_trial(experiment) as trial:
        result = trial.train()
    assert result["done"]
    assert result["val_loss"] != result["val_loss"]
    assert result["outcome"] == "overflowed"
    assert "evaluation.adaptation_steps" in result["training_error"]
    assert "start a new run" in result["training_error"]
