"""Checks the commands that start Ray on nodes: token, addresses, ports, runs folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from raymeta.deploy.files.mistakes import NOTHING, Config, Key, Mistake, get
from raymeta.deploy.files.rules import RUNS_DIR, TOKEN, loopback
from raymeta.deploy.files.shell import exports, flags_of, shell_words, written_variables

START = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}
_SETUP = {"head": "head_setup_commands", "worker": "worker_setup_commands"}


@dataclass(frozen=True)
class Start:
    """A `ray start` command: its environment variables and its flags."""

    variables: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)


def ray_start(config: Config, side: str) -> Start | None:
    """Finds the `ray start` command of the head or the workers, with its environment variables.

    Ray runs each command in a new shell, so only two kinds of variables count: those that the
    command itself sets, and those in files written by setup commands that it sources (`. FILE`).

    Raises:
        ValueError: a quote is not closed.
    """
    setup = [*get(config, "setup_commands", default=[]), *get(config, _SETUP[side], default=[])]
    files = written_variables(setup)
    for command in get(config, START[side], default=[]):
        words = shell_words(command) if isinstance(command, str) else []
        for number in range(len(words) - 1):
            if words[number].rsplit("/", 1)[-1] == "ray" and words[number + 1] == "start":
                before, seen = words[:number], dict[str, str]()
                for word, path in pairwise(before):
                    if word in (".", "source"):
                        seen |= files.get(path, {})
                return Start(seen | exports(before), flags_of(words[number + 2 :]))
    return None


def start_rules(config: Config) -> Iterator[Mistake]:
    """Finds mistakes in both `ray start` commands: token, addresses, ports, runs folder."""
    starts: dict[str, Start] = {}
    for side, name in START.items():
        try:
            start = ray_start(config, side)
        except ValueError as error:
            yield Mistake((name,), f"must be valid shell: {error}", "close the quote")
            continue
        if start is None:
            yield Mistake((name,), "must start Ray", "add `ray start`, without it no node joins")
            continue
        starts[side] = start
        yield from _secured((name,), start.variables)
        yield from _ports((name,), start.flags)
    if (head := starts.get("head")) is not None:
        yield from _head_start(head)
    if len(starts) == 2:
        yield from _joining(starts["head"], starts["worker"])


def _secured(key: Key, variables: Mapping[str, str]) -> Iterator[Mistake]:
    """Finds missing variables that every `ray start` needs."""
    mode, runs = variables.get(TOKEN, NOTHING), variables.get(RUNS_DIR, NOTHING)
    if mode != "token":
        rule = f"must set {TOKEN}=token before `ray start`"
        yield Mistake(key, rule, "export it there, or whoever reaches a port may run code", mode)
    if runs is NOTHING:
        remedy = f"export {RUNS_DIR}=FOLDER-OR-URI there: a storage that all nodes share"
        yield Mistake(key, f"must set {RUNS_DIR} before `ray start`", remedy)
    elif not re.match(r"/|[a-z][a-z0-9+]*://", str(runs)):
        rule = f"must set {RUNS_DIR} to a full path or a URI"
        yield Mistake(key, rule, "write it in full: it is another folder on every node", runs)


def _head_start(head: Start) -> Iterator[Mistake]:
    key: Key = (START["head"],)
    yield from loopback(key, head.flags)
    if "head" not in head.flags:
        yield Mistake(key, "must start the head", "add --head to `ray start`")
    if "autoscaling-config" not in head.flags:
        remedy = "add --autoscaling-config=~/ray_bootstrap_config.yaml, or no worker is started"
        yield Mistake(key, "must name the configuration of the workers", remedy)


def _ports(key: Key, flags: Mapping[str, str]) -> Iterator[Mistake]:
    taken: dict[str, str] = {}
    for name, port in flags.items():
        if name != "port" and not name.endswith("-port"):
            continue
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            yield Mistake(key, f"must give --{name} a port from 1 to 65535", "correct it", port)
        elif port in taken:
            rule = f"must give --{name} another port than --{taken[port]}"
            yield Mistake(key, rule, "choose one that is free", port)
        taken[port] = name


def _joining(head: Start, worker: Start) -> Iterator[Mistake]:
    key: Key = (START["worker"],)
    port = head.flags.get("port", "6379")
    address = worker.flags.get("address", "")
    if not address.endswith(f":{port}"):
        remedy = f"write --address=$RAY_HEAD_IP:{port}"
        rule = f"must join the head at its port {port} (--address)"
        yield Mistake(key, rule, remedy, address or NOTHING)
    folders = [start.variables.get(RUNS_DIR) for start in (head, worker)]
    if None not in folders and folders[0] != folders[1]:
        rule = f"must set {RUNS_DIR} as {START['head']} does ({folders[0]})"
        yield Mistake(key, rule, "give both the same", folders[1])
