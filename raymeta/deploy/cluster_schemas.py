"""The schemas that a cluster file is checked against, none of them raymeta's own.

Ray's for the keys of its launcher; the cloud's for the machines (botocore's model of RunInstances,
Google's discovery document, the parameters of Ray's template for Azure); the CRDs of KubeRay.  All
become JSON schemas, so that one function finds and words what is wrong.
"""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]

Key = tuple[str | int, ...]
Schema = dict[str, Any]
NOTHING = object()  # nothing was found, which is the mistake
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a value: `key rule, but got found; remedy`."""

    key: Key
    rule: str
    remedy: str
    found: object = NOTHING
    serious: bool = True


def nearest(name: object, names: object) -> str:
    """`; did you mean X?` where one of the names is spelt alike."""
    known = [str(other) for other in names] if isinstance(names, Sequence | Mapping | set) else []
    matches = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def get(data: object, *keys: str | int, default: Any = None) -> Any:
    """The value under nested keys, or a default where one of them is not there."""
    for key in keys:
        try:
            data = data[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return default
    return data


_TYPES = {"object": "a mapping", "array": "a list", "string": "text", "boolean": "true or false"}
_TYPES |= {"integer": "a whole number", "null": "null"}


def by_schema(data: object, schema: Schema, at: Key = ()) -> Iterator[Mistake]:
    """What a JSON schema finds wrong; a subschema may give its `remedy`."""
    for error in Draft202012Validator(schema).iter_errors(data):
        key: Key = (*at, *error.absolute_path)
        want, found = error.validator_value, error.instance
        remedy = error.schema.get("remedy") if isinstance(error.schema, dict) else None
        match error.validator:
            case "additionalProperties" | "unevaluatedProperties":
                known = error.schema.get("properties", {})
                for name in found:
                    if name not in known:
                        rule = f"is no key that is known here{nearest(name, known)}"
                        yield Mistake((*key, name), rule, remedy or "correct or remove it")
            case "required":
                for name in want:
                    if name not in found:
                        own = get(error.schema, "properties", name, "remedy")
                        missing = (*key, name)
                        yield Mistake(missing, "is required, but is not given", own or "add it")
            case "type":
                names = want if isinstance(want, list) else [want]
                rule = f"must be {' or '.join(_TYPES.get(name, f'a {name}') for name in names)}"
                yield Mistake(key, rule, remedy or "correct its type", found)
            case "enum":
                shown = ", ".join(map(str, want)) if len(want) <= 12 else "one that exists"
                rule = f"must be {shown}{nearest(found, want)}"
                yield Mistake(key, rule, remedy or "correct it", found)
            case "minimum" | "exclusiveMinimum":
                sign = ">=" if error.validator == "minimum" else ">"
                yield Mistake(key, f"must be {sign} {want}", remedy or "raise it", found)
            case _:
                yield Mistake(
                    key, f"is not allowed: {error.message:.120}", remedy or "see its documentation"
                )


def _package_file(package: str, *parts: str) -> Path | None:
    """A data file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("/".join(parts)))
    return found[-1] if found else None


@lru_cache
def launcher_schema() -> Schema:
    """Ray's own schema of a cluster file; every list of commands is required besides."""
    path = _package_file("ray", "autoscaler", "ray-schema.json")
    assert path is not None
    schema: Schema = json.loads(path.read_text(encoding="utf-8"))
    del schema["$schema"]
    schema["required"] = [*schema["required"], *COMMANDS]
    for name in COMMANDS:
        schema["properties"][name] = {
            **schema["definitions"]["commands"],
            "remedy": "write [] for none: left out, Ray fills in its own, which install a nightly "
            "Ray and open the dashboard to every address",
        }
    schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}
    for ports in ("min_workers", "max_workers"):
        kind = schema["properties"]["available_node_types"]["patternProperties"][".*"]
        kind["properties"][ports]["minimum"] = 0
    schema["properties"]["available_node_types"].pop("additionalProperties")
    return schema


_INSTANCE_KEYS_OF_RAY = {
    "SubnetIds": {"type": "array", "items": {"type": "string"}},
}


@lru_cache
def _aws_node_schema() -> Schema | None:
    """RunInstances as botocore describes it, its keys and nested ones."""
    path = _package_file("botocore", "data", "ec2", "*", "service-2.json.gz")
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


@lru_cache
def _gcp_node_schema() -> Schema:
    """An instance as Google's discovery document describes it, or what Ray reads of one."""
    required = ["machineType", "disks", "networkInterfaces", "serviceAccounts"]
    path = _package_file("googleapiclient", "discovery_cache", "documents", "compute.v1.json")
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


@lru_cache
def _azure_node_schema() -> Schema:
    """The parameters of Ray's template of a machine that a user may set."""
    path = _package_file("ray", "autoscaler", "_private", "_azure", "azure-vm-template.json")
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


def crd_schema(definition: Mapping[str, Any], version: str) -> Schema | None:
    """The schema of a version of a custom resource, with unknown keys refused."""

    def strict(part: Any) -> Any:
        if isinstance(part, list):
            return [strict(item) for item in part]
        if not isinstance(part, dict):
            return part
        result = {key: strict(value) for key, value in part.items()}
        # `properties` may itself be the name of a property.
        described = isinstance(result.get("properties"), dict) and "type" in result
        if described and not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        if result.get("x-kubernetes-int-or-string") is True:
            result.pop("type", None)
            result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        return result

    for candidate in definition["spec"]["versions"]:
        if candidate["name"] == version:
            found: Schema = strict(candidate["schema"]["openAPIV3Schema"])
            return found
    return None


NODE_SCHEMAS: dict[str, Callable[[], Schema | None]] = {
    "aws": _aws_node_schema,
    "gcp": _gcp_node_schema,
    "azure": _azure_node_schema,
}
