"""KubeRay's manifests: a RayCluster, RayJob or RayService with its companion resources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from raymeta.deploy.files.cluster import (
    Cluster,
    ClusterFile,
    NodeType,
    Provider,
    read_text,
    yaml_documents,
)
from raymeta.deploy.files.mistakes import (
    NOTHING,
    Config,
    Key,
    Mistake,
    get,
    nearest,
    prefixes,
    report,
    unfilled,
    without,
)
from raymeta.deploy.files.rules import RUNS_DIR, UNPINNED, pinned, quantity
from raymeta.deploy.files.schemas import Schema, by_schema, crd_schema
from raymeta.errors import ClusterError, shown
from raymeta.serving.settings import ServeSettings

_MAX_CRD_CHARACTERS = 5_000_000  # of one of KubeRay's definitions

RAY_KINDS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
_BUILDER = "raymeta.serving.app:build"  # of `import_path`
_NUMBER = re.compile(r"\d+(\.\d*)?")
_MAPPING = {"type": "object"}
_COUNT = {"type": "integer", "minimum": 0}
_CONTAINERS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "env": {"type": "array", "items": _MAPPING},
            "resources": {"type": "object", "properties": {"limits": _MAPPING}},
        },
    },
}
_POD = {"type": "object", "properties": {"containers": _CONTAINERS, "nodeSelector": _MAPPING}}
_GROUP = {
    "type": "object",
    "properties": {
        "replicas": _COUNT,
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "rayStartParams": _MAPPING,
        "resources": _MAPPING,
        "template": {"type": "object", "properties": {"spec": _POD}},
    },
}
_CLUSTER = {
    "type": "object",
    "properties": {
        "headGroupSpec": _GROUP,
        "workerGroupSpecs": {"type": "array", "items": _GROUP},
    },
}
# The types that the rules below rely on; CRDs, if given, are stricter.
_SHAPES: dict[str, Schema] = {
    "RayCluster": {"properties": {"spec": _CLUSTER}},
    "RayJob": {
        "properties": {"spec": {"type": "object", "properties": {"rayClusterSpec": _CLUSTER}}}
    },
    "RayService": {
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "rayClusterConfig": _CLUSTER,
                    "serveConfigV2": {"type": "string"},
                },
                "required": ["rayClusterConfig", "serveConfigV2"],
            }
        }
    },
}
_OTHER_KINDS = (
    "ConfigMap",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Role",
    "RoleBinding",
    "Secret",
    "Service",
    "ServiceAccount",
)


def groups(manifest: Config) -> Iterator[tuple[Key, dict[str, Any], bool]]:
    """Yields each group of pods: its key, its data, and whether it is the head's."""
    at = RAY_KINDS[manifest["kind"]]
    spec = get(manifest, *at, default={})
    if isinstance(head := get(spec, "headGroupSpec"), dict):
        yield (*at, "headGroupSpec"), head, True
    for number, group in enumerate(get(spec, "workerGroupSpecs", default=[]) or []):
        if isinstance(group, dict):
            yield (*at, "workerGroupSpecs", number), group, False


def container(group: Config) -> dict[str, Any]:
    """The container in which Ray runs: the first of a group's pods."""
    found = get(group, "template", "spec", "containers", 0, default={})
    return found if isinstance(found, dict) else {}


_CONTAINER: Key = ("template", "spec", "containers", 0)


def variables(group: Config) -> dict[str, str]:
    """The environment variables of a group's Ray container that have a value in the file."""
    return {
        str(entry.get("name")): str(entry.get("value", ""))
        for entry in container(group).get("env") or []
        if isinstance(entry, dict)
    }


def _manifest_mistakes(
    manifest: Config, crds: Mapping[str, Schema], ray_version: str
) -> Iterator[Mistake]:
    """Finds the mistakes in one document of a KubeRay file.

    Args:
        manifest: the document.
        crds: the known schemas, by `kind/version`.
        ray_version: that the images should have.
    """
    kind, api = manifest.get("kind"), str(manifest.get("apiVersion", ""))
    if not isinstance(kind, str) or kind not in RAY_KINDS:
        if kind not in _OTHER_KINDS:
            known = (*RAY_KINDS, *_OTHER_KINDS)
            rule = f"must be one of {', '.join(known)}{nearest(kind, known)}"
            yield Mistake(("kind",), rule, "correct it", kind)
        return
    if api != "ray.io/v1":
        yield Mistake(("apiVersion",), "must be ray.io/v1", "correct it", api or NOTHING)
    wrong = [
        *by_schema(manifest, _SHAPES[kind]),
        *by_schema(manifest, _crd(kind, crds)),
    ]
    yield from wrong
    reported = {mistake.key for mistake in wrong}
    sound = without(manifest, {mistake.key for mistake in wrong if mistake.found is not NOTHING})
    for rule_of in (_pods, _scaling, _whole_cluster, _served):
        yield from (m for m in rule_of(sound) if not reported & set(prefixes(m.key)))
    at = RAY_KINDS[kind]
    if get(sound, *at, "rayVersion") != ray_version:
        rule = f"must be the version that raymeta is tested with ({ray_version})"
        found = get(sound, *at, "rayVersion", default=NOTHING)
        yield Mistake((*at, "rayVersion"), rule, "set both it and the image to that", found)


def _crd(kind: str, crds: Mapping[str, Schema]) -> Schema:
    """Gets the schema of a kind; a RayService without one has its cluster checked."""
    cluster = get(crds.get("RayCluster/v1"), "properties", "spec")
    if kind != "RayService" or "RayService/v1" in crds or cluster is None:
        return crds.get(f"{kind}/v1", {})
    return {"properties": {"spec": {"properties": {"rayClusterConfig": cluster}}}}


def _served(manifest: Config) -> Iterator[Mistake]:
    """Finds the mistakes in a RayService's applications, which are YAML within a text."""
    text = get(manifest, "spec", "serveConfigV2")
    if manifest["kind"] != "RayService" or not isinstance(text, str):
        return
    at: Key = ("spec", "serveConfigV2")
    try:
        documents = yaml_documents(Path("serveConfigV2"), text)
    except ClusterError as error:
        yield Mistake(at, f"must be YAML ({error!s:.200})", "correct it")
        return
    config = documents[0].data if len(documents) == 1 else None
    applications = get(config, "applications")
    if not isinstance(applications, list) or not applications:
        yield Mistake((*at, "applications"), "must be a list of applications", "add one")
        return
    yield from (replace(m, key=(*at, *m.key)) for m in documents[0].mistakes)
    for number, application in enumerate(applications):
        if get(application, "import_path") == _BUILDER:
            args = get(application, "args", default={})
            key = (*at, "applications", number, "args")
            yield from by_schema(args, ServeSettings.model_json_schema(), key)


def _pods(manifest: Config) -> Iterator[Mistake]:
    for at, group, is_head in groups(manifest):
        key = (*at, *_CONTAINER)
        image = container(group).get("image")
        if not isinstance(image, str) or not pinned(image):
            yield Mistake((*key, "image"), *UNPINNED, image or NOTHING)
        limits = get(container(group), "resources", "limits", default={})
        for name in ("cpu", "memory"):
            if name not in limits:
                remedy = "add it: Ray and Kubernetes both work out from it what fits"
                missing = (*key, "resources", "limits", name)
                yield Mistake(missing, "is required, but is not given", remedy)
        if RUNS_DIR not in variables(group):
            remedy = f"add {RUNS_DIR} to it: a mounted folder or a URI that all pods share"
            yield Mistake((*key, "env"), f"must set {RUNS_DIR}", remedy)
        cpus = get(group, "rayStartParams", "num-cpus")
        for name in ("num-cpus", "num-gpus", "memory"):
            amount = get(group, "rayStartParams", name)
            if amount is not None and not _NUMBER.fullmatch(str(amount)):
                rule, remedy = "must be a number (memory: of bytes)", "write it out, in quotes"
                yield Mistake((*at, "rayStartParams", name), rule, remedy, amount)
        if is_head and cpus != "0":
            remedy = 'set it to "0", or trials run on the head and its loss costs them too'
            found = NOTHING if cpus is None else cpus
            yield Mistake((*at, "rayStartParams", "num-cpus"), 'must be "0"', remedy, found)


def _scaling(manifest: Config) -> Iterator[Mistake]:
    at = RAY_KINDS[manifest["kind"]]
    workers = [(key, group) for key, group, is_head in groups(manifest) if not is_head]
    if not workers:
        remedy = "add a group: the head runs no trial"
        yield Mistake((*at, "workerGroupSpecs"), "is required, but is not given", remedy)
    for key, group in workers:
        fewest, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        count = group.get("replicas", fewest)
        if most < max(fewest, 1):
            rule = f"must be >= minReplicas ({fewest}) and >= 1"
            yield Mistake((*key, "maxReplicas"), rule, "raise it, or lower minReplicas", most)
        elif not fewest <= count <= most:
            rule = f"must be from minReplicas to maxReplicas ({fewest} to {most})"
            yield Mistake((*key, "replicas"), rule, "correct it", count)
        if fewest < most and get(manifest, *at, "enableInTreeAutoscaling") is not True:
            rule = "must be true where minReplicas < maxReplicas"
            found = get(manifest, *at, "enableInTreeAutoscaling", default=NOTHING)
            remedy = "set it to true, or no worker is ever added"
            yield Mistake((*at, "enableInTreeAutoscaling"), rule, remedy, found)


def _whole_cluster(manifest: Config) -> Iterator[Mistake]:
    at = RAY_KINDS[manifest["kind"]]
    if get(manifest, *at, "authOptions", "mode") != "token":
        remedy = "set it to token, or whoever reaches the head's service may run code"
        found = get(manifest, *at, "authOptions", "mode", default=NOTHING)
        yield Mistake((*at, "authOptions", "mode"), "must be token", remedy, found)
    environments = [variables(group) for _, group, _ in groups(manifest)]
    folders = sorted({env[RUNS_DIR] for env in environments if RUNS_DIR in env})
    if len(folders) > 1:
        rule, found = f"must set {RUNS_DIR} alike on head and workers", " and ".join(folders)
        yield Mistake(at, rule, "give all groups the same", found)
    # The operator polls a RayJob's dashboard from another pod; a RayCluster is reached by a tunnel.
    for key, group, is_head in groups(manifest):
        host = get(group, "rayStartParams", "dashboard-host")
        if is_head and manifest["kind"] == "RayCluster" and host != "127.0.0.1":
            remedy = 'set it to "127.0.0.1"; `kubectl port-forward` reaches it'
            found = NOTHING if host is None else host
            rule = "must be loopback (KubeRay's own is 0.0.0.0)"
            yield Mistake((*key, "rayStartParams", "dashboard-host"), rule, remedy, found)


def _serves(file: ClusterFile) -> bool:
    return any(
        isinstance(document.data, dict) and {"apiVersion", "kind"} & set(document.data)
        for document in file.documents
    )


def _read(file: ClusterFile) -> Cluster:
    from ray import __version__ as ray_version  # noqa: PLC0415

    schemas = _crds(file.crds) if file.crds else {}
    checked, manifests = [], []
    reported: set[str] = set()
    for document in file.documents:
        manifest = document.data if isinstance(document.data, dict) else {}
        mistakes = [
            *document.mistakes,
            *unfilled(file.text, manifest, reported),
            *_manifest_mistakes(manifest, schemas, ray_version),
        ]
        kind = manifest.get("kind", "?")
        checked.append((document.lines, mistakes, f"{kind if isinstance(kind, str) else '?'} "))
        if isinstance(kind, str) and kind in RAY_KINDS:
            manifests.append(manifest)
    warnings = report(file.path, checked)
    if not manifests:
        raise ClusterError(f"{file.path}: no RayCluster, RayJob or RayService in it; add one")
    if file.crds is None:
        hint = "its fields were not checked against the CRDs of KubeRay; give their folder for that"
        warnings = (*warnings, f"{file.path}: {hint}")
    elif "RayService/v1" not in schemas and any(m["kind"] == "RayService" for m in manifests):
        hint = "only the cluster of its RayService was checked: there is no CRD of RayService"
        warnings = (*warnings, f"{file.path}: {hint}")
    # A RayJob beside a RayCluster describes the same cluster, so the first one is taken.
    first = [group for _, group, _ in groups(manifests[0])]
    runs_dir = next((found for group in first if (found := variables(group).get(RUNS_DIR))), None)
    return Cluster(file.path, "kuberay", tuple(_pod_nodes(manifests[0])), runs_dir, warnings)


@lru_cache
def _crds(folder: Path) -> dict[str, Schema]:
    """Reads the schema of each `kind/version` from the definitions in a folder."""
    schemas: dict[str, Schema] = {}
    for file in sorted(folder.glob("*.yaml")):
        documents = yaml_documents(file, read_text(file, _MAX_CRD_CHARACTERS), large=True)
        for document in documents:
            kind = get(document.data, "spec", "names", "kind")
            versions = get(document.data, "spec", "versions")
            for version in versions if isinstance(versions, list) else []:
                schema = crd_schema(version)
                if schema is not None:
                    schemas[f"{kind}/{version['name']}"] = schema
    if not {"RayCluster", "RayJob"} <= {name.split("/")[0] for name in schemas}:
        found = ", ".join(sorted(schemas)) or "none"
        raise ClusterError(
            f"{folder}: expected the CRDs of RayCluster and RayJob, but found "
            f"{shown(found)[1:-1]}; take them from KubeRay's Helm chart"
        )
    return schemas


def _pod_nodes(manifest: Mapping[str, Any]) -> Iterator[NodeType]:
    for _, group, is_head in groups(manifest):
        limits = get(container(group), "resources", "limits", default={})
        names = {"cpu": "CPU", "memory": "memory"}
        resources = {
            names.get(name, "GPU"): quantity(amount)
            for name, amount in limits.items()
            if name in names or name.endswith("/gpu")
        }
        params = group.get("rayStartParams") or {}
        for flag, name in (("num-cpus", "CPU"), ("num-gpus", "GPU"), ("memory", "memory")):
            if flag in params:
                resources[name] = float(params[flag])
        for name, amount in (group.get("resources") or {}).items():
            resources[name] = quantity(amount)
        selector = get(group, "template", "spec", "nodeSelector", default={})
        yield NodeType(
            name="head" if is_head else str(group.get("groupName")),
            resources=resources,
            min_workers=0 if is_head else group.get("minReplicas", 0),
            max_workers=0 if is_head else group["maxReplicas"],
            is_head=is_head,
            is_spot=any("spot" in f"{key}={value}".lower() for key, value in selector.items()),
        )


PROVIDER = Provider(
    "kuberay", _serves, _read, ends_by="`kubectl delete -f {path} -l raymeta=cluster`"
)
