"""Mistakes in cluster files: searching nested data for them, and reporting them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymeta.errors import ClusterError, shown

Key = tuple[str | int, ...]
Config = Mapping[str, Any]
NOTHING = object()  # the value of a key that is missing
PLACEHOLDER = re.compile(r"FILL_IN(_[A-Z0-9]+)*|<[A-Za-z][\w .-]*>")
_OPEN = "is still to be filled in"
_MEANT = re.compile(r"did you mean (.+)\?")


@dataclass(frozen=True)
class Mistake:
    """A value that breaks a rule: `key rule, but got found; remedy`."""

    key: Key
    rule: str
    remedy: str
    found: object = NOTHING
    serious: bool = True


def nearest(name: object, names: object) -> str:
    """Returns `; did you mean X?` if one of the names has a similar spelling."""
    known = [str(other) for other in names] if isinstance(names, Sequence | Mapping | set) else []
    matches = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def get(data: object, *keys: str | int, default: Any = None) -> Any:
    """Gets the value at nested keys, or a default if one is missing."""
    for key in keys:
        try:
            data = data[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return default
    return data


def leaves(data: object, at: Key = ()) -> Iterator[tuple[Key, object]]:
    """Yields every leaf value in nested data, with its key."""
    match data:
        case Mapping():
            for key, value in data.items():
                yield from leaves(value, (*at, key))
        case list():
            for number, value in enumerate(data):
                yield from leaves(value, (*at, number))
        case _:
            yield at, data


def scalars(data: object, at: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yields every text in nested data, with its key."""
    return ((key, value) for key, value in leaves(data, at) if isinstance(value, str))


def prefixes(key: Key) -> Iterator[Key]:
    """Yields a key and its enclosing keys."""
    return (key[:end] for end in range(1, len(key) + 1))


def without(data: Any, keys: set[Key], at: Key = ()) -> Any:
    """Copies nested data without the values at some keys."""
    if isinstance(data, dict):
        return {k: without(v, keys, (*at, k)) for k, v in data.items() if (*at, k) not in keys}
    if isinstance(data, list):
        return [
            None if (*at, n) in keys else without(v, keys, (*at, n)) for n, v in enumerate(data)
        ]
    return data


def dotted(key: Key) -> str:
    """Formats a key for messages: `workerGroupSpecs[0].template`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def unfilled(text: str, data: object, reported: set[str]) -> Iterator[Mistake]:
    """Yields each remaining placeholder once, with its meaning from the file's top comment.

    Args:
        text: of the file.
        data: its data, or those of one of its documents.
        reported: placeholders reported so far; those found here are added.
    """
    told_above = re.findall(r"^#\s+(FILL_IN\w*)\s+(.+(?:\n#\s{9,}.+)*)", text, flags=re.MULTILINE)
    meanings = {name: re.sub(r"\s*\n#\s*", " ", meaning) for name, meaning in told_above}
    for key, value in scalars(data):
        for match in PLACEHOLDER.finditer(value):
            if match[0] not in reported and key[:1] != ("auth",):
                reported.add(match[0])
                meaning = meanings.get(match[0], "what belongs there")
                yield Mistake(key, _OPEN, f"give {meaning}", match[0])


def report(
    path: Path, documents: Sequence[tuple[Mapping[Key, int], Sequence[Mistake], str]]
) -> tuple[str, ...]:
    """Returns the warnings about a file, sorted by line.

    Args:
        path: of the file.
        documents: for each, the line of every key, its mistakes, and a prefix for its keys.

    Raises:
        ClusterError: there are serious mistakes.
    """
    errors: list[str] = []
    warnings: list[str] = []
    for lines, mistakes, prefix in documents:
        for group in _groups(mistakes, lines):
            message = _message(path, group, _line(group[0], lines), prefix)
            (errors if group[0].serious else warnings).append(message)
    if errors:
        raise ClusterError("\n".join(dict.fromkeys(errors)))
    return tuple(warnings)


def _groups(mistakes: Sequence[Mistake], lines: Mapping[Key, int]) -> list[list[Mistake]]:
    """Sorts mistakes by line, drops those that follow from others, groups missing keys."""
    misspelt = {(*m.key[:-1], meant[1]) for m in mistakes if (meant := _MEANT.search(m.rule))}
    alike: dict[object, list[Mistake]] = {}
    for mistake in mistakes:
        if mistake.key in misspelt and mistake.found is NOTHING:
            continue  # the misspelt form is reported
        # A placeholder breaks other rules too, but is reported only once.
        found = "" if mistake.found is NOTHING else str(mistake.found)
        if mistake.rule != _OPEN and PLACEHOLDER.search(found):
            continue
        is_missing = mistake.found is NOTHING and not _line(mistake, lines)
        kind = (mistake.rule, mistake.remedy) if is_missing else id(mistake)
        alike.setdefault(kind, []).append(mistake)
    return sorted(alike.values(), key=lambda group: _line(group[0], lines) or math.inf)


def _message(path: Path, mistakes: list[Mistake], line: int, prefix: str = "") -> str:
    """Formats mistakes of one kind: `file, line N: key rule, but got value; remedy`."""
    first = mistakes[0]
    at = f", line {line}" if line else ""
    got = "" if first.found is NOTHING else f", but got {shown(first.found)}"
    keys = ", ".join(f"{prefix}{dotted(mistake.key)}" for mistake in mistakes)
    return f"{path}{at}: {keys} {first.rule}{got}; {first.remedy}"


def _line(mistake: Mistake, lines: Mapping[Key, int]) -> int:
    """Finds the line of a mistake's key or its nearest enclosing key; 0 if there is none."""
    near = (lines.get(mistake.key[:end]) for end in range(len(mistake.key), 0, -1))
    return next((number for number in near if number), 0)
