"""The meta-gradient as a CUDA graph against the one that runs operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch

from raymeta.episodes import Episodes, Examples
from raymeta.meta import cuda_graph
from raymeta.meta.cuda_graph import MAX_GRAPHS, GraphedMetaGradient
from raymeta.meta.learners.maml import Maml
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, init_params
from raymeta.problem import PROBLEMS

SPEC = NetworkSpec(num_outputs=3, num_features=4, hidden_size=16, num_layers=2, dropout=0.2)
MAML = Maml(adaptation_steps=3, inner_clip=1.0)


def episodes(num_steps: int, seed: int, device: str = "cuda") -> Episodes:
    generator = torch.Generator().manual_seed(seed)

    def examples() -> Examples:
        x = torch.randn(5, 6, num_steps, 4, generator=generator)
        lengths = torch.randint(1, num_steps + 1, (5, 6), generator=generator)
        return Examples(x, torch.arange(6).remainder(3).repeat(5, 1), lengths)

    seeds = torch.randint(1000, (5,), generator=generator)
    return Episodes(examples(), examples(), seeds).to(torch.device(device), torch.float32)


def assert_equal_to_eager(graphed: GraphedMetaGradient, cell: Cell, steps: int, seed: int) -> None:
    spec, drawn = replace(SPEC, cell=cell), episodes(steps, seed)
    params = init_params(spec, torch.Generator().manual_seed(seed))
    params = {name: value.cuda() for name, value in params.items()}
    for graph_steps in (None, 0):
        found, wanted = (
            function(MAML, spec, PROBLEMS["classification"], params, drawn, graph_steps=graph_steps)
            for function in (graphed, Maml.meta_gradient)
        )
        torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.loss, wanted.loss)
        assert found.num_episodes == wanted.num_episodes


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


def test_a_meta_gradient_depends_on_the_named_tensors_only() -> None:
    """Runs on the CPU what a graph captures."""
    params, drawn = init_params(SPEC, torch.Generator().manual_seed(0)), episodes(7, 0, "cpu")
    inputs = cuda_graph._inputs(SPEC, params, drawn)
    found = cuda_graph._run(MAML, SPEC, PROBLEMS["classification"], inputs, 0)
    wanted = MAML.meta_gradient(SPEC, PROBLEMS["classification"], params, drawn, graph_steps=0)
    torch.testing.assert_close(found.grads, wanted.grads, rtol=0, atol=0)
    assert found.num_episodes == 5


@needs_gpu
@pytest.mark.parametrize("cell", get_args(Cell))
def test_a_replay_equals_the_meta_gradient_without_a_graph(cell: Cell) -> None:
    graphed = GraphedMetaGradient()
    for seed in range(3):  # other parameters, episodes and dropout masks in the same graph
        assert_equal_to_eager(graphed, cell, steps=7, seed=seed)


@needs_gpu
def test_shapes_beyond_the_limit_run_without_a_graph() -> None:
    graphed = GraphedMetaGradient()
    for steps in range(3, 3 + MAX_GRAPHS):
        assert_equal_to_eager(graphed, "gru", steps=steps, seed=0)


@needs_gpu
def test_a_result_outlives_the_next_replay() -> None:
    graphed, params = GraphedMetaGradient(), init_params(SPEC, torch.Generator().manual_seed(0))
    params = {name: value.cuda() for name, value in params.items()}
    first = graphed(MAML, SPEC, PROBLEMS["classification"], params, episodes(7, 0))
    kept = {name: value.clone() for name, value in first.grads.items()}
    graphed(MAML, SPEC, PROBLEMS["classification"], params, episodes(7, 1))
    torch.testing.assert_close(first.grads, kept, rtol=0, atol=0)
