"""Estimates the memory of a meta-step and plans it within a limit.

A worker can keep the graph of every adaptation step (fastest), or recompute the
steps on the backward pass (memory that does not grow with their number; see
`raymeta.meta.gradient`), and do so for all its episodes or for chunks of them.  The
result is the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymeta.episodes import Episodes, Examples
from raymeta.meta.gradient import SEGMENT
from raymeta.meta.learner import Learner
from raymeta.nn.cells import NUM_GATES, Cell
from raymeta.nn.networks import NetworkSpec, Params

GraphMode = Literal["auto", "full", "flat"]

# Values per hidden unit, example and time step that an adaptation step keeps for its derivative:
# states, gates and cell states of the layer; adjoints of states, products, inputs and cell states.
_KEPT: dict[Cell, int] = {"rnn": 3, "gru": 12, "lstm": 12}

# Values that a comparison of two steps keeps for its derivative: sums and exponentials of either
# direction, and products on the way back.
_PAIRS_KEPT = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Episodes at once, adaptation steps with a kept graph, and the estimated peak in bytes."""

    chunk_size: int
    graph_steps: int
    num_bytes: int


def plan_memory(
    learner: Learner,
    spec: NetworkSpec,
    meta_params: Params,
    episodes: Episodes,
    *,
    mode: GraphMode = "auto",
    chunk_size: int | None = None,
    limit_bytes: float = float("inf"),
) -> MemoryPlan:
    """The plan for the episodes of a meta-step.

    Args:
        learner: the learner of the meta-gradient.
        spec: the network.
        meta_params: without episode axis.
        episodes: all episodes of one worker; only their shapes matter.
        mode: `full` keeps all graphs, `flat` none; `auto` is full if all episodes fit.
        chunk_size: episodes at once; None for as many as fit, at least one.
        limit_bytes: the most memory to use.
    """
    total = len(episodes)
    sizes = {
        steps: _episode_bytes(learner, spec, meta_params, episodes, steps)
        for steps in (learner.adaptation_steps, 0)
    }
    full = sizes[learner.adaptation_steps]
    at_once = min(chunk_size or total, total)
    keep = learner.keeps_graphs and (
        mode == "full" or (mode == "auto" and full * at_once <= limit_bytes)
    )
    kept = learner.adaptation_steps if keep else 0
    if chunk_size is None:
        at_once = max(1, min(total, int(min(limit_bytes / sizes[kept], total))))
    return MemoryPlan(at_once, kept, sizes[kept] * at_once)


def _episode_bytes(
    learner: Learner, spec: NetworkSpec, meta_params: Params, episodes: Episodes, graph_steps: int
) -> int:
    """The estimated peak for one episode."""
    reference = next(iter(meta_params.values()))
    width = spec.hidden_size * len(spec.suffixes) * spec.num_layers
    gates = NUM_GATES[spec.cell]

    def values(examples: Examples) -> int:  # hidden units × steps × examples
        return examples.x.shape[1] * spec.num_stacks(examples.x.shape[2]) * width

    support, query = values(episodes.support), values(episodes.query)
    graph = _KEPT[spec.cell]
    sizes = sum(value.numel() for value in meta_params.values())
    layer_dtype = spec.layer_dtype or reference.dtype
    if learner.adaptation_steps == 0:  # one pass over all examples, with parameters for all
        passing = (support + query) * (graph + gates)
        num_examples = episodes.support.y.shape[1] + episodes.query.y.shape[1]
        heads = num_examples * (4 * spec.output_size + 4 * num_examples)
        if learner.reads_steps:  # each step of a query beside each of a support example
            heads += _PAIRS_KEPT * support * query // width**2
        return passing * layer_dtype.itemsize + heads * reference.dtype.itemsize
    if not learner.keeps_graphs:  # parameters after every step, and the graph of one step: on all
        # examples, or on the support in second order
        passing = max((support + query) * (graph + gates), support * (graph + 3 * gates + 4))
        params = sizes * (learner.adaptation_steps + 8)
        return passing * layer_dtype.itemsize + params * reference.dtype.itemsize
    # The query's loss after every step keeps a graph of its own.
    per_step = (support + query if learner.has_step_losses else support) * graph
    kept = graph_steps * per_step
    # On the way back one segment is differentiated: its graphs, tangents and adjoints.
    at_once = min(SEGMENT, learner.adaptation_steps) if graph_steps == 0 else 1
    passing = max(at_once * per_step + support * (3 * gates + 4), query * (graph + gates))
    # Every step has parameters of its own, and their gradients where its graph is kept.
    steps = 2 * graph_steps if graph_steps else learner.adaptation_steps / SEGMENT
    params = int(sizes * (steps + 8))
    return (kept + passing) * layer_dtype.itemsize + params * reference.dtype.itemsize
