"""Cluster files: read, checked as deeply as can be known offline, and told in short.

A file of Ray's cluster launcher (your own hosts, AWS, GCP, Azure, several nodes on one machine),
a KubeRay manifest, or a batch script for Slurm.  Every mistake is told at once, by file, line and
key, before a machine is paid for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from raymeta.deploy.cluster_manifests import (
    RAY_KINDS,
    container,
    groups,
    manifest_mistakes,
    read_script,
    script_mistakes,
    variables,
)
from raymeta.deploy.cluster_rules import (
    PLACEHOLDER,
    RUNS_DIR,
    launcher_mistakes,
    node_types,
    ray_start,
    scalars,
)
from raymeta.deploy.cluster_schemas import NOTHING, Key, Mistake, Schema, crd_schema, get
from raymeta.errors import ClusterError

# Of a CRD's million characters the loader in C makes short work, where PyYAML was built with it.
_QUICK_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class NodeType:
    """A kind of node, and how many of it there may be.

    `resources` are CPU, GPU, memory in bytes and Ray's others, or None where the file cannot tell
    (hosts reached by ssh).
    """

    name: str
    resources: Mapping[str, float] | None
    min_workers: int
    max_workers: int
    is_head: bool
    is_spot: bool


@dataclass(frozen=True)
class Cluster:
    """What a cluster file describes; `runs_dir` is what it exports as RAYMETA_RUNS_DIR."""

    path: Path
    provider: str
    nodes: tuple[NodeType, ...]
    runs_dir: str | None
    warnings: tuple[str, ...]


@dataclass
class _Document:
    """A YAML document, and the line of each of its keys."""

    data: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def load_cluster(path: Path, *, crds: Path | None = None) -> Cluster:
    """Reads and checks a cluster file.

    Args:
        path: a file of Ray's cluster launcher, a KubeRay manifest or a batch script for Slurm.
        crds: a folder with KubeRay's CustomResourceDefinitions, to check manifests against.

    Raises:
        ClusterError: naming file, line, key, rule, value and remedy of everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ClusterError(f"{path}: cannot be read: {reason}") from None
    if path.suffix == ".sbatch" or text.startswith("#!"):
        return _slurm(path, text)
    documents = _documents(path, text)
    if any(isinstance(d.data, dict) and {"apiVersion", "kind"} & set(d.data) for d in documents):
        return _kuberay(path, text, documents, crds)
    if len(documents) != 1 or not isinstance(documents[0].data, dict):
        raise ClusterError(f"{path}: expected one mapping of keys; see cluster/README.md")
    return _launcher(path, text, documents[0])


# ---------------------------------------------------------------------------- YAML


def _documents(path: Path, text: str) -> list[_Document]:
    loader = yaml.SafeLoader(text)
    documents = []
    try:
        while loader.check_node():
            node = loader.get_node()
            document = _Document()
            if node is not None:
                _walk(node, (), document, ())
                document.data = _with_text_keys(loader.construct_document(node))
            documents.append(document)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or "nested too deeply"
        raise ClusterError(f"{path}{line}: not valid YAML: {problem}") from None
    finally:
        loader.dispose()
    return [document for document in documents if document.data is not None]


def _walk(node: yaml.Node, at: Key, document: _Document, above: tuple[yaml.Node, ...]) -> None:
    """Notes the line of every key, and keys that are given twice."""
    if node in above:
        raise ValueError("an alias holds itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            document.lines[*at, number] = item.start_mark.line + 1
            _walk(item, (*at, number), document, above)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name == "<<":
                _walk(value, at, document, above)
                continue
            document.lines[*at, name] = key.start_mark.line + 1
            if name in seen:
                document.mistakes.append(Mistake((*at, name), "is given twice", "remove one"))
            seen.add(name)
            _walk(value, (*at, name), document, above)


def _with_text_keys(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _with_text_keys(value) for key, value in data.items()}
    return [_with_text_keys(value) for value in data] if isinstance(data, list) else data


# ---------------------------------------------------------------------------- telling


def dotted(key: Key) -> str:
    """A key as it is told: `workerGroupSpecs[0].template`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _told(path: Path, mistake: Mistake, lines: Mapping[Key, int], prefix: str = "") -> str:
    """`file, line N: key rule, but got value; remedy`."""
    near = (lines.get(mistake.key[:end]) for end in range(len(mistake.key), 0, -1))
    line = next((f", line {number}" for number in near if number), "")
    got = "" if mistake.found is NOTHING else f", but got {mistake.found!r:.80}"
    key = f"{prefix}{dotted(mistake.key)}"
    return f"{path}{line}: {key} {mistake.rule}{got}; {mistake.remedy}"


_OPEN = "is still to be filled in"
_MEANT = re.compile(r"did you mean (.+)\?")


def _unfilled(text: str, data: object, told: set[str]) -> Iterator[Mistake]:
    """Each placeholder that is left, told once, with what the head of the file says of it."""
    told_above = re.findall(r"^#\s+(FILL_IN\w*)\s+(.+(?:\n#\s{9,}.+)*)", text, flags=re.MULTILINE)
    meanings = {name: re.sub(r"\s*\n#\s*", " ", meaning) for name, meaning in told_above}
    for key, value in scalars(data):
        for match in PLACEHOLDER.finditer(value):
            if match[0] not in told and key[:1] != ("auth",):
                told.add(match[0])
                meaning = meanings.get(match[0], "what belongs there")
                yield Mistake(key, _OPEN, f"give {meaning}", match[0])


def _refuse(mistakes: list[str]) -> None:
    if mistakes:
        raise ClusterError("\n".join(dict.fromkeys(mistakes)))


def _sorted_out(
    path: Path, documents: list[tuple[_Document, list[Mistake], str]]
) -> tuple[str, ...]:
    """The warnings.

    Raises:
        ClusterError: there are mistakes.
    """
    errors: list[str] = []
    warnings: list[str] = []
    for document, mistakes, prefix in documents:
        misspelt = {(*m.key[:-1], meant[1]) for m in mistakes if (meant := _MEANT.search(m.rule))}
        for mistake in sorted(mistakes, key=lambda m: _line(m, document.lines)):
            if mistake.key in misspelt and mistake.found is NOTHING:
                continue  # it is not missing, as it seems
            # What is not filled in yet breaks other rules too, which would only confuse.
            found = "" if mistake.found is NOTHING else str(mistake.found)
            if mistake.rule != _OPEN and PLACEHOLDER.search(found):
                continue
            told = _told(path, mistake, document.lines, prefix)
            (errors if mistake.serious else warnings).append(told)
    _refuse(errors)
    return tuple(warnings)


def _line(mistake: Mistake, lines: Mapping[Key, int]) -> int:
    near = (lines.get(mistake.key[:end]) for end in range(len(mistake.key), 0, -1))
    return next((number for number in near if number), 0)


# ---------------------------------------------------------------------------- Ray's launcher


def _launcher(path: Path, text: str, document: _Document) -> Cluster:
    config = document.data
    mistakes = [*document.mistakes, *_unfilled(text, config, set()), *launcher_mistakes(config)]
    warnings = _sorted_out(path, [(document, mistakes, "")])
    provider = config["provider"]["type"]
    _ask_ray(path, config)
    start = ray_start(config, "head")
    runs_dir = start.variables.get(RUNS_DIR) if start else None
    nodes = tuple(_ssh_nodes(config) if provider == "local" else _typed_nodes(config))
    return Cluster(path, provider, nodes, runs_dir, warnings)


def _ask_ray(path: Path, config: dict[str, Any]) -> None:
    """Ray's own word on a file in which nothing wrong was found."""
    from click import ClickException  # noqa: PLC0415
    from jsonschema import ValidationError  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    try:
        validate_config(prepare_config(config))
    except (ClickException, ValidationError, ValueError, RuntimeError, AssertionError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise ClusterError(f"{path}: Ray refuses it: {reason}; correct what it names") from None


def _ssh_nodes(config: Mapping[str, Any]) -> Iterator[NodeType]:
    hosts = len(get(config, "provider", "worker_ips", default=[]))
    yield NodeType("head", {"CPU": 0.0}, 0, 0, is_head=True, is_spot=False)
    most = min(config.get("max_workers", hosts), hosts)
    fewest = min(config.get("min_workers", hosts), most)
    yield NodeType("worker", None, fewest, most, is_head=False, is_spot=False)


# Where each cloud says that a machine may be taken away.
_SPOT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "aws": lambda node: get(node, "InstanceMarketOptions", "MarketType") == "spot",
    "gcp": lambda node: (
        get(node, "scheduling", "preemptible") is True
        or get(node, "scheduling", "provisioningModel") == "SPOT"
    ),
    "azure": lambda node: get(node, "azure_arm_parameters", "priority") in ("Spot", "Low"),
}


def _typed_nodes(config: Mapping[str, Any]) -> Iterator[NodeType]:
    limit = config.get("max_workers", 0)
    is_spot = _SPOT.get(config["provider"]["type"])
    for name, kind in node_types(config).items():
        is_head = name == config["head_node_type"]
        yield NodeType(
            name=name,
            resources={key: float(value) for key, value in kind["resources"].items()},
            min_workers=kind.get("min_workers", 0),
            max_workers=min(kind.get("max_workers", 0 if is_head else limit), limit),
            is_head=is_head,
            is_spot=is_spot is not None and is_spot(kind.get("node_config", {})),
        )


# ---------------------------------------------------------------------------- KubeRay


def _kuberay(path: Path, text: str, documents: list[_Document], crds: Path | None) -> Cluster:
    from ray import __version__ as ray_version  # noqa: PLC0415

    schemas = _crds(crds) if crds else {}
    checked, manifests = [], []
    told: set[str] = set()
    for document in documents:
        manifest = document.data if isinstance(document.data, dict) else {}
        mistakes = [
            *document.mistakes,
            *_unfilled(text, manifest, told),
            *manifest_mistakes(manifest, schemas, ray_version),
        ]
        checked.append((document, mistakes, f"{manifest.get('kind', '?')} "))
        if manifest.get("kind") in RAY_KINDS:
            manifests.append(manifest)
    warnings = _sorted_out(path, checked)
    if not manifests:
        raise ClusterError(f"{path}: no RayCluster and no RayJob in it; add one")
    if crds is None:
        hint = "its fields were not checked against the CRDs of KubeRay; give their folder for that"
        warnings = (*warnings, f"{path}: {hint}")
    # A RayJob beside a RayCluster makes one more of the same: the first tells what fits.
    first = [group for _, group, _ in groups(manifests[0])]
    runs_dir = next((found for group in first if (found := variables(group).get(RUNS_DIR))), None)
    return Cluster(path, "kuberay", tuple(_pod_nodes(manifests[0])), runs_dir, warnings)


@lru_cache
def _crds(folder: Path) -> dict[str, Schema]:
    """The schema of each `kind/version` that the definitions in a folder give."""
    schemas = {}
    for file in sorted(folder.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        definition = yaml.load(text, _QUICK_LOADER)  # noqa: S506  (a safe loader)
        kind = get(definition, "spec", "names", "kind")
        for version in get(definition, "spec", "versions", default=[]):
            schema = crd_schema(definition, version["name"])
            if schema is not None:
                schemas[f"{kind}/{version['name']}"] = schema
    if not set(RAY_KINDS) <= {name.split("/")[0] for name in schemas}:
        raise ClusterError(
            f"{folder}: expected the CRDs of RayCluster and RayJob, but found "
            f"{', '.join(sorted(schemas)) or 'none'}; take them from KubeRay's Helm chart"
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


_UNITS = {"": 1.0, "m": 1e-3}
_UNITS |= {unit: 1000.0 ** (n + 1) for n, unit in enumerate("kMGTP")}
_UNITS |= {f"{unit}i": 1024.0 ** (n + 1) for n, unit in enumerate("KMGTP")}


def quantity(amount: object) -> float:
    """A quantity of Kubernetes, such as 500m or 16Gi, as a number."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(amount))
    return float(match[1]) * _UNITS.get(match[2], 1.0) if match else 0.0


# ---------------------------------------------------------------------------- Slurm


def _slurm(path: Path, text: str) -> Cluster:
    script = read_script(text)
    lines: dict[Key, int] = {(name,): line for name, line in script.lines.items()}
    settings = {f"#SBATCH {name}": value for name, value in script.options.items()}
    mistakes = [*_unfilled(text, {**settings, **script.exports}, set()), *script_mistakes(script)]
    warnings = _sorted_out(path, [(_Document(lines=lines), mistakes, "")])
    options = script.options
    resources = {"CPU": float(options["cpus-per-task"])}
    gpus = re.search(r"(\d+)$", options.get("gpus-per-node") or options.get("gres", ""))
    if gpus:
        resources["GPU"] = float(gpus[1])
    if (memory := options.get("mem")) and quantity(memory) > 0:  # 0 is all that a node has
        unit = memory if memory[-1:].isalpha() else f"{memory}M"
        resources["memory"] = quantity(f"{unit[:-1]}{unit[-1].upper().replace('K', 'k')}")
    count = int(options["nodes"])
    nodes = [NodeType("node", resources, count, count, is_head=False, is_spot=False)]
    if script.head is not None:
        nodes.insert(0, NodeType("head", {"CPU": 0.0}, 0, 0, is_head=True, is_spot=False))
    return Cluster(path, "slurm", tuple(nodes), _expanded(script.exports[RUNS_DIR]), warnings)


def _expanded(text: str) -> str:
    """A shell's value as this machine would have it: Slurm's nodes share its environment."""
    default = re.fullmatch(r"\$\{(\w+):-(.*)\}", text)
    if default:
        text = os.environ.get(default[1]) or default[2]
    return os.path.expandvars(str(Path(text).expanduser()) if text.startswith("~") else text)
