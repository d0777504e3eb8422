"""The number of trials that fit on nodes, against counts by hand and Ray's own placement."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from raymeta.errors import ResourceError
from raymeta.experiment.resources import Resources
from raymeta.placement import (
    STRATEGIES,
    Nodes,
    from_json,
    place_trials,
    placement_bundles,
    to_json,
)

BOX = Nodes("box", {"CPU": 8, "GPU": 2, "accelerator_type:A100": 1}, 3)
SMALL = Nodes("small", {"CPU": 2}, 4)
HEAD = Nodes("head", {"CPU": 0})


def test_bundles_hold_one_worker_each_and_nothing_for_an_actor_that_only_waits() -> None:
    assert placement_bundles(Resources(num_workers=1, cpus_per_worker=2)) == [{"CPU": 2}]
    several = Resources(num_workers=2, cpus_per_worker=1, gpus_per_worker=0.5)
    assert placement_bundles(several) == [{}, *[{"CPU": 1, "GPU": 0.5}] * 2]


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        ({}, 3 * 8 + 4 * 2),  # one CPU each
        ({"gpus_per_worker": 1}, 3 * 2),  # one GPU a trial
        ({"gpus_per_worker": 0.5}, 3 * 4),  # a GPU split among trials
        ({"gpus_per_worker": 0.4}, 3 * 4),  # a share never crosses GPUs
        ({"gpus_per_worker": 2}, 3),
        ({"gpus_per_worker": 1, "num_workers": 2, "placement": "one_node"}, 3),
        ({"gpus_per_worker": 1, "num_workers": 4}, 1),  # over two nodes
        ({"gpus_per_worker": 1, "num_workers": 3, "placement": "spread"}, 2),
        ({"gpus_per_worker": 1, "accelerator_type": "A100"}, 3 * 2),
        ({"cpus_per_worker": 3}, 3 * 2),
        ({"cpus_per_worker": 0.5, "num_workers": 5}, (3 * 16 + 4 * 4) // 5),
    ],
)
def test_as_many_trials_fit_as_counted_by_hand(settings: dict[str, object], trials: int) -> None:
    resources = Resources.model_validate(settings)
    assert place_trials(resources, [HEAD, BOX, SMALL]).trials == trials


def test_the_number_of_workers_per_node_is_reported() -> None:
    placement = place_trials(Resources(gpus_per_worker=0.5), [HEAD, BOX])
    assert placement.workers_per_node == {"head": 0, "box": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus_per_worker": 9}, r"9 CPU on one node \(resources.cpus_per_worker\).* has 8;"),
        ({"gpus_per_worker": 3}, r"3 GPU on one node \(resources.gpus_per_worker\).* has 2;"),
        (
            {"gpus_per_worker": 1, "accelerator_type": "H100"},
            r"accelerator_type:H100 on one node \(resources.accelerator_type\)",
        ),
        (
            {"gpus_per_worker": 1, "num_workers": 7},
            r"needs 7 CPUs, 7 GPUs \(resources.num_workers = 7 .* hold 6;",
        ),
        (
            {"gpus_per_worker": 1, "num_workers": 3, "placement": "one_node"},
            r"3 workers on one node .* holds 2;",
        ),
        ({"num_workers": 8, "placement": "spread"}, r"needs 8 nodes .* there are 7"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused_by_its_keys(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        place_trials(Resources.model_validate(settings), [HEAD, BOX, SMALL])


def test_without_nodes_nothing_fits() -> None:
    with pytest.raises(ResourceError, match="the largest has 0"):
        place_trials(Resources(), [])


def test_two_nodes_that_only_together_have_enough_hold_no_trial() -> None:
    nodes = [Nodes("cpus", {"CPU": 8, "GPU": 0}), Nodes("gpus", {"CPU": 1, "GPU": 8})]
    with pytest.raises(ResourceError, match="no node has 2 CPU and 1 GPU together"):
        place_trials(Resources(cpus_per_worker=2, gpus_per_worker=1), nodes)


@given(
    rooms=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    num_workers=st.integers(1, 4),
    placement=st.sampled_from(["pack", "one_node", "spread"]),
)
def test_the_count_equals_placing_one_worker_after_another(
    rooms: list[int], num_workers: int, placement: Literal["pack", "one_node", "spread"]
) -> None:
    nodes = [Nodes(str(number), {"CPU": room}) for number, room in enumerate(rooms)]
    left = list(rooms)
    trials = 0
    while sum(left) >= num_workers:
        if placement == "one_node":
            fitting = [i for i, room in enumerate(left) if room >= num_workers]
            if not fitting:
                break
            left[fitting[0]] -= num_workers
        else:
            # From the fullest nodes first, which leaves the most room for trials that spread.
            order = sorted(range(len(left)), key=lambda i: -left[i])
            if placement == "spread":
                chosen = order[:num_workers]
                if len(chosen) < num_workers or left[chosen[-1]] == 0:
                    break
            else:
                chosen = [i for i in order for _ in range(left[i])][:num_workers]
            for i in chosen:
                left[i] -= 1
        trials += 1
    resources = Resources(num_workers=num_workers, placement=placement)
    if trials:
        assert place_trials(resources, nodes).trials == trials
    else:
        with pytest.raises(ResourceError):
            place_trials(resources, nodes)


@pytest.mark.slow
def test_nodes_travel_as_text() -> None:
    assert from_json(to_json([BOX, SMALL])) == [BOX, SMALL]


@pytest.fixture(scope="module")
def cluster():
    """Starts two nodes that claim two GPUs each, and a head without CPUs."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=4, num_gpus=2, object_store_memory=100_000_000)
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"gpus_per_worker": 0.5},
        {"gpus_per_worker": 1},
        {"gpus_per_worker": 1, "num_workers": 2, "placement": "one_node"},
        {"gpus_per_worker": 1, "num_workers": 2, "placement": "spread"},
        {"gpus_per_worker": 1, "num_workers": 4},
    ],
    ids=["a GPU split", "a GPU a trial", "several GPUs of a node", "a GPU a node", "all GPUs"],
)
def test_ray_places_as_many_trials_and_no_more(
    cluster: Cluster, settings: dict[str, object]
) -> None:
    resources = Resources.model_validate(settings)
    nodes = [Nodes(n["NodeID"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
    expected = place_trials(resources, nodes).trials
    strategy = STRATEGIES[resources.placement]
    bundles = [bundle for bundle in placement_bundles(resources) if bundle]
    groups = [placement_group(bundles, strategy) for _ in range(expected)]
    try:
        ready, _ = ray.wait([g.ready() for g in groups], num_returns=expected, timeout=60)
        assert len(ready) == expected
        for group in groups:
            places = ray.util.placement_group_table(group)["bundles_to_node_id"].values()
            at_most = {"one_node": 1, "pack": math.inf, "spread": math.inf}[resources.placement]
            assert len(set(places)) <= at_most
            if resources.placement == "spread":
                assert len(set(places)) == resources.num_workers
        one_more = placement_group(bundles, strategy)
        groups.append(one_more)
        ready, _ = ray.wait([one_more.ready()], timeout=3)
        assert not ready
    finally:
        for group in groups:
            remove_placement_group(group)
