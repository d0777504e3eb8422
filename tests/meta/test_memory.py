"""The memory plan: its choices, and its estimate against the measured peak."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from raymeta.episodes import Episodes, Examples
from raymeta.meta.learner import Learner
from raymeta.meta.learners.alignment import Alignment
from raymeta.meta.learners.imaml import Imaml
from raymeta.meta.learners.maml import Maml
from raymeta.meta.learners.maml_plus_plus import MamlPlusPlus
from raymeta.meta.learners.proto_maml import ProtoMaml
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.memory import GraphMode, MemoryPlan, plan_memory
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, Params, init_params
from raymeta.problem import PROBLEMS

LIMIT = 10**9


def problem(cell: Cell, size: int = 8, episodes: int = 4) -> tuple[NetworkSpec, Params, Episodes]:
    """Makes a network and episodes of 16 examples and 20 steps."""
    spec = NetworkSpec(num_outputs=3, num_features=4, cell=cell, hidden_size=size)
    generator = torch.Generator().manual_seed(0)

    def examples() -> Examples:
        x = torch.randn(episodes, 16, 20, 4, generator=generator)
        return Examples(x, torch.zeros(episodes, 16, dtype=torch.int64))

    params = init_params(spec, generator)
    return spec, params, Episodes(examples(), examples(), torch.arange(episodes))


def plan(
    cell: Cell = "gru", adaptation_steps: int = 5, episodes: int = 4, **settings: Any
) -> MemoryPlan:
    spec, params, drawn = problem(cell, episodes=episodes)
    return plan_memory(Maml(adaptation_steps=adaptation_steps), spec, params, drawn, **settings)


def test_all_graphs_of_all_episodes_are_kept_where_they_fit():
    chosen = plan(limit_bytes=LIMIT)
    assert (chosen.chunk_size, chosen.graph_steps) == (4, 5)


def test_graphs_are_dropped_before_episodes_are_split_into_chunks():
    full, flat = plan(mode="full").num_bytes, plan(mode="flat").num_bytes
    assert flat < full
    chosen = plan(limit_bytes=full - 1)
    assert (chosen.chunk_size, chosen.graph_steps) == (4, 0)
    chosen = plan(limit_bytes=flat - 1)
    assert (chosen.chunk_size, chosen.graph_steps) == (3, 0)


def test_steps_that_are_read_at_once_take_less_memory():
    sizes = []
    for stacked_steps in (1, 5):
        spec, _, drawn = problem("gru", size=64)
        spec = replace(spec, stacked_steps=stacked_steps)
        params = init_params(spec, torch.Generator())
        sizes.append(plan_memory(Prototypes(), spec, params, drawn, limit_bytes=LIMIT).num_bytes)
    assert sizes[1] < sizes[0] / 2


def test_episodes_that_do_not_fit_are_taken_one_by_one():
    chosen = plan(limit_bytes=1)
    assert (chosen.chunk_size, chosen.graph_steps) == (1, 0)


def test_given_mode_and_chunk_size_are_kept():
    full = plan(mode="full", limit_bytes=1)
    assert (full.chunk_size, full.graph_steps) == (1, 5)
    chunks = plan(chunk_size=3, limit_bytes=1)
    assert (chunks.chunk_size, chunks.graph_steps) == (3, 0)
    assert plan(chunk_size=9, limit_bytes=LIMIT).chunk_size == 4


def test_memory_of_the_flat_mode_hardly_grows_with_adaptation_steps():
    few, many = plan(adaptation_steps=5, mode="flat"), plan(adaptation_steps=20, mode="flat")
    assert many.num_bytes < 1.2 * few.num_bytes
    full = plan(adaptation_steps=20, mode="full")
    assert full.num_bytes > 2 * plan(adaptation_steps=5, mode="full").num_bytes


def peak_bytes(step: Callable[[], None]) -> int:
    """Measures the peak of resident memory that `step` adds."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(key))

    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    step()
    return status("VmHWM:") - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("cell", get_args(Cell))
@pytest.mark.parametrize("mode", ["full", "flat"])
@pytest.mark.parametrize(
    "learner",
    [
        Maml(adaptation_steps=8),
        MamlPlusPlus(adaptation_steps=8, first_order_share=0).at_progress(0.0),
        ProtoMaml(adaptation_steps=8),
        Imaml(adaptation_steps=8),
        Alignment(),
    ],
    ids=lambda learner: learner.name,
)
def test_estimate_is_within_a_factor_of_two_of_the_measured_peak(cell, mode, learner, apart):
    ratio = apart.submit(ratio_to_peak, cell, mode, learner).result()
    assert 0.5 < ratio < 2, ratio


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """Runs in a process without memory freed by other tests, which a step would reuse unseen."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def ratio_to_peak(cell: Cell, mode: GraphMode, learner: Learner) -> float:
    """Returns the planned memory of a meta-step as a multiple of the measured one."""
    torch.set_num_threads(1)
    spec, params, episodes = problem(cell, size=64, episodes=48)
    params = learner.init_meta_params(params)
    chosen = plan_memory(learner, spec, params, episodes, mode=mode)

    def step() -> None:
        learner.meta_gradient(
            spec, PROBLEMS["classification"], params, episodes, graph_steps=chosen.graph_steps
        )

    step()  # whatever is made once is made now
    return chosen.num_bytes / peak_bytes(step)
