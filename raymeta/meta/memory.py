"""How much of a meta-gradient is kept in memory at once: an estimate, and a choice by it.

A meta-step of one worker can keep the graph of every adaptation step (the fastest way), or take the
steps again on the way back (memory that does not grow with their number; see
`raymeta.meta.maml.meta_gradient`), and do so for all its episodes or for chunks of them.  None of
this changes the result beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymeta.meta.maml import SEGMENT, Maml
from raymeta.models import NetworkSpec, Params
from raymeta.scans import NUM_GATES, Cell
from raymeta.tasks.episodes import Episodes, Examples

GraphMode = Literal["auto", "full", "flat"]

# Values per hidden unit, example and time step that an adaptation step keeps for its derivative:
# states, gates and cell states of the layer; adjoints of states, products, inputs and cell states.
_KEPT: dict[Cell, int] = {"rnn": 3, "gru": 12, "lstm": 12}


@dataclass(frozen=True)
class MemoryPlan:
    """Episodes at once, adaptation steps whose graph is kept, and the estimate of the peak."""

    chunk_size: int
    graph_steps: int
    num_bytes: int


def plan_memory(
    maml: Maml,
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
        maml: settings of the inner loop.
        spec: the network.
        meta_params: without episode axis.
        episodes: all episodes of one worker, whose shapes count.
        mode: `full` keeps all graphs, `flat` none; `auto` is full where all episodes fit so.
        chunk_size: episodes at once; None for as many as fit, one at least.
        limit_bytes: what may be taken.
    """
    total = len(episodes)
    sizes = {
        steps: _episode_bytes(maml, spec, meta_params, episodes, steps)
        for steps in (maml.adaptation_steps, 0)
    }
    full = sizes[maml.adaptation_steps]
    at_once = min(chunk_size or total, total)
    keep = mode == "full" or (mode == "auto" and full * at_once <= limit_bytes)
    kept = maml.adaptation_steps if keep else 0
    if chunk_size is None:
        at_once = max(1, min(total, int(min(limit_bytes / sizes[kept], total))))
    return MemoryPlan(at_once, kept, sizes[kept] * at_once)


def _episode_bytes(
    maml: Maml, spec: NetworkSpec, meta_params: Params, episodes: Episodes, graph_steps: int
) -> int:
    """The estimated peak for one episode."""
    reference = next(iter(meta_params.values()))
    width = spec.hidden_size * len(spec.suffixes) * spec.num_layers
    gates = NUM_GATES[spec.cell]

    def values(examples: Examples) -> int:  # hidden units × time steps × examples
        return examples.x.shape[1] * examples.x.shape[2] * width

    support, query = values(episodes.support), values(episodes.query)
    graph = _KEPT[spec.cell]
    kept = graph_steps * support * graph
    # On the way back one segment is differentiated: its graphs, tangents and adjoints.
    at_once = min(SEGMENT, maml.adaptation_steps) if graph_steps == 0 else 1
    passing = max(support * (at_once * graph + 3 * gates + 4), query * (graph + gates))
    # Every step has parameters of its own, and their gradients where its graph is kept.
    sizes = sum(value.numel() for value in meta_params.values())
    steps = 2 * graph_steps if graph_steps else maml.adaptation_steps / SEGMENT
    params = int(sizes * (steps + 8))
    layer_dtype = spec.layer_dtype or reference.dtype
    return (kept + passing) * layer_dtype.itemsize + params * reference.dtype.itemsize
