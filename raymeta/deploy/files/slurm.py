"""Batch scripts for Slurm: a cluster that lives as long as its job."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from raymeta.deploy.files.cluster import Cluster, ClusterFile, NodeType, Provider
from raymeta.deploy.files.mistakes import NOTHING, Key, Mistake, nearest, report, unfilled
from raymeta.deploy.files.rules import RUNS_DIR, TOKEN, loopback, quantity
from raymeta.deploy.files.shell import assignments, flags_of, shell_words

_COUNT = re.compile(r"[0-9]{1,9}")
_MEMORY = re.compile(r"[0-9]{1,12}[KMGTkmgt]?")
_GPUS = re.compile(r"(?:[A-Za-z][\w.-]*:)?([0-9]{1,9})")
_GRES = re.compile(r"gpu(?::[A-Za-z][\w.-]*)?(?::([0-9]{1,9}))?")
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
    head: dict[str, str] | None  # the flags of `ray start --head`, if the script has one


def read_script(text: str) -> Script:
    """Parses a batch script's options for Slurm and its exports."""
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
                rule = f"is not a known option{nearest(name, _SBATCH_KNOWN)}"
                mistakes.append(Mistake(key, rule, "correct or remove it"))
            options[name] = match[3] or ""
        elif line.strip() and not line.lstrip().startswith("#"):
            commands_began = True
            try:
                words = shell_words(line)
            except ValueError:
                continue  # a quoted text of several lines
            for name, value in assignments(words).items():
                values.setdefault(name, value)
                lines.setdefault(name, number)
            if words[:1] == ["export"]:
                exported |= {word.partition("=")[0] for word in words[1:]}
    joined = text.replace("\\\n", " ")
    head = re.search(r"^\s*ray start (.*--head\b.*)$", joined, re.MULTILINE)
    flags = None
    if head:
        lines["ray start --head"] = 1 + text.count("\n", 0, max(text.find("ray start "), 0))
        try:
            flags = flags_of(shell_words(head[1]))
        except ValueError as error:
            key = ("ray start --head",)
            mistakes.append(Mistake(key, f"must be valid shell: {error}", "close the quote"))
    exports = {name: value for name, value in values.items() if name in exported}
    return Script(options, exports, lines, tuple(mistakes), text, flags)


def script_mistakes(script: Script) -> Iterator[Mistake]:
    """Finds the mistakes in a batch script."""
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
        elif least is not None and not (_COUNT.fullmatch(value) and int(value) >= least):
            yield Mistake(key, f"must be >= {least}", f"raise it: {remedy}", value)
    for name, form, rule in (
        ("mem", _MEMORY, "must be a number with K, M, G or T"),
        ("gpus-per-node", _GPUS, "must be a count, or TYPE:COUNT"),
    ):
        if (value := script.options.get(name)) is not None and not form.fullmatch(value):
            yield Mistake((f"#SBATCH {name}",), rule, "correct it", value)
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


def _serves(file: ClusterFile) -> bool:
    return file.path.suffix == ".sbatch" or file.text.startswith("#!")


def _read(file: ClusterFile) -> Cluster:
    script = read_script(file.text)
    lines: dict[Key, int] = {(name,): line for name, line in script.lines.items()}
    settings = {f"#SBATCH {name}": value for name, value in script.options.items()}
    told = {**settings, **script.exports}
    mistakes = [*unfilled(file.text, told, set()), *script_mistakes(script)]
    warnings = report(file.path, [(lines, mistakes, "")])
    options = script.options
    resources = {"CPU": float(options["cpus-per-task"])}
    if gpus := _gpus(options):
        resources["GPU"] = float(gpus[1] or 1)
    memory = options.get("mem")
    if memory and quantity(memory) > 0:  # 0 means all memory of a node
        unit = memory if memory[-1:].isalpha() else f"{memory}M"
        resources["memory"] = quantity(f"{unit[:-1]}{unit[-1].upper().replace('K', 'k')}")
    count = int(options["nodes"])
    nodes = [NodeType("node", resources, count, count, is_head=False, is_spot=False)]
    if script.head is not None:
        nodes.insert(0, NodeType("head", {"CPU": 0.0}, 0, 0, is_head=True, is_spot=False))
    runs_dir = _expanded(script.exports[RUNS_DIR])
    return Cluster(file.path, "slurm", tuple(nodes), runs_dir, warnings)


def _gpus(options: dict[str, str]) -> re.Match[str] | None:
    """Counts the GPUs of a node (no count means one); None if the script asks for no GPU."""
    if count := options.get("gpus-per-node"):
        return _GPUS.fullmatch(count)
    found = (_GRES.fullmatch(part) for part in options.get("gres", "").split(","))
    return next((match for match in found if match), None)


def _expanded(text: str) -> str:
    """Expands a shell value on this machine, whose environment Slurm's nodes share."""
    default = re.fullmatch(r"\$\{(\w+):-(.*)\}", text)
    if default:
        text = os.environ.get(default[1]) or default[2]
    return os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111  (an unknown user's ~ stays)


PROVIDER = Provider("slurm", _serves, _read, ends_by="`scancel JOBID`; `squeue --me` lists jobs")
