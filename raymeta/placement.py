"""Computes how many trials a set of nodes can hold at once.

Ray waits forever for a trial that fits nowhere. So this is computed before anything starts, for
existing nodes and for those that a cluster may grow to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from raymeta.errors import ResourceError
from raymeta.experiment.resources import Resources

NODES_VARIABLE = "RAYMETA_NODES"  # tells a driver what its cluster may grow to
WORKERS_VARIABLE = "RAYMETA_WORKERS"  # or, where that is not known, how many nodes are to join
_ROUNDING = 1e-9
# Ray's strategies for the bundles of a placement group.
STRATEGIES = {"pack": "PACK", "one_node": "STRICT_PACK", "spread": "STRICT_SPREAD"}


@dataclass(frozen=True)
class Nodes:
    """A number of equal nodes, and the resources of each as Ray counts them."""

    name: str
    resources: Mapping[str, float]
    count: int = 1


@dataclass(frozen=True)
class Placement:
    """The trials at once, and how many of their workers one node of each kind holds."""

    trials: int
    workers_per_node: Mapping[str, int]


def placement_bundles(resources: Resources) -> list[dict[str, float]]:
    """The resource bundles of one trial: first the trial actor's, then one per worker.

    The actor of a one-worker trial is the worker; other actors only wait and take no resources.
    """
    worker = worker_bundle(resources)
    if resources.num_workers == 1:
        return [worker]
    return [{}, *[dict(worker) for _ in range(resources.num_workers)]]


def worker_bundle(resources: Resources) -> dict[str, float]:
    """The resources of one data-parallel worker."""
    worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        worker["GPU"] = resources.gpus_per_worker
    if resources.accelerator_type is not None:
        # Ray's own way to say "on such a GPU": a sliver of a resource that these nodes have.
        worker[f"accelerator_type:{resources.accelerator_type}"] = 0.001
    return worker


def place_trials(resources: Resources, nodes: Sequence[Nodes]) -> Placement:
    """Computes how many trials `nodes` hold at once.

    Args:
        resources: of one trial.
        nodes: all kinds of nodes, each as many times as there may be.

    Raises:
        ResourceError: not a single trial fits; the message names the missing resource.
    """
    worker = worker_bundle(resources)
    needed = resources.num_workers
    per_node = {kind.name: _workers_on(kind, worker) for kind in nodes}
    rooms = [(per_node[kind.name], kind.count) for kind in nodes]
    total = sum(room * count for room, count in rooms)
    match resources.placement:
        case "one_node":
            trials = sum(room // needed * count for room, count in rooms)
        case "spread":
            trials = _most_spread(rooms, needed, total // needed)
        case _:
            trials = total // needed
    if trials == 0:
        raise ResourceError(_why_not(resources, worker, nodes, rooms))
    return Placement(trials, per_node)


def _workers_on(kind: Nodes, worker: Mapping[str, float]) -> int:
    """The workers that one node holds; a share of a GPU cannot span two GPUs."""
    rooms = []
    for name, amount in worker.items():
        there = kind.resources.get(name, 0.0)
        if name == "GPU" and amount < 1:
            rooms.append(math.floor(there) * math.floor(1 / amount + _ROUNDING))
        else:
            rooms.append(math.floor(there / amount + _ROUNDING))
    return min(rooms)


def _most_spread(rooms: Sequence[tuple[int, int]], needed: int, most: int) -> int:
    """The largest number of trials whose workers are all on different nodes.

    There is room for `t` of them if `sum(min(room, t))` over the nodes reaches `t * needed`.
    """
    trials = most
    while trials > 0 and sum(min(room, trials) * count for room, count in rooms) < trials * needed:
        trials -= 1
    return trials


def _why_not(
    resources: Resources,
    worker: Mapping[str, float],
    nodes: Sequence[Nodes],
    rooms: Sequence[tuple[int, int]],
) -> str:
    most = max((room for room, _ in rooms), default=0)
    total = sum(room * count for room, count in rooms)
    if most == 0:
        for name, amount in worker.items():
            largest = max((kind.resources.get(name, 0.0) for kind in nodes), default=0.0)
            if amount > largest + _ROUNDING:
                key = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}.get(
                    name, "accelerator_type"
                )
                return (
                    f"one trial needs {amount:g} {name} on one node (resources.{key}), but the "
                    f"largest has {largest:g}; lower it, or take larger nodes"
                )
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in worker.items())
        return f"no node has {wanted} together, which one worker of a trial needs"
    if resources.placement == "one_node":
        return (
            f"one trial needs {resources.num_workers} workers on one node (resources.placement: "
            f"one_node), but the largest holds {most}; lower resources.num_workers, or let it "
            "span nodes by `placement: pack`"
        )
    if resources.placement == "spread":
        count = sum(count for room, count in rooms if room)
        return (
            f"one trial needs {resources.num_workers} nodes (resources.placement: spread), but "
            f"there are {count} that hold a worker; lower resources.num_workers"
        )
    totals = {
        name: sum(kind.resources.get(name, 0.0) * kind.count for kind in nodes) for name in worker
    }
    had = ", ".join(f"{amount:g} {name}s" for name, amount in totals.items())
    needs = ", ".join(
        f"{amount * resources.num_workers:g} {name}s" for name, amount in worker.items()
    )
    return (
        f"one trial needs {needs} (resources.num_workers = {resources.num_workers} workers of "
        f"{', '.join(f'{amount:g} {name}' for name, amount in worker.items())} each), but there "
        f"are {had} in all, which hold {total}; lower resources.num_workers or what each takes"
    )


def to_json(nodes: Sequence[Nodes]) -> str:
    """Serialises for `from_json`, to be passed in an environment variable."""
    return json.dumps([asdict(kind) for kind in nodes])


def from_json(text: str) -> list[Nodes]:
    """Reads the text that `to_json` wrote."""
    return [Nodes(**kind) for kind in json.loads(text)]
