"""Clusters on AWS, started by Ray's launcher."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import lru_cache, partial

from raymeta.deploy.files.launcher import cloud_rules, node_configs, provider, typed_nodes
from raymeta.deploy.files.mistakes import Config, Mistake, get, scalars
from raymeta.deploy.files.schemas import Schema, package_file

_EVERYWHERE = ("0.0.0.0/0", "::/0")
_INSTANCE_KEYS_OF_RAY = {
    "SubnetIds": {"type": "array", "items": {"type": "string"}},
}


@lru_cache
def node_schema() -> Schema | None:
    """RunInstances as botocore describes it, its keys and nested ones."""
    path = package_file("botocore", "data", "ec2", "*", "service-2.json.gz")
    if path is None:
        return None
    shapes = json.loads(gzip.decompress(path.read_bytes()))["shapes"]
    kinds = {"integer": "integer", "long": "integer", "boolean": "boolean"}
    kinds |= {"float": "number", "double": "number"}
    defs: Schema = {}

    def reference(name: str) -> Schema:
        if name not in defs:
            defs[name] = {}  # a shape may contain itself
            defs[name].update(definition(shapes[name]))
        return {"$ref": f"#/$defs/{name}"}

    def definition(shape: Schema) -> Schema:
        match shape["type"]:
            case "structure":
                members = {k: reference(v["shape"]) for k, v in shape["members"].items()}
                return {
                    "type": "object",
                    "properties": members,
                    "additionalProperties": False,
                    "required": shape.get("required", []),
                }
            case "list":
                return {"type": "array", "items": reference(shape["member"]["shape"])}
            case "map":
                return {
                    "type": "object",
                    "additionalProperties": reference(shape["value"]["shape"]),
                }
            case "string" if "enum" in shape:
                return {"type": "string", "enum": shape["enum"]}
            case kind:
                return {"type": kinds.get(kind, "string")}

    node = definition(shapes["RunInstancesRequest"])
    node["required"] = ["InstanceType", "ImageId"]  # Ray itself gives the counts
    node["properties"] |= _INSTANCE_KEYS_OF_RAY
    return {**node, "$defs": defs}


def _access(config: Config) -> Iterator[Mistake]:
    """Finds mistakes about access to the machines and about their rights."""
    own_key = get(config, "auth", "ssh_private_key") is not None
    for at, node, is_head in node_configs(config):
        if not node.get("SecurityGroupIds") and not node.get("NetworkInterfaces"):
            remedy = "name your own group: one that Ray makes lets the whole world in at port 22"
            yield Mistake((*at, "SecurityGroupIds"), "is required, but is not given", remedy)
        if is_head and not node.get("IamInstanceProfile"):
            remedy = "name your own: the role that Ray makes may do anything in EC2 and S3"
            yield Mistake((*at, "IamInstanceProfile"), "is required, but is not given", remedy)
        if own_key and "KeyName" not in node:
            remedy = "add the name that EC2 knows the key of auth.ssh_private_key by"
            yield Mistake((*at, "KeyName"), "is required, but is not given", remedy)
    for key, text in scalars(
        get(config, "provider", "security_group"), ("provider", "security_group")
    ):
        if text in _EVERYWHERE:
            yield Mistake(key, "must not be open to the world", "name your own address range", text)


def _is_spot(node: Config) -> bool:
    return get(node, "InstanceMarketOptions", "MarketType") == "spot"


PROVIDER = provider(
    "aws",
    needed=("region",),
    optional=(
        "availability_zone",
        "aws_credentials",
        "cache_stopped_nodes",
        "cloudwatch",
        "key_pair",
        "security_group",
    ),
    rules=(*cloud_rules(), _access),
    machine=node_schema,
    nodes=partial(typed_nodes, _is_spot),
)
