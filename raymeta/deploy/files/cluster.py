"""The contents of a cluster file, and the interface of a kind of cluster (a provider)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from raymeta.deploy.files.mistakes import Key, Mistake, leaves
from raymeta.errors import ClusterError
from raymeta.experiment import yaml_lines


@dataclass(frozen=True)
class NodeType:
    """A type of node, and how many there may be.

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
    """The contents of a cluster file; `runs_dir` is its value of RAYMETA_RUNS_DIR."""

    path: Path
    provider: str
    nodes: tuple[NodeType, ...]
    runs_dir: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A YAML document with text keys, the line of each key, and its general mistakes."""

    data: Any
    lines: Mapping[Key, int]
    mistakes: list[Mistake]


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file as it was read; `crds` is a folder with KubeRay's definitions, if given."""

    path: Path
    text: str
    crds: Path | None = None

    @cached_property
    def documents(self) -> list[Document]:
        """The file's YAML documents without empty ones.

        Raises:
            ClusterError: it is not valid YAML.
        """
        return yaml_documents(self.path, self.text)


@dataclass(frozen=True)
class Provider:
    """A kind of cluster: a module defines one and `raymeta.deploy.files.load.PROVIDERS` lists it.

    Attributes:
        name: used in messages and as `Cluster.provider`.
        serves: tells whether a file describes such a cluster.
        read: reads and checks such a file; raises a ClusterError with all mistakes.
        is_launched: whether Ray's launcher reads its files; `name` is then `provider.type`.
        has_tunnel: whether `ray dashboard FILE` opens a tunnel to its head.
        ends_by: the command that ends it, with `{path}` for the file; None for `ray down`.
        stops_workers: whether its machines remain, so that Ray must be stopped on each.
    """

    name: str
    serves: Callable[[ClusterFile], bool]
    read: Callable[[ClusterFile], Cluster]
    is_launched: bool = False
    has_tunnel: bool = False
    ends_by: str | None = None
    stops_workers: bool = False


def yaml_documents(path: Path, text: str, *, large: bool = False) -> list[Document]:
    """Parses the documents of a YAML file, without empty ones.

    Raises:
        ClusterError: it is not valid YAML.
    """
    try:
        documents = yaml_lines.read_documents(text, large=large)
    except yaml_lines.YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise ClusterError(f"{path}{line}: not valid YAML: {error}") from None
    found = []
    for document in documents:
        if document.data is None:
            continue
        data = _with_text_keys(document.data)
        repeated = [Mistake(key, "is given twice", "remove one") for key in document.repeated]
        found.append(Document(data, document.lines, [*repeated, *_values_of_no_use(data)]))
    return found


def read_text(path: Path, max_characters: int = yaml_lines.MAX_CHARACTERS) -> str:
    """Reads a file's text.

    Raises:
        ClusterError: it cannot be read.
    """
    try:
        return yaml_lines.read_file(path, max_characters)
    except (OSError, ValueError) as error:  # ValueError: no text, or no path
        reason = getattr(error, "strerror", None) or str(error)
        raise ClusterError(f"{path}: cannot be read: {reason}") from None


def _with_text_keys(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _with_text_keys(value) for key, value in data.items()}
    return [_with_text_keys(value) for value in data] if isinstance(data, list) else data


def _values_of_no_use(data: object) -> Iterator[Mistake]:
    """Finds numbers and dates that rules cannot compare or compute with."""
    for key, value in leaves(data):
        if isinstance(value, float) and not math.isfinite(value):
            yield Mistake(key, "must be a finite number", "correct it", value)
        elif isinstance(value, int) and value.bit_length() > 64:
            yield Mistake(key, "must be a number of at most 64 bits", "correct it", value)
        elif isinstance(value, date):
            yield Mistake(key, "must not be a date", "put it in quotes", str(value))
