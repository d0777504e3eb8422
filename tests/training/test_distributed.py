"""Sharding over real gloo processes: results do not depend on the number of workers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from raymeta.experiment.schema import Experiment
from raymeta.nn.networks import Params
from raymeta.tasks.load import load_tasks
from raymeta.training.distributed import Group, join_group
from raymeta.training.recipe import build_recipe
from raymeta.training.trainer import Trainer
from tests.reference import poisoned

NUM_STEPS = 10
# Five episodes are dealt out unevenly, two leave the third of three workers without any; those of
# sentiment are padded to another length in every shard.
FIVE, TWO = "training.meta_batch_size=5", "training.meta_batch_size=2"
SCENARIOS = {
    "float64, 5 episodes": ("sentiment", "training.precision=float64", FIVE),
    "float64, 2 episodes": ("sentiment", "training.precision=float64", TWO),
    "float32, 5 episodes": ("sentiment", "training.precision=float32", FIVE),
    "float32, 2 episodes": ("sentiment", "training.precision=float32", TWO),
    "pretrained, 5 episodes": ("sentiment", "training.pretrain_steps=5", FIVE),
    "pretrained, 2 episodes": ("sentiment", "training.pretrain_steps=5", TWO),
    "poisoned": ("sinusoid", FIVE),
}
BAD_STEPS = (2, 7)  # where the last episode, the last rank's, asks for NaN
Results = dict[str, list[Params]]  # by scenario and rank


def train(experiment: Experiment, group: Group, bad: list[int]) -> Params:
    """Returns the meta-parameters and metrics that one rank ends with."""
    tasks = load_tasks(experiment)
    trainer = Trainer(
        poisoned(tasks, bad), build_recipe(experiment, tasks), group, torch.device("cpu")
    )
    metrics = trainer.train(NUM_STEPS) | trainer.validate()
    for own in ("meta_steps_per_s", "planned_mb", "chunk_size", "graph_steps"):
        metrics.pop(own, None)  # of this rank alone; one without episodes has no memory plan
    numbers = {f"metric.{k}": torch.tensor(v, dtype=torch.float64) for k, v in metrics.items()}
    return trainer.meta_params | numbers


def train_all(experiments: Mapping[str, Experiment], group: Group) -> dict[str, Params]:
    results = {}
    for name, experiment in experiments.items():
        size = experiment.training.meta_batch_size
        bad = [step * size + size - 1 for step in BAD_STEPS] if name == "poisoned" else []
        results[name] = train(experiment, group, bad)
    return results


def work(
    rank: int, world_size: int, address: str, experiments: dict[str, Experiment], folder: Path
) -> None:
    """Runs one of the processes."""
    torch.set_num_threads(1)
    group = join_group(rank, world_size, address, "gloo", timeout_s=300)
    for name, result in train_all(experiments, group).items():
        save_file(result, folder / f"{name} {rank}")
    dist.destroy_process_group()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def experiments(tiny: Callable[..., Experiment]) -> dict[str, Experiment]:
    common = f"training.meta_steps={NUM_STEPS}", "training.outer_lr=0.001"
    return {name: tiny(*arguments, *common) for name, arguments in SCENARIOS.items()}


@pytest.fixture(scope="module")
def alone(experiments: dict[str, Experiment]) -> dict[str, Params]:
    return train_all(experiments, Group())


@pytest.fixture(scope="module", params=[2, 3], ids=["2 workers", "3 workers"])
def together(
    request: pytest.FixtureRequest,
    experiments: dict[str, Experiment],
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    arguments = (request.param, free_address(), experiments, folder)
    spawn(work, arguments, nprocs=request.param)  # type: ignore[no-untyped-call]
    return {
        name: [load_file(folder / f"{name} {rank}") for rank in range(request.param)]
        for name in experiments
    }


@given(total=st.integers(0, 50), world_size=st.integers(1, 12))
def test_shards_are_contiguous_cover_everything_once_and_differ_by_one_at_most(total, world_size):
    shards = [Group(rank, world_size).shard(range(total)) for rank in range(world_size)]
    assert [index for shard in shards for index in shard] == list(range(total))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_a_single_worker_needs_no_process_group():
    group, rows = Group(), torch.arange(6.0).view(3, 2)
    assert torch.equal(group.sum(rows), rows)
    assert torch.equal(group.gather_rows(rows, 3), rows)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_rank_ends_with_the_same_bits(together, scenario):
    first, *others = together[scenario]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_results_do_not_depend_on_the_number_of_workers(alone, together, scenario):
    tolerance = 1e-6 if "float32" in scenario else 1e-10
    torch.testing.assert_close(
        together[scenario][0], alone[scenario], rtol=tolerance, atol=tolerance
    )


@pytest.mark.slow
def test_one_ranks_nan_makes_all_of_them_skip_the_step(together):
    for result in together["poisoned"]:
        assert result["metric.num_skipped"] == len(BAD_STEPS)
        for value in result.values():
            assert value.isfinite().all()
