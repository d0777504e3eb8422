"""Checks cluster files by JSON schemas and words the errors.

The schemas come from Ray's launcher (here), the clouds (in their modules) and KubeRay's CRDs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]

from raymeta.deploy.files.mistakes import Key, Mistake, get, nearest

Schema = dict[str, Any]
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_TYPES = {"object": "a mapping", "array": "a list", "string": "text", "boolean": "true or false"}
_TYPES |= {"integer": "a whole number", "null": "null"}


def by_schema(data: object, schema: Schema, at: Key = ()) -> Iterator[Mistake]:
    """Finds mistakes by a JSON schema; a subschema may state a `remedy`."""
    for error in Draft202012Validator(schema).iter_errors(data):
        key: Key = (*at, *error.absolute_path)
        want, found = error.validator_value, error.instance
        remedy = error.schema.get("remedy") if isinstance(error.schema, dict) else None
        match error.validator:
            case "additionalProperties" | "unevaluatedProperties":
                known = error.schema.get("properties", {})
                for name in found:
                    if name not in known:
                        rule = f"is not a known key{nearest(name, known)}"
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
                allowed = ", ".join(map(str, want)) if len(want) <= 12 else "one that exists"
                rule = f"must be {allowed}{nearest(found, want)}"
                yield Mistake(key, rule, remedy or "correct it", found)
            case "minimum" | "exclusiveMinimum":
                sign = ">=" if error.validator == "minimum" else ">"
                yield Mistake(key, f"must be {sign} {want}", remedy or "raise it", found)
            case _:
                yield Mistake(
                    key, f"is not allowed: {error.message:.120}", remedy or "see its documentation"
                )


def package_file(package: str, *parts: str) -> Path | None:
    """Finds a data file of an installed package without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("/".join(parts)))
    return found[-1] if found else None


@lru_cache
def launcher_schema() -> Schema:
    """Loads Ray's schema of a cluster file; raymeta also requires every list of commands."""
    path = package_file("ray", "autoscaler", "ray-schema.json")
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


def crd_schema(version: Any) -> Schema | None:
    """Gets the schema of a custom resource's version, refusing unknown keys; None without one."""

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

    found = strict(get(version, "schema", "openAPIV3Schema"))
    return found if isinstance(found, dict) and "name" in version else None
