"""Clusters on Google Cloud, started by Ray's launcher."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache, partial

from raymeta.deploy.files.launcher import cloud_rules, node_configs, provider, typed_nodes
from raymeta.deploy.files.mistakes import Config, Mistake, get
from raymeta.deploy.files.schemas import Schema, package_file


@lru_cache
def node_schema() -> Schema:
    """Google's schema of an instance, or else the keys that Ray reads."""
    required = ["machineType", "disks", "networkInterfaces", "serviceAccounts"]
    path = package_file("googleapiclient", "discovery_cache", "documents", "compute.v1.json")
    if path is None:
        lists = ("disks", "networkInterfaces", "serviceAccounts", "guestAccelerators")
        maps = ("labels", "metadata", "scheduling", "tags")
        read = {name: {"type": "array"} for name in lists}
        read |= {name: {"type": "object"} for name in maps}
        read["machineType"] = {"type": "string"}
        return {"type": "object", "properties": read, "required": required}
    schemas = json.loads(path.read_text(encoding="utf-8"))["schemas"]

    def converted(part: Schema) -> Schema:
        if "$ref" in part:
            return {"$ref": f"#/$defs/{part['$ref']}"}
        result: Schema = {
            key: part[key] for key in ("type", "enum") if key in part and part[key] != "any"
        }
        if part.get("format") in ("int64", "uint64"):
            result["type"] = ["string", "integer"]
        if "items" in part:
            result["items"] = converted(part["items"])
        if "properties" in part:
            result["properties"] = {k: converted(v) for k, v in part["properties"].items()}
            result["additionalProperties"] = False
        elif "additionalProperties" in part:
            result["additionalProperties"] = converted(part["additionalProperties"])
        return result

    node = converted(schemas["Instance"])
    node["properties"]["sourceInstanceTemplate"] = {"type": "string"}  # which Ray takes out
    return {
        **node,
        "required": required,
        "$defs": {name: converted(part) for name, part in schemas.items()},
    }


_BROAD_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_BROAD_ACCOUNT = re.compile(
    r"ray-autoscaler-sa-v1@|-compute@developer\.gserviceaccount\.com|^default$"
)


def _accounts(config: Config) -> Iterator[Mistake]:
    """Refuses service accounts that are not the user's own or have too many rights."""
    for at, node, _ in node_configs(config):
        for number, account in enumerate(node.get("serviceAccounts") or []):
            key = (*at, "serviceAccounts", number)
            email = get(account, "email", default="default")
            if _BROAD_ACCOUNT.search(str(email)):
                remedy = "name an account of your own with the few roles that nodes need"
                yield Mistake((*key, "email"), "must not be a default account", remedy, email)
            if _BROAD_SCOPE in get(account, "scopes", default=[]):
                remedy = "name the scopes that are needed (compute on the head, storage)"
                yield Mistake((*key, "scopes"), "must be narrow", remedy, _BROAD_SCOPE)


def _is_spot(node: Config) -> bool:
    return (
        get(node, "scheduling", "preemptible") is True
        or get(node, "scheduling", "provisioningModel") == "SPOT"
    )


PROVIDER = provider(
    "gcp",
    needed=("region", "availability_zone", "project_id"),
    optional=("cache_stopped_nodes", "gcp_credentials"),
    rules=(*cloud_rules(keeps_stopped_machines=False), _accounts),
    machine=node_schema,
    nodes=partial(typed_nodes, _is_spot),
)
