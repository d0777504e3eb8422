"""What must hold for a file of Ray's cluster launcher besides its schema, and what to do if not.

A table of small functions, by provider: each looks at one thing that would leave a cluster open to
everybody, a search hanging, or a bill running.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from raymeta.deploy.cluster_schemas import (
    NODE_SCHEMAS,
    NOTHING,
    Key,
    Mistake,
    by_schema,
    get,
    launcher_schema,
    nearest,
)

PLACEHOLDER = re.compile(r"FILL_IN(_[A-Z0-9]+)*|<[A-Za-z][\w .-]*>")
_NEWER_AUTOSCALER = "RAY_enable_autoscaler_v2"
TOKEN, RUNS_DIR = "RAY_AUTH_MODE", "RAYMETA_RUNS_DIR"
CLOUDS = frozenset({"aws", "gcp", "azure"})
OVER_SSH = CLOUDS | {"local"}
LOCAL_NODES = "raymeta.deploy.local_nodes.LocalNodes"  # several on one machine
EVERYWHERE = ("0.0.0.0/0", "::/0")
START = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}
_SETUP = {"head": "head_setup_commands", "worker": "worker_setup_commands"}
Config = Mapping[str, Any]


def scalars(data: object, at: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every text in nested data, with its key."""
    match data:
        case str():
            yield at, data
        case Mapping():
            for key, value in data.items():
                yield from scalars(value, (*at, key))
        case list():
            for number, value in enumerate(data):
                yield from scalars(value, (*at, number))


# ---------------------------------------------------------------------------- shell


@dataclass(frozen=True)
class Start:
    """A `ray start`: the variables that it sees and the flags that it is given."""

    variables: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)


_SEPARATOR = re.compile(r"[;&|\n]+")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def assignments(words: Sequence[str]) -> dict[str, str]:
    """The variables that shell words set."""
    found = (_ASSIGNMENT.fullmatch(word) for word in words)
    return {match[1]: match[2] for match in found if match}


def exports(words: Sequence[str]) -> dict[str, str]:
    """The variables that a shell hands on after some words: exported, or before a command."""
    values: dict[str, str] = {}
    exported: set[str] = set()
    command: list[str] = []
    for word in (*words, ";"):
        if not _SEPARATOR.fullmatch(word):
            command.append(word)
            continue
        values |= assignments(command)
        if command[:1] == ["export"]:
            exported |= {name.partition("=")[0] for name in command[1:]}
        last, command = command, []
    before_command = assignments(last)
    return {n: v for n, v in values.items() if n in exported} | before_command


def shell_words(command: str) -> list[str]:
    """A command's words, with `;`, `&&` and the like as words of their own.

    Raises:
        ValueError: a quote is not closed.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace_split = True
    lexer.whitespace = " \t\r"
    return list(lexer)


# A file that a command writes, as Ray's users do for the environment of later commands.
_WRITTEN = re.compile(r"cat\s*>>?\s*(\S+)\s*<<-?\s*'?(\w+)'?\n(.*?)\n\s*\2\b", re.DOTALL)


def written_variables(commands: Sequence[object]) -> dict[str, dict[str, str]]:
    """The variables that shell commands write into files, by the file's path."""
    files: dict[str, dict[str, str]] = {}
    for match in _WRITTEN.finditer("\n".join(map(str, commands))):
        for line in match[3].splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue
            files.setdefault(match[1], {}).update(exports([*words, "\n"]))
    return files


def ray_start(config: Config, side: str) -> Start | None:
    """The `ray start` of head or workers, with what it sees of its environment.

    Ray runs each command in a shell of its own: only variables of the same command count, and of
    the files that it reads (`. FILE`) and setup commands have written.

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


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """The flags among the words of a command, up to its end."""
    flags: dict[str, str] = {}
    name = ""
    for word in words:
        if _SEPARATOR.fullmatch(word):
            break
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = value
        elif name and not flags[name]:
            flags[name] = word
    return flags


# ---------------------------------------------------------------------------- launcher files

_EVERY_PROVIDER = (
    "type",
    "disable_launch_config_check",
    "disable_node_updaters",
    "foreground_node_launch",
    "worker_liveness_check",
    "use_internal_ips",
    "use_external_head_ip",
    "use_node_id_as_ip",
)
# What each provider of Ray reads in its section (Ray's schema lets every key pass), and needs.
PROVIDER_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "aws": (
        ("region",),
        (
            "availability_zone",
            "aws_credentials",
            "cache_stopped_nodes",
            "cloudwatch",
            "key_pair",
            "security_group",
        ),
    ),
    "gcp": (
        ("region", "availability_zone", "project_id"),
        ("cache_stopped_nodes", "gcp_credentials"),
    ),
    "azure": (
        ("location", "resource_group"),
        (
            "availability_zone",
            "cache_stopped_nodes",
            "msi_name",
            "msi_resource_group",
            "subnet_mask",
            "subscription_id",
            "tags",
            "unique_id",
        ),
    ),
    "local": (("head_ip", "worker_ips"), ("external_head_ip",)),
    "external": (("module",), ("gcs_address", "head_node_id", "launch_multiple")),
}
Rule = Callable[[Config], Iterator[Mistake]]


def node_types(config: Config) -> dict[str, dict[str, Any]]:
    """The node types that a launcher file describes, those that are mappings."""
    kinds = get(config, "available_node_types", default={})
    return {name: kind for name, kind in kinds.items() if isinstance(kind, dict)}


def _each(config: Config) -> Iterator[tuple[Key, dict[str, Any], bool]]:
    """Of each node type the key of its node_config, the node_config, and whether the head's."""
    for name, kind in node_types(config).items():
        node = kind.get("node_config")
        if isinstance(node, dict):
            at = ("available_node_types", name, "node_config")
            yield at, node, name == config.get("head_node_type")


def _provider_keys(config: Config) -> Iterator[Mistake]:
    provider = config["provider"]
    needed, optional = PROVIDER_KEYS[provider["type"]]
    known = (*_EVERY_PROVIDER, *needed, *optional)
    for name in provider:
        if name not in known:
            rule = f"is no key that Ray's provider reads{nearest(name, known)}"
            yield Mistake(("provider", name), rule, "correct or remove it")
    for name in needed:
        if provider.get(name) in (None, "", []):
            yield Mistake(("provider", name), "is required, but is not given", "add it")


def _one_machine(config: Config) -> Iterator[Mistake]:
    """A file with code of its own: what that code reads, and does, is known of ours alone."""
    module = config["provider"].get("module")
    if module and module != LOCAL_NODES:
        rule = f"must be {LOCAL_NODES}{nearest(module, [LOCAL_NODES])}"
        yield Mistake(("provider", "module"), rule, "no other can be checked", module)


def _head_and_counts(config: Config) -> Iterator[Mistake]:
    kinds, head, limit = node_types(config), config.get("head_node_type"), config.get("max_workers")
    if not kinds:
        rule = "is required, but is not given"
        yield Mistake(("available_node_types",), rule, "describe the head and the workers there")
        return
    if head not in kinds:
        rule = f"must be one of available_node_types ({', '.join(kinds)}){nearest(head, kinds)}"
        yield Mistake(("head_node_type",), rule, "correct it", head)
    if limit is None:
        remedy = "say how many workers there may be in all (Ray's own limit is 2)"
        yield Mistake(("max_workers",), "is required, but is not given", remedy)
    fewest = {name: kind.get("min_workers", 0) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        most = kind.get("max_workers")
        if most is not None and fewest[name] > most:
            key = ("available_node_types", name, "max_workers")
            rule = f"must be >= min_workers ({fewest[name]})"
            yield Mistake(key, rule, "raise it, or lower min_workers", most)
    if limit is not None and sum(fewest.values()) > limit:
        rule = f"must be >= the sum of all min_workers ({sum(fewest.values())})"
        yield Mistake(("max_workers",), rule, "raise it, or lower a min_workers", limit)


def _resources(config: Config) -> Iterator[Mistake]:
    kinds = node_types(config)
    if config.get("head_node_type") not in kinds:
        return  # whose CPUs must be 0 is not known
    for name, kind in kinds.items():
        key = ("available_node_types", name, "resources")
        found = kind.get("resources")
        if name == config.get("head_node_type"):
            if get(found, "CPU") != 0:
                remedy = "set CPU: 0, or trials run on the head and its loss costs them too"
                yield Mistake((*key, "CPU"), "must be 0 on the head", remedy, get(found, "CPU"))
            if gpus := get(found, "GPU"):
                yield Mistake((*key, "GPU"), "must be 0 on the head", "remove it", gpus)
        elif not found or not found.get("CPU"):
            remedy = "state CPU (and GPU) of the machine: what fits is worked out from them"
            yield Mistake((*key, "CPU"), "is required for workers, but is not given", remedy)


def _node_configs(config: Config) -> Iterator[Mistake]:
    provider = config["provider"]["type"]
    schema = NODE_SCHEMAS[provider]()
    if schema is None:
        rule, remedy = "was not looked into", "pip install boto3 for that"
        yield Mistake(("available_node_types",), rule, remedy, serious=False)
        return
    for at, node, _ in _each(config):
        yield from by_schema(node, schema, at)


def _starts(config: Config) -> Iterator[Mistake]:
    """Both `ray start`: token, addresses, ports, the folder of the runs."""
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
        yield from _head_start(config, head)
    if len(starts) == 2:
        yield from _joining(starts["head"], starts["worker"])


def _secured(key: Key, variables: Mapping[str, str]) -> Iterator[Mistake]:
    """What every start of Ray needs in its environment."""
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


def _head_start(config: Config, head: Start) -> Iterator[Mistake]:
    key: Key = (START["head"],)
    yield from loopback(key, head.flags)
    if "head" not in head.flags:
        yield Mistake(key, "must start the head", "add --head to `ray start`")
    if "autoscaling-config" not in head.flags:
        remedy = "add --autoscaling-config=~/ray_bootstrap_config.yaml, or no worker is started"
        yield Mistake(key, "must name the configuration of the workers", remedy)
    if config["provider"]["type"] != "local":
        return
    if head.variables.get(_NEWER_AUTOSCALER) != "0":
        found = head.variables.get(_NEWER_AUTOSCALER, NOTHING)
        remedy = "export it there: Ray's newer autoscaler loses hosts of this provider"
        yield Mistake(key, f"must set {_NEWER_AUTOSCALER}=0 before `ray start`", remedy, found)
    if head.flags.get("num-cpus") != "0":
        found = head.flags.get("num-cpus", NOTHING)
        remedy = "add --num-cpus=0, or trials run on the head and its loss costs them too"
        yield Mistake(key, "must keep trials off the head", remedy, found)


def loopback(key: Key, flags: Mapping[str, str]) -> Iterator[Mistake]:
    """The head's dashboard must be for the head's own machine alone."""
    host = flags.get("dashboard-host", "127.0.0.1")
    if host not in ("127.0.0.1", "localhost"):
        remedy = "set it to 127.0.0.1; `ray dashboard` and `raymeta submit` tunnel to it"
        yield Mistake(key, "must bind the dashboard to loopback (--dashboard-host)", remedy, host)


def _ports(key: Key, flags: Mapping[str, str]) -> Iterator[Mistake]:
    taken: dict[str, str] = {}
    for name, port in flags.items():
        if name != "port" and not name.endswith("-port"):
            continue
        if not port.isdigit() or not 0 < int(port) < 65536:
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


def _files(config: Config) -> Iterator[Mistake]:
    """The files that Ray takes from this machine, by Ray's own reading of their paths."""
    if not get(config, "auth", "ssh_user"):
        remedy = "add the user that may log in to the nodes"
        yield Mistake(("auth", "ssh_user"), "is required, but is not given", remedy)
    for name in ("ssh_private_key", "ssh_public_key"):
        path = get(config, "auth", name)
        if isinstance(path, str):
            if PLACEHOLDER.search(path):
                rule, remedy = "is still to be filled in", "name the file of your ssh key"
                yield Mistake(("auth", name), rule, remedy, path, serious=False)
            elif not Path(path).expanduser().is_file():
                remedy = "name the file of your ssh key, or make one with ssh-keygen"
                yield Mistake(("auth", name), "must be a file that exists", remedy, path)
    for remote, local in get(config, "file_mounts", default={}).items():
        if isinstance(local, str) and not Path(local).expanduser().exists():
            remedy = "correct it (Ray looks from the folder in which `ray up` is run)"
            if local.endswith("auth_token"):
                remedy = "make the token: ray get-auth-token --generate"
            yield Mistake(("file_mounts", remote), "must be there on this machine", remedy, local)


def _images(config: Config) -> Iterator[Mistake]:
    for name in ("image", "head_image", "worker_image"):
        image = get(config, "docker", name)
        if isinstance(image, str) and not pinned(image):
            yield Mistake(("docker", name), *UNPINNED, image)


UNPINNED = (
    "must name a fixed version",
    "add a tag other than latest, or a digest: every node must run the same",
)


def pinned(image: str) -> bool:
    """Whether an image's name says which version of it is meant."""
    name, _, tag = image.rsplit("/", 1)[-1].partition(":")
    return "@sha256:" in name + tag or tag.split("@")[0] not in ("", "latest")


def _on_premises(config: Config) -> Iterator[Mistake]:
    if "available_node_types" in config:
        remedy = "remove it: the nodes are provider.head_ip and provider.worker_ips"
        yield Mistake(("available_node_types",), "is refused by Ray on your own hosts", remedy)
    hosts = get(config, "provider", "worker_ips", default=[])
    head = get(config, "provider", "head_ip")
    for host in sorted({h for h in hosts if hosts.count(h) > 1 or h == head}):
        key = ("provider", "worker_ips")
        yield Mistake(key, "must name each host once, and not the head", "remove it", host)
    fewest, most = config.get("min_workers"), config.get("max_workers")
    for name, count in (("min_workers", fewest), ("max_workers", most)):
        if count is not None and count > len(hosts):
            rule = f"must be <= the number of provider.worker_ips ({len(hosts)})"
            yield Mistake((name,), rule, "lower it, or add hosts", count)
    if fewest is not None and most is not None and fewest > most:
        rule = f"must be >= min_workers ({fewest})"
        yield Mistake(("max_workers",), rule, "raise it, or lower min_workers", most)


def _aws(config: Config) -> Iterator[Mistake]:
    own_key = get(config, "auth", "ssh_private_key") is not None
    for at, node, is_head in _each(config):
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
        if text in EVERYWHERE:
            yield Mistake(key, "must not be open to the world", "name your own address range", text)


_BROAD_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_BROAD_ACCOUNT = re.compile(
    r"ray-autoscaler-sa-v1@|-compute@developer\.gserviceaccount\.com|^default$"
)


def _gcp(config: Config) -> Iterator[Mistake]:
    for at, node, _ in _each(config):
        for number, account in enumerate(node.get("serviceAccounts") or []):
            key = (*at, "serviceAccounts", number)
            email = get(account, "email", default="default")
            if _BROAD_ACCOUNT.search(str(email)):
                remedy = "name an account of your own with the few roles that nodes need"
                yield Mistake((*key, "email"), "must not be a default account", remedy, email)
            if _BROAD_SCOPE in get(account, "scopes", default=[]):
                remedy = "name the scopes that are needed (compute on the head, storage)"
                yield Mistake((*key, "scopes"), "must be narrow", remedy, _BROAD_SCOPE)


def _azure(config: Config) -> Iterator[Mistake]:
    keys = [get(config, "auth", name) for name in ("ssh_private_key", "ssh_public_key")]
    if (keys[0] is None) != (keys[1] is None):
        name = "ssh_public_key" if keys[1] is None else "ssh_private_key"
        yield Mistake(("auth", name), "is required beside its other half", "add it, or remove both")
    for at, node, _ in _each(config):
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


def _left_behind(config: Config) -> Iterator[Mistake]:
    """Machines that `ray down` would stop, not delete: their disks are paid for on."""
    if get(config, "provider", "cache_stopped_nodes", default=config["provider"]["type"] != "gcp"):
        key = ("provider", "cache_stopped_nodes")
        remedy = "set it to false: stopped machines go on costing their disks"
        yield Mistake(key, "must be false", remedy, get(config, *key, default=NOTHING))


# Providers -> the rules for their files, each of which finds all that it can.
LAUNCHER_RULES: tuple[tuple[frozenset[str], Rule], ...] = (
    (frozenset(PROVIDER_KEYS), _provider_keys),
    (frozenset({"external"}), _one_machine),
    (CLOUDS | {"external"}, _head_and_counts),
    (CLOUDS | {"external"}, _resources),
    (CLOUDS, _node_configs),
    (OVER_SSH, _starts),
    (OVER_SSH, _files),
    (OVER_SSH, _images),
    (frozenset({"local"}), _on_premises),
    (frozenset({"aws"}), _aws),
    (frozenset({"gcp"}), _gcp),
    (frozenset({"azure"}), _azure),
    (CLOUDS, _left_behind),
)


def launcher_mistakes(config: Config) -> Iterator[Mistake]:
    """All that is wrong with a file of Ray's cluster launcher."""
    wrong = list(by_schema(config, launcher_schema()))
    yield from wrong
    provider = get(config, "provider", "type")
    if not isinstance(provider, str) or provider not in PROVIDER_KEYS:
        if isinstance(provider, str):
            rule = f"must be {', '.join(PROVIDER_KEYS)}{nearest(provider, PROVIDER_KEYS)}"
            yield Mistake(("provider", "type"), rule, "correct it", provider)
        return
    # The rules below may take types for granted: what has the wrong one is not there for them.
    told = {mistake.key for mistake in wrong}
    sound = without(config, {mistake.key for mistake in wrong if mistake.found is not NOTHING})
    for providers, rule_of in LAUNCHER_RULES:
        if provider in providers:
            yield from (m for m in rule_of(sound) if not told & set(prefixes(m.key)))


def prefixes(key: Key) -> Iterator[Key]:
    """A key and those that it is within."""
    return (key[:end] for end in range(1, len(key) + 1))


def without(data: Any, keys: set[Key], at: Key = ()) -> Any:
    """Nested data without the values under some keys."""
    if isinstance(data, dict):
        return {k: without(v, keys, (*at, k)) for k, v in data.items() if (*at, k) not in keys}
    if isinstance(data, list):
        return [
            None if (*at, n) in keys else without(v, keys, (*at, n)) for n, v in enumerate(data)
        ]
    return data
