"""Clusters of your own hosts, reached by ssh and set up by Ray's launcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from raymeta.deploy.files.cluster import NodeType
from raymeta.deploy.files.launcher import SSH_RULES, provider
from raymeta.deploy.files.mistakes import NOTHING, Config, Key, Mistake, get
from raymeta.deploy.files.ray_start import START, ray_start

_NEWER_AUTOSCALER = "RAY_enable_autoscaler_v2"


def _addresses(config: Config) -> Iterator[Mistake]:
    """Refuses duplicate hosts, and worker counts that differ from the number of hosts."""
    if "available_node_types" in config:
        remedy = "remove it: the nodes are provider.head_ip and provider.worker_ips"
        yield Mistake(("available_node_types",), "is refused by Ray on your own hosts", remedy)
    hosts = _hosts(config)
    head = get(config, "provider", "head_ip")
    for number, host in enumerate(hosts):
        if not isinstance(host, str):
            rule, remedy = "must be text", "write the host's address"
            yield Mistake(("provider", "worker_ips", number), rule, remedy, host)
            return
    for host in sorted({h for h in hosts if hosts.count(h) > 1 or h == head}):
        key = ("provider", "worker_ips")
        yield Mistake(key, "must name each host once, and not the head", "remove it", host)
    fewest, most = config.get("min_workers"), config.get("max_workers")
    for name, count in (("min_workers", fewest), ("max_workers", most)):
        if count is not None and count > len(hosts):
            rule = f"must be <= the number of provider.worker_ips ({len(hosts)})"
            yield Mistake((name,), rule, "lower it, or add hosts", count)
    if fewest is not None and most is not None and fewest > most:
        rule = f"must be >= min_workers ({fewest})"
        yield Mistake(("max_workers",), rule, "raise it, or lower min_workers", most)


def _hosts(config: Config) -> list[Any]:
    found = get(config, "provider", "worker_ips")
    return found if isinstance(found, list) else []


def _nodes(config: Config) -> Iterator[NodeType]:
    hosts = len(_hosts(config))
    yield NodeType("head", {"CPU": 0.0}, 0, 0, is_head=True, is_spot=False)
    most = min(config.get("max_workers", hosts), hosts)
    fewest = min(config.get("min_workers", hosts), most)
    yield NodeType("worker", None, fewest, most, is_head=False, is_spot=False)


def _head(config: Config) -> Iterator[Mistake]:
    """Refuses a head that runs trials or another autoscaler."""
    head = None
    with suppress(ValueError):  # invalid shell: another rule reports it
        head = ray_start(config, "head")
    if head is None:
        return
    key: Key = (START["head"],)
    if head.variables.get(_NEWER_AUTOSCALER) != "0":
        found = head.variables.get(_NEWER_AUTOSCALER, NOTHING)
        remedy = "export it there: Ray's newer autoscaler loses hosts of this provider"
        yield Mistake(key, f"must set {_NEWER_AUTOSCALER}=0 before `ray start`", remedy, found)
    if head.flags.get("num-cpus") != "0":
        found = head.flags.get("num-cpus", NOTHING)
        remedy = "add --num-cpus=0, or trials run on the head and its loss costs them too"
        yield Mistake(key, "must keep trials off the head", remedy, found)


PROVIDER = provider(
    "local",
    needed=("head_ip", "worker_ips"),
    optional=("external_head_ip",),
    rules=(*SSH_RULES, _head, _addresses),
    nodes=_nodes,
    stops_workers=True,
)
