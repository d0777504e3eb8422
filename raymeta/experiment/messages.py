"""Words the errors of experiments: key, rule, value, place, and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raymeta.errors import shown
from raymeta.experiment.schema import Experiment
from raymeta.tasks.base_settings import SETTINGS

# Dotted key -> "file, line N" or "--set".
Places = dict[str, str]
_MAX_LINES = 20  # of one message
_MAX_KEY = 200  # characters; the schema has none as long
_SCALARS = ("bool", "int", "float", "str")
# The forms of `tasks.target` by pydantic's names -> the key of a section.
_TARGETS = {"str": None, "NumberTarget": "number", "RemainingLife": "rul"}
_TARGET_FORMS = "{number: COLUMN} or {rul: TIME, cap: N}"


def messages(error: ValidationError, places: Places) -> str:
    """Formats pydantic's findings, one line each, up to a limit."""
    found = _of_meant_target(error.errors(include_url=False))
    lines = list(dict.fromkeys(message(one, places) for one in found[:_MAX_LINES]))
    if len(found) > _MAX_LINES:
        lines.append(f"... and {len(found) - _MAX_LINES} more")
    return "\n".join(lines)


def message(error: ErrorDetails, places: Places) -> str:
    """Formats one of pydantic's findings as `key rule, but got value (file, line)`."""
    parts = [str(part) for part in error["loc"]]
    if error["type"].endswith("_type") and parts[-1] in _SCALARS and parts[-2].isdigit():
        *parts, _ = parts  # pydantic tries the types of a union in turn
        key = ".".join(parts)
        return f"{key} must be a number, a word, true or false{_but_got(error['input'])}" + place(
            key, places
        )
    key = ".".join(parts)
    at = place(key, places)
    if len(key) > _MAX_KEY:
        return f"{shown(key)}: no such key{at}"
    got, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: no such key{at}{nearest(key)}"
        case "invalid_key":
            rule = "be a string"
        case "too_short":
            rule = f"have at least {context['min_length']} items"
        case "missing":
            return f"{key} is required, but is not given{at}"
        case "value_error":
            return f"{key or 'experiment'}: {context['error']}{at}"
        case "union_tag_not_found":
            return f"tasks.source is required: one of {', '.join(sorted(SETTINGS))}{at}"
        case "union_tag_invalid":
            at = place("tasks.source", places)
            key, got, rule = (
                "tasks.source",
                context["tag"],
                f"be one of {', '.join(sorted(SETTINGS))}",
            )
        case "literal_error":
            rule = f"be {context['expected']}"
        case "greater_than":
            rule = f"be > {_number(context['gt'])}"
        case "greater_than_equal":
            rule = f"be >= {_number(context['ge'])}"
        case "less_than":
            rule = f"be < {_number(context['lt'])}"
        case "less_than_equal":
            rule = f"be <= {_number(context['le'])}"
        case "model_type" | "model_attributes_type" | "dict_type":
            rule = "be a section of keys"
        case _:
            rule = error["msg"].split(" should ", 1)[-1]
    return f"{key} must {rule}{_but_got(got)}{at}"


def _of_meant_target(found: list[ErrorDetails]) -> list[ErrorDetails]:
    """Keeps the errors of the form of `tasks.target` that was meant; pydantic tries all in turn."""
    kept: list[ErrorDetails] = []
    values = [one["input"] for one in found if one["loc"][-2:] == ("target", "str")]
    keys = values[0] if values and isinstance(values[0], dict) else {}
    meant = next((form for form, key in _TARGETS.items() if key in keys), "str")
    for one in found:
        loc = one["loc"]
        at = loc.index("target") + 1 if "target" in loc else len(loc)
        if not values or at == len(loc) or loc[at] not in _TARGETS:
            kept.append(one)
        elif loc[at] == meant:
            own: ErrorDetails = {**one, "loc": loc[:at] + loc[at + 1 :]}
            if meant == "str":
                own["msg"] = f"it should be a column, {_TARGET_FORMS}"
            kept.append(own)
    return kept


def _but_got(value: object) -> str:
    return f", but got {shown(value)}"


def _number(bound: float) -> str:
    return f"{bound:g}" if abs(bound) < 1e6 else str(bound)


def place(key: str, places: Places) -> str:
    """The place of a key, or of the nearest section around it, in brackets."""
    return next((f" ({places[p]})" for p in prefixes(key) if p in places), "")


def prefixes(key: str) -> Iterator[str]:
    """A dotted key and its enclosing sections, the key first."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def nearest(key: str) -> str:
    """Guesses the key that was meant: a similar spelling, or the same name in another section."""
    others = [name for name in _schema_keys() if name != key]
    matches = difflib.get_close_matches(key, others, n=1, cutoff=0.7)
    if not matches:
        leaf = key.rsplit(".", 1)[-1]
        leaves = {name.rsplit(".", 1)[-1]: name for name in others}
        matches = [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f"; did you mean {matches[0]}?" if matches else ""


def _schema_keys() -> list[str]:
    """Every dotted key of the schema, those of all sources of tasks included."""
    found = set(_keys_within(Experiment, ""))
    for settings in SETTINGS.values():
        found |= set(_keys_within(settings, "tasks."))
    return sorted(found)


def _keys_within(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for member in get_args(field.annotation) or (field.annotation,):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from _keys_within(member, f"{prefix}{name}.")
