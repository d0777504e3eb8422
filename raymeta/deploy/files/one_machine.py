"""Several nodes on one machine, which Ray's autoscaler starts and ends."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from raymeta.deploy.files.launcher import head_and_counts, provider, stated_resources, typed_nodes
from raymeta.deploy.files.mistakes import Config, Mistake, nearest

_MODULE = "raymeta.deploy.local_nodes.LocalNodes"


def _module(config: Config) -> Iterator[Mistake]:
    """Refuses node-provider code other than raymeta's."""
    module = config["provider"].get("module")
    if module and module != _MODULE:
        rule = f"must be {_MODULE}{nearest(module, [_MODULE])}"
        yield Mistake(("provider", "module"), rule, "no other can be checked", module)


PROVIDER = provider(
    "external",
    needed=("module",),
    optional=("gcs_address", "head_node_id", "launch_multiple"),
    rules=(_module, head_and_counts, stated_resources),
    nodes=partial(typed_nodes, lambda _: False),
    ends_by="`ray stop` on this machine, which ends all of Ray there",
)
