"""Files of Ray's cluster launcher: the rules for all of them, and how they are read.

Each rule is a small function that finds one kind of mistake: one that would open the cluster to
everybody, hang a search, or keep costing money.  `provider` combines rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from raymeta.deploy.files.cluster import Cluster, ClusterFile, NodeType, Provider
from raymeta.deploy.files.mistakes import (
    NOTHING,
    PLACEHOLDER,
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
from raymeta.deploy.files.ray_start import ray_start, start_rules
from raymeta.deploy.files.rules import RUNS_DIR, UNPINNED, pinned
from raymeta.deploy.files.schemas import Schema, by_schema, launcher_schema
from raymeta.errors import ClusterError

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
Rule = Callable[[Config], Iterator[Mistake]]


def node_types(config: Config) -> dict[str, dict[str, Any]]:
    """Gets a launcher file's node types that are mappings."""
    kinds = get(config, "available_node_types")
    found = kinds.items() if isinstance(kinds, dict) else ()
    return {name: kind for name, kind in found if isinstance(kind, dict)}


def node_configs(config: Config) -> Iterator[tuple[Key, dict[str, Any], bool]]:
    """Yields each node type's node_config: its key, its data, and whether it is the head's."""
    for name, kind in node_types(config).items():
        node = kind.get("node_config")
        if isinstance(node, dict):
            at = ("available_node_types", name, "node_config")
            yield at, node, name == config.get("head_node_type")


def _provider_keys(
    needed: tuple[str, ...], optional: tuple[str, ...], config: Config
) -> Iterator[Mistake]:
    """Checks the keys of the `provider` section, which Ray's schema does not."""
    provider = config["provider"]
    known = (*_EVERY_PROVIDER, *needed, *optional)
    for name in provider:
        if name not in known:
            rule = f"is not a key that Ray's provider reads{nearest(name, known)}"
            yield Mistake(("provider", name), rule, "correct or remove it")
    for name in needed:
        if provider.get(name) in (None, "", []):
            yield Mistake(("provider", name), "is required, but is not given", "add it")


def head_and_counts(config: Config) -> Iterator[Mistake]:
    """Finds mistakes about the head's node type and the worker counts."""
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


def stated_resources(config: Config) -> Iterator[Mistake]:
    """Finds node types without resources, which decide how many trials fit."""
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


def _machines(schema: Schema | None, config: Config) -> Iterator[Mistake]:
    """Checks each node_config by the cloud's own schema, if it is installed."""
    if schema is None:
        rule, remedy = "was not looked into", "pip install boto3 for that"
        yield Mistake(("available_node_types",), rule, remedy, serious=False)
        return
    for at, node, _ in node_configs(config):
        yield from by_schema(node, schema, at)


def local_files(config: Config) -> Iterator[Mistake]:
    """Finds missing or private files that Ray would copy from this machine."""
    if not get(config, "auth", "ssh_user"):
        remedy = "add the user that may log in to the nodes"
        yield Mistake(("auth", "ssh_user"), "is required, but is not given", remedy)
    for name in ("ssh_private_key", "ssh_public_key"):
        path = get(config, "auth", name)
        if isinstance(path, str):
            if PLACEHOLDER.search(path):
                rule, remedy = "is still to be filled in", "name the file of your ssh key"
                yield Mistake(("auth", name), rule, remedy, path, serious=False)
            elif not _own(path, os.path.isfile):
                remedy = "name the file of your ssh key, or make one with ssh-keygen"
                yield Mistake(("auth", name), "must be a file that exists", remedy, path)
    for remote, local in get(config, "file_mounts", default={}).items():
        if not isinstance(local, str):
            remedy = "name a file or a folder of this machine"
            yield Mistake(("file_mounts", remote), "must be a path", remedy, local)
        elif not _own(local, os.path.exists):
            remedy = "correct it (Ray looks from the folder in which `ray up` is run)"
            if local.endswith("auth_token"):
                remedy = "make the token: ray get-auth-token --generate"
            yield Mistake(("file_mounts", remote), "must be there on this machine", remedy, local)


def _own(path: str, test: Callable[[str], bool]) -> bool:
    """Tests a path on this machine as Ray resolves it; False for an impossible path."""
    return test(os.path.expanduser(path))  # noqa: PTH111  (the `~` of an unknown user stays)


def images(config: Config) -> Iterator[Mistake]:
    """Refuses Docker images without a version."""
    for name in ("image", "head_image", "worker_image"):
        image = get(config, "docker", name)
        if isinstance(image, str) and not pinned(image):
            yield Mistake(("docker", name), *UNPINNED, image)


def left_behind(by_default: bool, config: Config) -> Iterator[Mistake]:
    """Refuses machines that `ray down` only stops: their disks keep costing money."""
    if get(config, "provider", "cache_stopped_nodes", default=by_default):
        key = ("provider", "cache_stopped_nodes")
        remedy = "set it to false: stopped machines go on costing their disks"
        yield Mistake(key, "must be false", remedy, get(config, *key, default=NOTHING))


def cloud_rules(*, keeps_stopped_machines: bool = True) -> tuple[Rule, ...]:
    """Returns the rules for every cloud; the argument is Ray's default for that cloud."""
    return (
        head_and_counts,
        stated_resources,
        *SSH_RULES,
        partial(left_behind, keeps_stopped_machines),
    )


# For every provider whose nodes the launcher reaches by ssh.
SSH_RULES: tuple[Rule, ...] = (start_rules, local_files, images)


def provider(
    name: str,
    *,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    rules: tuple[Rule, ...],
    nodes: Callable[[Config], Iterator[NodeType]],
    machine: Callable[[], Schema | None] | None = None,
    ends_by: str | None = None,
    stops_workers: bool = False,
) -> Provider:
    """Makes a provider of Ray's cluster launcher.

    Args:
        name: its `provider.type`.
        needed: the keys that its `provider` section must have.
        optional: those that it may have, besides the keys of every provider.
        rules: for its files; each finds all that it can.
        nodes: extracts the node types of a file without mistakes.
        machine: gets the cloud's own schema of a machine; None if it is not installed.
        ends_by: see `Provider`.
        stops_workers: see `Provider`.
    """
    every: tuple[Rule, ...] = (partial(_provider_keys, needed, optional), *rules)

    def read(file: ClusterFile) -> Cluster:
        (document,) = file.documents
        config = document.data
        mistakes = [
            *document.mistakes,
            *unfilled(file.text, config, set()),
            *_mistakes(config, every, machine),
        ]
        warnings = report(file.path, [(document.lines, mistakes, "")])
        _ask_ray(file.path, config)
        start = ray_start(config, "head")
        runs_dir = start.variables.get(RUNS_DIR) if start else None
        return Cluster(file.path, name, tuple(nodes(config)), runs_dir, warnings)

    def serves(file: ClusterFile) -> bool:
        return len(file.documents) == 1 and get(file.documents[0].data, "provider", "type") == name

    return Provider(
        name,
        serves,
        read,
        is_launched=True,
        has_tunnel=ends_by is None,
        ends_by=ends_by,
        stops_workers=stops_workers,
    )


def refuse(file: ClusterFile, names: Sequence[str]) -> NoReturn:
    """Refuses a file whose provider is not among `names`.

    Raises:
        ClusterError: always.
    """
    data = [document.data for document in file.documents]
    if len(data) != 1 or not isinstance(data[0], dict):
        raise ClusterError(f"{file.path}: expected one mapping of keys; see cluster/README.md")
    mistakes = [*file.documents[0].mistakes, *by_schema(data[0], launcher_schema())]
    found = get(data[0], "provider", "type")
    if isinstance(found, str):
        rule = f"must be {', '.join(names)}{nearest(found, names)}"
        mistakes.append(Mistake(("provider", "type"), rule, "correct it", found))
    report(file.path, [(file.documents[0].lines, mistakes, "")])
    raise ClusterError(f"{file.path}: provider.type must be {', '.join(names)}; correct it")


def _mistakes(
    config: Config, rules: tuple[Rule, ...], machine: Callable[[], Schema | None] | None
) -> Iterator[Mistake]:
    wrong = list(by_schema(config, launcher_schema()))
    if machine is not None:
        wrong += _machines(machine(), config)
    yield from wrong
    # Rules rely on types, so they do not see values of wrong types.
    reported = {mistake.key for mistake in wrong if mistake.serious}
    sound = without(config, {m.key for m in wrong if m.found is not NOTHING})
    for rule in rules:
        yield from (m for m in rule(sound) if not reported & set(prefixes(m.key)))


def _ask_ray(path: Path, config: dict[str, Any]) -> None:
    """Lets Ray itself validate a file in which no rule found a mistake."""
    from click import ClickException  # noqa: PLC0415
    from jsonschema import ValidationError  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    try:
        validate_config(prepare_config(config))
    except (
        *(ClickException, ValidationError, ValueError, RuntimeError, AssertionError),
        *(AttributeError, LookupError, OSError, TypeError),  # Ray takes types for granted
    ) as error:
        reason = getattr(error, "message", None) or str(error)
        raise ClusterError(f"{path}: Ray refuses it: {reason}; correct what it names") from None


def typed_nodes(is_spot: Callable[[Mapping[str, Any]], bool], config: Config) -> Iterator[NodeType]:
    """Converts the file's node types; `is_spot` inspects a node_config."""
    limit = config.get("max_workers", 0)
    for name, kind in node_types(config).items():
        is_head = name == config["head_node_type"]
        yield NodeType(
            name=name,
            resources={key: float(value) for key, value in kind["resources"].items()},
            min_workers=kind.get("min_workers", 0),
            max_workers=min(kind.get("max_workers", 0 if is_head else limit), limit),
            is_head=is_head,
            is_spot=is_spot(kind.get("node_config", {})),
        )
