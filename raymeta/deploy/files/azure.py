"""Clusters on Azure, started by Ray's launcher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache, partial

from raymeta.deploy.files.launcher import cloud_rules, node_configs, provider, typed_nodes
from raymeta.deploy.files.mistakes import Config, Mistake, get
from raymeta.deploy.files.schemas import Schema, package_file


@lru_cache
def node_schema() -> Schema:
    """The parameters of Ray's template of a machine that a user may set."""
    path = package_file("ray", "autoscaler", "_private", "_azure", "azure-vm-template.json")
    assert path is not None
    parameters = json.loads(path.read_text(encoding="utf-8"))["parameters"]
    kinds = {"int": "integer", "bool": "boolean", "securestring": "string"}
    of_ray = {"vmName", "vmTags", "vmCount", "provisionPublicIp", "msi", "nsg", "subnet", "zones"}
    settable = {
        name: {"type": kinds.get(part["type"], part["type"])}
        for name, part in parameters.items()
        if name not in of_ray | {"adminUsername", "publicKey"}
    }
    settable["priority"]["enum"] = ["Regular", "Low", "Spot"]
    settable["evictionPolicy"]["enum"] = ["Delete", "Deallocate"]
    settable["availability_zone"] = {"type": "string"}
    arm = {
        "type": "object",
        "properties": settable,
        "additionalProperties": False,
        "required": ["vmSize"],
    }
    return {
        "type": "object",
        "properties": {"azure_arm_parameters": arm, "tags": {"type": "object"}},
        "additionalProperties": False,
        "required": ["azure_arm_parameters"],
    }


def _machines(config: Config) -> Iterator[Mistake]:
    """Finds mistakes in the machines' ssh keys, images and addresses."""
    keys = [get(config, "auth", name) for name in ("ssh_private_key", "ssh_public_key")]
    if (keys[0] is None) != (keys[1] is None):
        name = "ssh_public_key" if keys[1] is None else "ssh_private_key"
        yield Mistake(("auth", name), "is required beside its other half", "add it, or remove both")
    for at, node, _ in node_configs(config):
        arm = node.get("azure_arm_parameters")
        if not isinstance(arm, dict):
            continue
        key = (*at, "azure_arm_parameters")
        image = ("imagePublisher", "imageOffer", "imageSku", "imageVersion")
        for name in image if "imageId" not in arm else ():
            if name not in arm:
                yield Mistake((*key, name), "is required without an imageId", "add it")
        if arm.get("imageVersion") == "latest":
            yield Mistake(
                (*key, "imageVersion"),
                "must name a fixed version",
                "see `az vm image list`",
                "latest",
            )
    if not get(config, "provider", "use_internal_ips"):
        remedy = "set it to true (and use_external_head_ip, to reach the head from outside)"
        rule = "must keep workers off the internet"
        found = get(config, "provider", "use_internal_ips")
        yield Mistake(("provider", "use_internal_ips"), rule, remedy, found)


def _is_spot(node: Config) -> bool:
    return get(node, "azure_arm_parameters", "priority") in ("Spot", "Low")


PROVIDER = provider(
    "azure",
    needed=("location", "resource_group"),
    optional=(
        "availability_zone",
        "cache_stopped_nodes",
        "msi_name",
        "msi_resource_group",
        "subnet_mask",
        "subscription_id",
        "tags",
        "unique_id",
    ),
    rules=(*cloud_rules(), _machines),
    machine=node_schema,
    nodes=partial(typed_nodes, _is_spot),
)
