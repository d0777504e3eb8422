"""Reads, overrides and checks experiment files, with the place of every error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from raymeta.errors import ExperimentError, shown
from raymeta.experiment import yaml_lines
from raymeta.experiment.messages import Places, message, messages, nearest, place, prefixes
from raymeta.experiment.schema import Dimension, Experiment
from raymeta.experiment.yaml_lines import Document, Key
from raymeta.meta.settings import SETTINGS as LEARNERS
from raymeta.storage.paths import AnyPath, path_at
from raymeta.tasks.base_settings import SHIPPED_DATA

SEARCHABLE_SECTIONS = ("tasks", "model", "learner", *LEARNERS, "training")
# Trials that differ in these keys solve different problems or have different budgets.
FIXED_TRAINING_KEYS = frozenset(
    {
        "training.seed",
        "training.pretrain_steps",
        "training.meta_steps",
        "training.meta_batch_size",
        "training.eval_every",
        "training.val_episodes",
        "training.max_skipped",
    }
)

# YAML 1.1 reads 010 as 8 and 1:30 as 90, which is rarely meant.
_OTHER_BASE = (
    "must be in base 10, or in quotes if it is text, but got {}, which YAML takes for a number of "
    "base 8 or 60"
)
_MAX_BASES = 20  # that build on one another
_MAX_NAME, _MAX_OVERRIDE = 100, 300  # characters that are worth comparing, and showing


def shipped_experiments() -> list[str]:
    """Names of the experiment files that come with raymeta."""
    folder = resources.files("raymeta.experiment.shipped")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_experiment(
    source: str, overrides: Sequence[str] = (), *, may_build: bool = True
) -> Experiment:
    """Reads and checks an experiment.

    Args:
        source: the name of a shipped experiment (`pen`) or the path of a YAML file.  A file may
            build on another by `base: NAME_OR_PATH`, and then holds only what differs.
        overrides: `dotted.key=value`, the value in YAML.
        may_build: allows `base`, which may be any file; not in a run folder, which may be a
            stranger's.

    Raises:
        ExperimentError: naming key, rule, value and line of everything that is wrong.
    """
    places: Places = {}
    data = _read(source, places, seen=(), may_build=may_build)
    places = _overridden(data, places, overrides)
    return _validated_with_learners(data, places)


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Applies overrides, as `load_experiment` takes them, to an experiment.

    Raises:
        ExperimentError: naming key, rule and value of everything that is wrong.
    """
    data = _dumped(experiment)
    return _validated_with_learners(data, _overridden(data, {}, overrides))


def _overridden(data: dict[str, Any], places: Places, overrides: Sequence[str]) -> Places:
    """Replaces overridden keys in `data`; returns the places of all keys."""
    values = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ExperimentError(f"--set takes KEY=VALUE, but got {shown(override)}")
        values.append((key, _override_value(key, text)))
    for key, value in values:
        if key == "learner":
            _remove_other_learners(data, value)
    for key, value in values:
        _replace(data, key, value)
        places = {known: at for known, at in places.items() if not known.startswith(f"{key}.")}
        places |= dict.fromkeys(prefixes(key), "--set")
    return places


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Replaces the dotted keys of `values` in an experiment and checks it again.

    Raises:
        ExperimentError: a key does not exist or a value breaks a rule.
    """
    data = experiment.model_dump()
    for key, value in values.items():
        _replace(data, key, value)
    return _validated(data, {})


def to_yaml(experiment: Experiment) -> str:
    """Writes the whole experiment, defaults included, as a file that `load_experiment` reads."""
    return yaml_lines.write(_dumped(experiment))


def _dumped(experiment: Experiment) -> dict[str, Any]:
    """Dumps the experiment without learners that are neither chosen nor searched."""
    return experiment.model_dump(exclude=LEARNERS.keys() - experiment.learners)


def _override_value(key: str, text: str) -> Any:
    """Parses the value of `--set KEY=TEXT`."""
    try:
        document = yaml_lines.read_document(text)
    except yaml_lines.YamlError:
        told = text if len(text) <= _MAX_OVERRIDE else shown(text)
        raise ExperimentError(f"--set {key}={told}: the value is not valid YAML") from None
    for repeated in document.repeated:
        raise ExperimentError(f"{_dotted((key, *repeated))} is given twice (--set); remove one")
    for inner, number in document.other_bases.items():
        raise ExperimentError(f"{_dotted((key, *inner))} {_OTHER_BASE.format(number)} (--set)")
    return document.data


def _read(
    source: str,
    places: Places,
    seen: tuple[str, ...],
    named: str = "experiment",
    *,
    may_build: bool = True,
) -> dict[str, Any]:
    """Merges a file with its bases; fills `places` with the line of every key.

    `named` says in messages what named the file; without `may_build` a base is refused.
    """
    path = path_at(source)
    is_shipped = source in shipped_experiments()
    if is_shipped:
        path = Path(str(resources.files("raymeta.experiment.shipped") / f"{source}.yaml"))
    text = _text(source, path, named)
    here = str(path.resolve())
    if here in seen:
        raise ExperimentError(f"base: {' -> '.join([*seen, here])} never ends; remove one")
    if len(seen) == _MAX_BASES:
        raise ExperimentError(f"base: more than {_MAX_BASES} files build on one another")
    document = _document(path.name, text)
    own_places = {_dotted(k): f"{path.name}, line {n}" for k, n in document.lines.items()}
    # A section name with nothing under it changes nothing.
    data = {key: value for key, value in document.data.items() if value is not None}
    tasks = data.get("tasks")
    if is_shipped and isinstance(tasks, dict) and "data_dir" in tasks:
        tasks["data_dir"] = str(SHIPPED_DATA / tasks["data_dir"])
    base = data.pop("base", None)
    if base is not None and not may_build:
        at = place("base", own_places)
        raise ExperimentError(
            f"base {shown(base)}: the experiment of a run has everything in it, but this one names "
            f"a base, which may be any file; remove the key{at}"
        )
    if base is not None:
        if not isinstance(base, str):
            at = place("base", own_places)
            raise ExperimentError(f"base must be a name or a path, but got {shown(base)}{at}")
        path_at(base)  # refuses what can be no path
        beside = path.parent / base
        parent = str(beside) if beside.is_file() else base
        inherited = _read(parent, places, (*seen, here), f"base{place('base', own_places)}")
        # A search space is not merged: it replaces the inherited one.
        own, other = data.get("search"), inherited.get("search")
        if isinstance(own, dict) and "space" in own and isinstance(other, dict):
            other.pop("space", None)
        if "learner" in data:
            _remove_other_learners(inherited, data["learner"])
        data = _merged(inherited, data)
    places.update(own_places)
    return data


def _text(source: str, path: AnyPath, named: str) -> str:
    try:
        return yaml_lines.read_file(path)
    except (OSError, ValueError) as error:  # ValueError: no text, or no path
        names = shipped_experiments()
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        hint = difflib.get_close_matches(source, names, n=1) if len(source) <= _MAX_NAME else []
        raise ExperimentError(
            f"{named} {shown(source)} is neither a readable file ({reason}) nor one of the "
            f"shipped ones: {', '.join(names)}" + (f". Did you mean {hint[0]}?" if hint else "")
        ) from None


def _document(name: str, text: str) -> Document:
    try:
        document = yaml_lines.read_document(text)
    except yaml_lines.YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise ExperimentError(f"{name}{line}: not valid YAML: {error}") from None
    for key in document.repeated:
        at = f"({name}, line {document.lines[key]})"
        raise ExperimentError(f"{_dotted(key)} is given twice {at}; remove one")
    for key, number in document.other_bases.items():
        at = f"({name}, line {document.lines[key]})"
        raise ExperimentError(f"{_dotted(key)} {_OTHER_BASE.format(number)} {at}")
    if not isinstance(document.data, dict):
        got = shown(document.data)
        raise ExperimentError(f"{name}: expected a mapping of sections, but got {got}")
    if not all(isinstance(key, str) for key in document.data):
        # `lines` has keys as they are written: those that the data have otherwise are no text.
        written = (key for key in document.lines if len(key) == 1 and key[0] not in document.data)
        key = next(written)
        at = f"{name}, line {document.lines[key]}"
        raise ExperimentError(f"{at}: keys must be text, but got {key[0]!s:.80}; remove it")
    return document


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _replace(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key without checking it; validation follows."""
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
        raise ExperimentError(messages(error, places)) from None
    for key, dimension in experiment.search.space.items():
        _check_dimension(experiment, key, dimension, places)
    return experiment


def _check_dimension(
    experiment: Experiment, key: str, dimension: Dimension, places: Places
) -> None:
    """Refuses a searched key that does not exist or does not take its range's ends."""
    where = f"search.space.{key}"
    at = place(where, places)
    try:
        current = experiment.value(key)
    except KeyError:
        raise ExperimentError(f"{where}: no such key{at}{nearest(key)}") from None
    if key.split(".", maxsplit=1)[0] not in SEARCHABLE_SECTIONS or isinstance(current, BaseModel):
        raise ExperimentError(
            f"{where}: only single values of {', '.join(SEARCHABLE_SECTIONS)} can be searched{at}"
        )
    if any(key == fixed or key.startswith(f"{fixed}.") for fixed in fixed_keys(experiment)):
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
            reason = message(error.errors()[0], {})
            raise ExperimentError(f"{where}: {shown(value)} is not allowed{at}: {reason}") from None
    if experiment.is_integer(key) and not dimension.choices:
        parts = [dimension.low, dimension.high, dimension.step or 1]
        if not all(isinstance(_as_integer(part), int) for part in parts):
            raise ExperimentError(f"{where}: {key} takes whole numbers, but got {shown(parts)}{at}")


def _remove_other_learners(data: dict[str, Any], learner: object) -> None:
    """Drops inherited settings of learners that are no longer chosen."""
    for name in LEARNERS:
        if name != learner:
            data.pop(name, None)


def _validated_with_learners(data: Mapping[str, Any], places: Places) -> Experiment:
    """Validates; refuses settings of learners that are neither chosen nor searched."""
    experiment = _validated(data, places)
    for name in sorted(LEARNERS.keys() - experiment.learners):
        given = [f"{name}.{key}" for key in data.get(name) or ()]
        given += [f"search.space.{k}" for k in experiment.search.space if k.startswith(f"{name}.")]
        if given:
            raise ExperimentError(
                f"{given[0]}: is a setting of the learner {name}, but learner is "
                f"{experiment.learner}{place(given[0], places)}; remove it, or set learner: {name}"
            )
    return experiment


def fixed_keys(experiment: Experiment) -> frozenset[str]:
    """Lists the keys that cannot be searched; each source of tasks adds its own."""
    return FIXED_TRAINING_KEYS | {f"tasks.{key}" for key in experiment.tasks.FIXED}


def _as_integer(value: Any) -> Any:
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**63
    return int(value) if whole else value
