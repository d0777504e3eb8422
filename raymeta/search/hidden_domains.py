"""Domains of Ray Tune within constants, where nothing would search them.

Trainables would get the domain objects themselves.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from types import ModuleType
from typing import Any

from ray.tune.search import sample

from raymeta.errors import SearchError

# Tune hides functions and objects of a `param_space` behind these marks (tune/impl/placeholder.py).
_FUNCTION_MARK, _OBJECT_MARK = "__fn_ph", "__ref_ph"
_PLAIN_TYPES = (str, bytes, bool, int, float, ModuleType)  # types without domains


def has_domain(value: Any) -> bool:
    """Whether a value is a domain or holds one."""
    return any(True for _ in _hidden_domains("", value))


def marks(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the hashes of marks that stand for objects within a constant, with their places."""
    return ((where, held[1]) for where, held in _objects(place, value) if is_mark(held))


def refuse_hidden_domains(name: str, value: Any) -> None:
    """Refuses a constant that holds domains: trainables would get the domain objects.

    Raises:
        SearchError: naming the place of the first.
    """
    for place, domain in _hidden_domains(name, value):
        if isinstance(domain, sample.Function):
            raise SearchError(
                f"{place}: tune.sample_from has no bounds and cannot be searched; compute the "
                "value in the trainable"
            )
        kind, key = type(value).__name__, name.rsplit("/", maxsplit=1)[-1]
        raise SearchError(
            f"{place}: a {type(domain).__name__} domain within a {kind} cannot be searched; give "
            f"each searched value a key of its own in a dictionary, such as {{'{key}': {{'first': "
            f"tune.uniform(0, 1)}}}}, and build the {kind} in the trainable"
        )


def _hidden_domains(place: str, value: Any) -> Iterator[tuple[str, sample.Domain]]:
    """Yields the domains within a value, with the place of each."""
    for where, held in _objects(place, value):
        if isinstance(held, sample.Domain):
            yield where, held
        elif isinstance(held, tuple) and len(held) == 2 and held[0] == _FUNCTION_MARK:
            yield where, sample.Function(lambda: None)
        elif isinstance(held, Mapping) and set(held) in ({"grid_search"}, {"eval"}):
            yield where, sample.Domain()


def _objects(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a value and all objects within it, each once, with places; skips numbers and texts."""
    seen: dict[int, Any] = {}  # keeps the objects alive, so that ids stay unique
    rest = [(place, value)]
    while rest:
        where, held = rest.pop()
        if isinstance(held, _PLAIN_TYPES) or id(held) in seen:
            continue
        seen[id(held)] = held
        yield where, held
        if not (isinstance(held, sample.Domain) or is_mark(held)):
            rest += reversed([(f"{where}{step}", inner) for step, inner in _parts(held)])


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a value's parts, each with its path from the value."""
    if isinstance(value, Mapping):
        yield from ((f"/{key}", inner) for key, inner in value.items())
        yield from ((f"[key {number}]", key) for number, key in enumerate(value))
    elif isinstance(value, list | tuple | set | frozenset | deque | ValuesView | ItemsView):
        yield from ((f"[{number}]", inner) for number, inner in enumerate(value))
    elif getattr(getattr(value, "dtype", None), "kind", "") == "O":  # an array of objects
        yield from ((f"[{number}]", inner) for number, inner in enumerate(value.ravel().tolist()))
    elif isinstance(value, functools.partial):
        yield from ((f"({number})", inner) for number, inner in enumerate(value.args))
        yield from ((f"({name}=)", inner) for name, inner in value.keywords.items())
    elif isinstance(value, type):  # a class may serve as a record, too
        yield from _attributes(value)
    else:
        yield from ((f".{name}", inner) for name, inner in getattr(value, "__dict__", {}).items())
        yield from _attributes(type(value))
        slots = [name for kind in type(value).__mro__ for name in _names_of_slots(kind)]
        held = ((name, getattr(value, name)) for name in slots if hasattr(value, name))
        yield from ((f".{name}", inner) for name, inner in held)


def _attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """Yields the attributes of a class and its bases that are domains."""
    for base in kind.__mro__:
        for name, held in vars(base).items():
            if isinstance(held, sample.Domain):
                yield f".{name}", held


def _names_of_slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def is_mark(value: Any) -> bool:
    """Whether a value is Tune's mark for an object."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] == _OBJECT_MARK
