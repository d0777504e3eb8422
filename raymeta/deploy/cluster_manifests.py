"""What must hold for KubeRay's manifests and for batch scripts, and what to do if not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raymeta.deploy.cluster_rules import (
    RUNS_DIR,
    TOKEN,
    UNPINNED,
    Config,
    assignments,
    flags_of,
    loopback,
    pinned,
    prefixes,
    shell_words,
    without,
)
from raymeta.deploy.cluster_schemas import NOTHING, Key, Mistake, Schema, by_schema, get, nearest

# ---------------------------------------------------------------------------- KubeRay

RAY_KINDS = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}
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
    """Of each group of pods its key, the group, and whether it is the head's."""
    at = RAY_KINDS[manifest["kind"]]
    spec = get(manifest, *at, default={})
    if isinstance(head := get(spec, "headGroupSpec"), dict):
        yield (*at, "headGroupSpec"), head, True
    for number, group in enumerate(get(spec, "workerGroupSpecs", default=[]) or []):
        if isinstance(group, dict):
            yield (*at, "workerGroupSpecs", number), group, False


def container(group: Config) -> dict[str, Any]:
    """The container of a group's pods in which Ray runs: the first."""
    found = get(group, "template", "spec", "containers", 0, default={})
    return found if isinstance(found, dict) else {}


_CONTAINER: Key = ("template", "spec", "containers", 0)


def variables(group: Config) -> dict[str, str]:
    """The environment of a group's Ray container, as far as the file tells it."""
    return {
        str(entry.get("name")): str(entry.get("value", ""))
        for entry in container(group).get("env") or []
        if isinstance(entry, dict)
    }


def manifest_mistakes(
    manifest: Config, crds: Mapping[str, Schema], ray_version: str
) -> Iterator[Mistake]:
    """All that is wrong with one document of a KubeRay file.

    Args:
        manifest: the document.
        crds: the schemas of `kind/version`, as far as they are at hand.
        ray_version: the one that the images should have.
    """
    kind, api = manifest.get("kind"), str(manifest.get("apiVersion", ""))
    if kind not in RAY_KINDS:
        if kind not in _OTHER_KINDS:
            known = (*RAY_KINDS, *_OTHER_KINDS)
            rule = f"must be one of {', '.join(known)}{nearest(kind, known)}"
            yield Mistake(("kind",), rule, "correct it", kind)
        return
    if api != "ray.io/v1":
        yield Mistake(("apiVersion",), "must be ray.io/v1", "correct it", api or NOTHING)
    wrong = list(by_schema(manifest, crds.get(f"{kind}/v1", {})))
    yield from wrong
    told = {mistake.key for mistake in wrong}
    sound = without(manifest, {mistake.key for mistake in wrong if mistake.found is not NOTHING})
    for rule_of in (_pods, _scaling, _whole_cluster):
        yield from (m for m in rule_of(sound) if not told & set(prefixes(m.key)))
    at = RAY_KINDS[str(kind)]
    if get(sound, *at, "rayVersion") != ray_version:
        rule = f"must be the version that raymeta is tested with ({ray_version})"
        found = get(sound, *at, "rayVersion", default=NOTHING)
        yield Mistake((*at, "rayVersion"), rule, "set both it and the image to that", found)


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
            if amount is not None and not re.fullmatch(r"[0-9.]+", str(amount)):
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
    told = [variables(group) for _, group, _ in groups(manifest)]
    folders = sorted({env[RUNS_DIR] for env in told if RUNS_DIR in env})
    if len(folders) > 1:
        rule, found = f"must set {RUNS_DIR} alike on head and workers", " and ".join(folders)
        yield Mistake(at, rule, "give all groups the same", found)
    # The operator asks a RayJob's dashboard from its own pod; a RayCluster is reached by a tunnel.
    for key, group, is_head in groups(manifest):
        host = get(group, "rayStartParams", "dashboard-host")
        if is_head and manifest["kind"] == "RayCluster" and host != "127.0.0.1":
            remedy = 'set it to "127.0.0.1"; `kubectl port-forward` reaches it'
            found = NOTHING if host is None else host
            rule = "must be loopback (KubeRay's own is 0.0.0.0)"
            yield Mistake((*key, "rayStartParams", "dashboard-host"), rule, remedy, found)


# ---------------------------------------------------------------------------- Slurm

_SBATCH_SHORT = {
    "A": "account",
    "C": "constraint",
    "J": "job-name",
    "N": "nodes",
    "c": "cpus-per-task",
    "e": "error",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "t": "time",
    "G": "gpus",
    "w": "nodelist",
    "x": "exclude",
}
_SBATCH_KNOWN = (
    *_SBATCH_SHORT.values(),
    "array",
    "chdir",
    "comment",
    "cpus-per-gpu",
    "dependency",
    "exclusive",
    "export",
    "gpus-per-node",
    "gpus-per-task",
    "gres",
    "hint",
    "kill-on-invalid-dep",
    "mail-type",
    "mail-user",
    "mem",
    "mem-per-cpu",
    "mem-per-gpu",
    "no-requeue",
    "ntasks-per-node",
    "open-mode",
    "reservation",
    "requeue",
    "signal",
    "spread-job",
    "switches",
    "time-min",
    "tmp",
)


@dataclass(frozen=True)
class Script:
    """A batch script: its `#SBATCH` options and exports, each with its line."""

    options: dict[str, str]
    exports: dict[str, str]
    lines: dict[str, int]
    mistakes: tuple[Mistake, ...]
    text: str
    head: dict[str, str] | None  # the flags of `ray start --head`, where the script has one


def read_script(text: str) -> Script:
    """What a batch script asks of Slurm and what it exports."""
    options: dict[str, str] = {}
    values: dict[str, str] = {}
    exported: set[str] = set()
    lines: dict[str, int] = {}
    mistakes: list[Mistake] = []
    commands_began = False
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"#SBATCH\s+(?:--([\w-]+)|-(\w))(?:[=\s]\s*(\S+))?", line):
            name = match[1] or _SBATCH_SHORT.get(match[2], match[2])
            lines.setdefault(f"#SBATCH {name}", number)
            key = (f"#SBATCH {name}",)
            if commands_began:
                remedy = "move it above the first command: Slurm reads no option after that"
                mistakes.append(Mistake(key, "comes too late", remedy))
            elif name not in _SBATCH_KNOWN:
                rule = f"is no option that is known here{nearest(name, _SBATCH_KNOWN)}"
                mistakes.append(Mistake(key, rule, "correct or remove it"))
            options[name] = match[3] or ""
        elif line.strip() and not line.lstrip().startswith("#"):
            commands_began = True
            try:
                words = shell_words(line)
            except ValueError:
                continue  # a text of several lines
            for name, value in assignments(words).items():
                values.setdefault(name, value)
                lines.setdefault(name, number)
            if words[0] == "export":
                exported |= {word.partition("=")[0] for word in words[1:]}
    joined = text.replace("\\\n", " ")
    head = re.search(r"^\s*ray start (.*--head\b.*)$", joined, re.MULTILINE)
    flags = flags_of(shell_words(head[1])) if head else None
    if head:
        lines["ray start --head"] = 1 + text[: text.index("ray start ")].count("\n")
    exports = {name: value for name, value in values.items() if name in exported}
    return Script(options, exports, lines, tuple(mistakes), text, flags)


def script_mistakes(script: Script) -> Iterator[Mistake]:
    """All that is wrong with a batch script."""
    yield from script.mistakes
    if not script.text.startswith("#!"):
        yield Mistake(("#!",), "is required, but is not given", "begin with #!/bin/bash")
    for name, least, remedy in (
        ("nodes", 2, "one node runs the head, the others run trials"),
        ("ntasks-per-node", None, "Ray is started once on every node"),
        ("cpus-per-task", 1, "Ray gets all CPUs of the task"),
    ):
        key, value = (f"#SBATCH {name}",), script.options.get(name)
        if value is None:
            yield Mistake(key, "is required, but is not given", f"add it: {remedy}")
        elif least is None and value != "1":
            yield Mistake(key, "must be 1", f"set it to 1: {remedy}", value)
        elif least is not None and not (value.isdigit() and int(value) >= least):
            yield Mistake(key, f"must be >= {least}", f"raise it: {remedy}", value)
    mode = script.exports.get(TOKEN, NOTHING)
    if mode != "token":
        remedy = "export it before Ray starts, or whoever reaches a port may run code"
        yield Mistake((TOKEN,), "must be exported as token", remedy, mode)
    runs = script.exports.get(RUNS_DIR)
    if runs is None:
        remedy = "export it before Ray starts: a storage that all nodes share"
        yield Mistake((RUNS_DIR,), "must be exported", remedy)
    if script.options.get("export", "").upper() == "NONE":
        remedy = "remove it, or srun starts Ray without the exported variables"
        yield Mistake(("#SBATCH export",), "must not be NONE", remedy, "NONE")
    if script.head is not None:
        key = ("ray start --head",)
        if (cpus := script.head.get("num-cpus", NOTHING)) != "0":
            remedy = "add --num-cpus=0: its search outlives a trial that takes all memory"
            yield Mistake(key, "must keep trials off the head", remedy, cpus)
        yield from loopback(key, script.head)
