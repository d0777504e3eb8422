"""Experiment files: reading, overriding, checking, and saying where in the file an error is.

This module alone reads and writes YAML.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raymeta.errors import ExperimentError
from raymeta.experiment import Dimension, Experiment, Tasks
from raymeta.remote import path_at

SEARCHABLE_SECTIONS = ("tasks", "model", "maml", "training")
# Trials that differ in these have different problems or budgets: their metrics cannot be compared.
FIXED_KEYS = frozenset(
    f"tasks.{key}"
    for key in (
        "source",
        "num_ways",
        "num_shots",
        "num_queries",
        "split_seed",
        "test_domain",
        "data_dir",
    )
) | {
    f"training.{key}"
    for key in (
        "pretrain_steps",
        "meta_steps",
        "meta_batch_size",
        "eval_every",
        "val_episodes",
        "max_skipped",
    )
}

# Dotted key -> "file, line N" or "--set".
Places = dict[str, str]


def shipped_experiments() -> list[str]:
    """Names of the experiment files that come with raymeta."""
    folder = resources.files("raymeta.experiments")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_experiment(source: str, overrides: Sequence[str] = ()) -> Experiment:
    """Reads and checks an experiment.

    Args:
        source: the name of a shipped experiment (`pen`) or the path of a YAML file.  A file may
            build on another by `base: NAME_OR_PATH`, and then holds only what differs.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        ExperimentError: naming key, rule, value and line of everything that is wrong.
    """
    places: Places = {}
    data = _read(source, places, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ExperimentError(f"--set takes KEY=VALUE, but got {override!r}")
        try:
            value = yaml.load(text, _Loader)  # noqa: S506  (a safe loader)
            list(
                _lines(yaml.compose(text, _Loader), "--set", f"{key}.")
            )  # refuses a key given twice
        except ExperimentError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
            raise ExperimentError(f"--set {override}: the value is not valid YAML") from None
        _replace(data, key, value)
        places = {known: at for known, at in places.items() if not known.startswith(f"{key}.")}
        places |= dict.fromkeys(_prefixes(key), "--set")
    return _validated(data, places)


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with the dotted keys of `values` replaced, checked anew.

    Raises:
        ExperimentError: a key does not exist or a value breaks a rule.
    """
    data = experiment.model_dump()
    for key, value in values.items():
        _replace(data, key, value)
    return _validated(data, {})


def to_yaml(experiment: Experiment) -> str:
    """The whole experiment, defaults included, as a file that `load_experiment` reads."""
    data = experiment.model_dump()
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3)."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a name such as 1e5 goes in quotes."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _read(source: str, places: Places, seen: tuple[str, ...]) -> dict[str, Any]:
    """The merged mapping of a file and its bases; fills `places` with the line of every key."""
    names = shipped_experiments()
    path = path_at(source)
    if source in names:
        path = Path(str(resources.files("raymeta.experiments") / f"{source}.yaml"))
    place = str(path.resolve())
    if place in seen:
        raise ExperimentError(f"base: {' -> '.join([*seen, place])} never ends; remove one")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no text, or no path
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        hint = difflib.get_close_matches(source, names, n=1)
        raise ExperimentError(
            f"experiment {source!r} is neither a readable file ({reason}) nor one of the shipped "
            f"ones: {', '.join(names)}" + (f". Did you mean {hint[0]}?" if hint else "")
        ) from None
    try:
        data = yaml.load(text, _Loader)  # noqa: S506  (a safe loader)
        own_places = dict(_lines(yaml.compose(text, _Loader), path.name, ""))
    except RecursionError:
        raise ExperimentError(f"{path.name}: nested too deeply, or an alias holds itself") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        if isinstance(error, ExperimentError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ExperimentError(f"{path.name}{line}: not valid YAML: {problem}") from None
    if not isinstance(data, dict):
        raise ExperimentError(f"{path.name}: expected a mapping of sections, but got {data!r:.60}")
    # A section's name with nothing under it leaves the section as it is.
    data = {key: value for key, value in data.items() if value is not None}
    base = data.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            at = _place("base", own_places)
            raise ExperimentError(f"base must be a name or a path, but got {base!r}{at}")
        beside = path.parent / base
        parent = str(beside) if beside.is_file() else base
        inherited = _read(parent, places, (*seen, place))
        # A space is one thing: a file that gives one replaces the inherited one.
        own, other = data.get("search"), inherited.get("search")
        if isinstance(own, dict) and "space" in own and isinstance(other, dict):
            other.pop("space", None)
        data = _merged(inherited, data)
    places.update(own_places)
    return data


def _lines(node: yaml.Node | None, file: str, prefix: str) -> Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        dotted = f"{prefix}{key.value}"
        if key.value in seen:
            raise ExperimentError(f"{dotted} is given twice ({file}, line {line}); remove one")
        seen.add(key.value)
        yield dotted, f"{file}, line {line}"
        yield from _lines(value, file, f"{dotted}.")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _replace(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, whether or not the schema knows it: validation will say."""
    *sections, leaf = key.split(".")
    if key.startswith("search.space."):  # the keys of the space contain dots themselves
        sections, leaf = ["search", "space"], key.removeprefix("search.space.")
    node = data
    for part in sections:
        if not isinstance(node.setdefault(part, {}), dict):
            node[part] = {}
        node = node[part]
    node[leaf] = value


def _validated(data: Mapping[str, Any], places: Places) -> Experiment:
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        raise ExperimentError("\n".join(_message(e, places) for e in error.errors())) from None
    for key, dimension in experiment.search.space.items():
        _check_dimension(experiment, key, dimension, places)
    return experiment


def _check_dimension(
    experiment: Experiment, key: str, dimension: Dimension, places: Places
) -> None:
    """A searched key exists in this file, and the ends of its range are values it takes."""
    where = f"search.space.{key}"
    at = _place(where, places)
    try:
        current = experiment.value(key)
    except KeyError:
        raise ExperimentError(f"{where}: no such key{at}{_nearest(key)}") from None
    if key.split(".", maxsplit=1)[0] not in SEARCHABLE_SECTIONS or isinstance(current, BaseModel):
        raise ExperimentError(
            f"{where}: only single values of {', '.join(SEARCHABLE_SECTIONS)} can be searched{at}"
        )
    if key in FIXED_KEYS:
        raise ExperimentError(
            f"{where}: cannot be searched, since trials that differ in it cannot be compared; set "
            f"{key} itself{at}"
        )
    for value in dimension.ends:
        trial = experiment.model_dump()
        trial["search"]["space"] = {}
        _replace(trial, key, _as_integer(value))
        try:
            Experiment.model_validate(trial)
        except ValidationError as error:
            reason = _message(error.errors()[0], {})
            raise ExperimentError(f"{where}: {value!r} is not allowed{at}: {reason}") from None
    if experiment.is_integer(key) and not dimension.choices:
        parts = [dimension.low, dimension.high, dimension.step or 1]
        if not all(isinstance(_as_integer(part), int) for part in parts):
            raise ExperimentError(f"{where}: {key} takes whole numbers, but got {parts}{at}")


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _message(error: ErrorDetails, places: Places) -> str:
    """`key rule, but got value (file, line)`, from one of pydantic's findings."""
    parts = [str(part) for part in error["loc"]]
    if parts[:1] == ["tasks"] and len(parts) > 1 and parts[1] in _TASK_SOURCES:
        del parts[1]  # pydantic names the member of the union, which the file does not
    key = ".".join(parts)
    at = _place(key, places)
    got, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: no such key{at}{_nearest(key)}"
        case "invalid_key":
            rule = "be a string"
        case "too_short":
            rule = f"have at least {context['min_length']} items"
        case "missing":
            return f"{key} is required, but is not given{at}"
        case "value_error":
            return f"{key or 'experiment'}: {context['error']}{at}"
        case "union_tag_not_found":
            return f"tasks.source is required: one of {', '.join(_TASK_SOURCES)}{at}"
        case "union_tag_invalid":
            at = _place("tasks.source", places)
            key, got, rule = "tasks.source", context["tag"], f"be one of {', '.join(_TASK_SOURCES)}"
        case "literal_error":
            rule = f"be {context['expected']}"
        case "greater_than":
            rule = f"be > {context['gt']:g}"
        case "greater_than_equal":
            rule = f"be >= {context['ge']:g}"
        case "less_than":
            rule = f"be < {context['lt']:g}"
        case "less_than_equal":
            rule = f"be <= {context['le']:g}"
        case "model_type" | "model_attributes_type" | "dict_type":
            rule = "be a section of keys"
        case _:
            rule = error["msg"].split(" should ", 1)[-1]
    return f"{key} must {rule}, but got {got!r}{at}"


def _place(key: str, places: Places) -> str:
    """Where the nearest section around a key is given, in brackets."""
    return next((f" ({places[p]})" for p in _prefixes(key) if p in places), "")


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _nearest(key: str) -> str:
    """The key that was probably meant: spelt alike, or of the same name in another section."""
    others = [name for name in _SCHEMA_KEYS if name != key]
    matches = difflib.get_close_matches(key, others, n=1, cutoff=0.7)
    if not matches:
        leaf = key.rsplit(".", 1)[-1]
        leaves = {name.rsplit(".", 1)[-1]: name for name in others}
        matches = [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f"; did you mean {matches[0]}?" if matches else ""


def _schema_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for member in get_args(field.annotation) or (field.annotation,):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from _schema_keys(member, f"{prefix}{name}.")


_SCHEMA_KEYS = sorted(set(_schema_keys(Experiment)))
_TASK_SOURCES = [
    get_args(member.model_fields["source"].annotation)[0] for member in get_args(get_args(Tasks)[0])
]
