"""Reads YAML: a safe subset, bounded in size, with the line of every key.

Files may come from strangers.  A few hundred bytes of nested aliases can stand for billions of
values, so the expanded size is bounded before any data are built.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from raymeta.errors import shown
from raymeta.storage.paths import AnyPath, RemotePath

Key = tuple[str | int, ...]

MAX_CHARACTERS = 250_000  # of a file
_MAX_NUMBER = 400  # characters
_MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|.*:.*")  # of numbers
_PLAIN_TAGS = tuple(_TAG + name for name in ("null", "bool", "int", "float"))


class YamlError(ValueError):
    """Invalid or too large YAML; `line` is set where it is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass
class Document:
    """A YAML document: its data, the lines of its keys and items, and the duplicate keys.

    `other_bases` holds the source text of numbers that YAML 1.1 reads in base 8 (`010` is 8) or 60
    (`1:30` is 90).
    """

    data: Any = None
    line: int = 1
    lines: dict[Key, int] = field(default_factory=dict)
    repeated: list[Key] = field(default_factory=list)
    other_bases: dict[Key, str] = field(default_factory=dict)


def read_file(path: AnyPath, max_characters: int = MAX_CHARACTERS) -> str:
    """Reads a file's text without its byte order mark.

    Raises:
        YamlError: it is too large, or no UTF-8 text.
        OSError: it cannot be read, or is not a regular file.
        ValueError: there can be no such path.
    """
    limit = 4 * max_characters  # bytes
    if isinstance(path, RemotePath):
        content = path.read_bytes() if path.stat().st_size <= limit else b" " * (limit + 1)
    else:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(22, "Not a regular file", str(path))
        with path.open("rb") as file:
            content = file.read(limit + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise YamlError("not UTF-8 text") from None
    if len(text) > max_characters:
        raise YamlError(f"more than {max_characters} characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(text: str, *, large: bool = False) -> list[Document]:
    """Parses all documents of a YAML text.

    Args:
        text: of a file, or of a value.
        large: allows a hundred times as many values, for KubeRay's definitions.

    Raises:
        YamlError: it is not valid YAML, has a tag that is not read, or stands for too much.
    """
    loader: Any = None
    try:
        loader = (_LargeLoader if large else _Loader)(text)
        documents = []
        while loader.check_node():
            document = Document(line=loader.peek_event().start_mark.line + 1)
            node = loader.get_node()
            if node is not None:
                document.data = _value(loader, node, (), document)
            documents.append(document)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, str) else chr(error.character)
        raise YamlError(f"the character {character!r} is not allowed", line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlError(error.problem or "", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None
    finally:
        if loader is not None:
            loader.dispose()
    return documents


def read_document(text: str) -> Document:
    """Parses the only document of a YAML text; an empty one if there is none.

    Raises:
        YamlError: as `read_documents`, or there are several.
    """
    documents = read_documents(text)
    if len(documents) > 1:
        raise YamlError("expected one document, but found another document", documents[1].line)
    return documents[0] if documents else Document()


def write(data: Any) -> str:
    """Writes plain data as YAML that `read_documents` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Bounded(yaml.composer.Composer):
    """Composes nodes and counts their expanded size, aliases included."""

    max_values: ClassVar[int]
    max_characters: ClassVar[int]

    def compose_node(self: Any, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if parent is None:
            self._depth, self._total, self._sizes = 0, (0, 0), {}
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:  # the node around this alias
                raise _problem("an alias holds itself", event)
            self._count(*self._sizes[id(node)], event)
            return node
        _check_tag(self, event)
        before = self._total
        self._count(1, len(getattr(event, "value", "")), event)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _problem(f"nested more than {_MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = tuple(a - b for a, b in zip(self._total, before, strict=True))
        return node

    def _count(self: Any, values: int, characters: int, event: yaml.Event) -> None:
        self._total = (self._total[0] + values, self._total[1] + characters)
        if self._total[0] > self.max_values:
            raise _problem(f"more than {self.max_values} values, aliases included", event)
        if self._total[1] > self.max_characters:
            raise _problem(f"more than {self.max_characters} characters, aliases included", event)


class _Loader(_Bounded, yaml.SafeLoader):
    """Loads YAML's safe subset; reads 1e-3 as a number (YAML 1.1 wants 1.0e-3)."""

    max_values, max_characters = 10_000, MAX_CHARACTERS


_QuickLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _LargeLoader(_Bounded, _QuickLoader):
    """Loads files of a million characters, in C where PyYAML has it."""

    max_values, max_characters = 1_000_000, 10_000_000

    def __init__(self, text: str) -> None:
        _QuickLoader.__init__(self, text)
        yaml.composer.Composer.__init__(self)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a name such as 1e5 goes in quotes."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        f"{_TAG}float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _problem(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _check_tag(loader: Any, event: yaml.Event) -> None:
    """Refuses explicit tags, except `!!str` and those that match the value's implicit type."""
    tag = getattr(event, "tag", None)
    if tag in (None, "!"):
        return
    match event:
        case yaml.ScalarEvent():
            known = tag == f"{_TAG}str" or (
                tag in _PLAIN_TAGS
                and tag == loader.resolve(yaml.ScalarNode, event.value, (True, False))
            )
        case yaml.MappingStartEvent():
            known = tag == f"{_TAG}map"
        case _:
            known = tag == f"{_TAG}seq"
    if not known:
        name = tag.replace(_TAG, "!!")
        raise _problem(f"the tag {shown(name)} does not fit or is not read; remove it", event)


def _value(loader: Any, node: yaml.Node, at: Key, document: Document) -> Any:
    """Builds a node's data; records the line of every key and the duplicate keys."""
    if isinstance(node, yaml.SequenceNode):
        items = []
        for number, item in enumerate(node.value):
            document.lines[*at, number] = item.start_mark.line + 1
            items.append(_value(loader, item, (*at, number), document))
        return items
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, at, document)
    if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(node.value) > _MAX_NUMBER:
        raise _problem(f"a number of {len(node.value)} characters", node)
    if node.tag in (f"{_TAG}int", f"{_TAG}float") and _OTHER_BASE.fullmatch(node.value):
        document.other_bases[at] = node.value
    try:
        return loader.construct_object(node)
    except ValueError as error:  # a date that does not exist
        raise _problem(str(error), node) from None


def _mapping(loader: Any, node: yaml.MappingNode, at: Key, document: Document) -> dict[Any, Any]:
    data: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    names: set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem("found unhashable key", key_node)
        name = str(key_node.value)
        if key_node.tag == f"{_TAG}merge":
            inner = Document()  # whose keys are told where the anchor has them
            for mapping in _merge_sources(value_node):
                merged = _mapping(loader, mapping, at, inner) | merged
            document.lines = inner.lines | document.lines
            document.repeated += inner.repeated
            continue
        key = _value(loader, key_node, at, document)
        document.lines[*at, name] = key_node.start_mark.line + 1
        if name in names or key in data:
            document.repeated.append((*at, name))
        names.add(name)
        data[key] = _value(loader, value_node, (*at, name), document)
    return merged | data


def _merge_sources(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yields the mappings that `<<` merges; earlier ones take precedence."""
    for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(source, yaml.MappingNode):
            raise _problem("expected a mapping or a list of mappings to merge", source)
        yield source
