"""Converts Ray Tune's search spaces, and points to the configurations of trainables."""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import sample
from ray.tune.search.repeater import TRIAL_INDEX

from raymeta.errors import SearchError, shown
from raymeta.experiment.parameter import (
    LARGEST_CHOICE,
    MOST_CHOICES,
    Parameter,
    Scalar,
    is_finite,
)
from raymeta.search.hidden_domains import has_domain, is_mark, marks, refuse_hidden_domains
from raymeta.search.plain_values import is_number, is_plain, is_same, kind_of, plain
from raymeta.search.space import Point, Space

_LONGEST_VALUE = 80  # characters of a value in a message
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneSpace:
    """A search space and the conversion of its points to configurations.

    `space` names a nested key by its path joined with `/`, as Tune does.  `fixed` holds domains of
    one value, `constants` the rest of the configuration, `members` the values that replace searched
    ones for trainables: enum members, and None for its name.  `objects` names the keys whose values
    Tune hides.  `is_nested`: trainables get nested dictionaries.
    """

    space: Space
    fixed: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    is_nested: bool = False

    def without_constants(self) -> TuneSpace:
        """Returns the same space for configurations to which Tune adds the constants."""
        return dataclasses.replace(self, constants={})

    def config(self, point: Point) -> dict[str, Any]:
        """Converts a point to the configuration that a trainable gets."""
        values = {**self.constants, **self.fixed}
        for name, value in point.items():
            values[name] = self.members.get(name, {}).get(value, value)
        return nested(values) if self.is_nested else values

    def point(self, config: Mapping[str, Any]) -> Point:
        """Converts a configuration to a point with the parameters' own values.

        3.0 stands for an integer 3, 0 for a choice 0.0, a scalar of numpy for its value.  Constants
        may be left out.

        Raises:
            SearchError: a key or value is not in this space; the message names it.
        """
        values = joined(config) if self.is_nested else dict(config)
        values.pop(TRIAL_INDEX, None)  # Ray's Repeater adds it
        parameters = {parameter.name: parameter for parameter in self.space.parameters}
        point: Point = {}
        for name, value in values.items():
            if name in parameters:
                point[name] = self._value(parameters[name], value)
            elif name in self.fixed or self._is_constant(name):
                self._check_constant(name, value)
            else:
                raise SearchError(
                    f"{name} is not in the search space, which has {_listed(parameters)}; leave "
                    "it out"
                )
        wanted = self.space.names_in(point)
        if missing := [name for name in parameters if name in wanted and name not in point]:
            raise SearchError(f"{_listed(missing)} must be given, but the point has no such key")
        if surplus := [name for name in point if name not in wanted]:
            raise SearchError(
                f"{_listed(surplus)} does not exist at this point, since what it depends on has "
                "another value; leave it out"
            )
        point = {name: point[name] for name in parameters if name in point}
        if not self.space.contains(point):
            raise SearchError(
                f"{_shown(point)} must satisfy {' and '.join(self.space.constraints)}"
            )
        return point

    def point_of_result(self, result: Mapping[str, Any]) -> Point | None:
        """The point of a trial from a flat result of Tune's (`config/x`), None if it is not there.

        Constants and keys of other origin are left out.
        """
        names = {parameter.name for parameter in self.space.parameters}
        found = {
            key.removeprefix("config/"): value
            for key, value in result.items()
            if key.removeprefix("config/") in names and key.startswith("config/")
        }
        try:
            return dataclasses.replace(self, is_nested=False).point(found)
        except SearchError:
            return None

    def _value(self, parameter: Parameter, value: Any) -> Any:
        """Converts a user's value to the parameter's own."""
        value = plain(value)
        for searched, member in self.members.get(parameter.name, {}).items():
            if kind_of(value) is kind_of(member) and value == member:
                return searched
        if parameter.choices is not None:
            for choice in parameter.choices:
                if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                    return choice
            rule = f"one of {_shown(list(parameter.choices))}"
        else:
            if is_number(value) and parameter.contains(value):
                if not parameter.integer:
                    return float(value)
                if value == int(value):
                    return int(value)
            kind = "a whole number" if parameter.integer else "a number"
            rule = f"{kind} from {parameter.low} to {parameter.high}"
        raise SearchError(f"{parameter.name} must be {rule}, but got {_shown(value)}")

    def _is_constant(self, name: str) -> bool:
        """Whether a key is a constant, or lies within one that is a dictionary."""
        return any(name == key or name.startswith(f"{key}/") for key in self.constants)

    def _check_constant(self, name: str, value: Any) -> None:
        constants = {**self.constants, **self.fixed}
        key = next(key for key in constants if name == key or name.startswith(f"{key}/"))
        constant = constants[key]
        if not is_plain(constant):
            return  # objects behind Tune's marks and arrays cannot be compared
        flat = joined({key: constant})
        if name not in flat or not is_same(value, flat[name]):
            raise SearchError(
                f"{name} is constant in the search space and must be "
                f"{_shown(flat.get(name, constant))}, but got {_shown(value)}; leave it out"
            )


def tune_space(
    config: Mapping[str, Any],
    constraints: Sequence[str] = (),
    hidden: Mapping[str, Any] | None = None,
) -> TuneSpace:
    """Converts a `param_space` of Ray Tune to a search space.

    Args:
        config: the `param_space`.
        constraints: linear ones between parameters.
        hidden: the objects that Tune replaced by marks in `config`, by the hash in the mark.

    Raises:
        SearchError: it holds something that cannot be searched; the message names key and remedy.
    """
    parameters: list[Parameter] = []
    fixed: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    members: dict[str, dict[Any, Any]] = {}
    objects: list[str] = []
    for name, value in _leaves(config):
        if not isinstance(value, sample.Domain):
            for place, mark in marks(name, value):
                objects.append(name)
                refuse_hidden_domains(place, (hidden or {}).get(mark))
            refuse_hidden_domains(name, value)
            constants[name] = value
            continue
        if isinstance(value, sample.Categorical):
            parameter, members[name] = _choice(name, value, hidden or {})
            objects += [name for category in value.categories if is_mark(category)]
        else:
            parameter = _range(name, value)
        if parameter.choices is None and parameter.low == parameter.high:
            fixed[name] = parameter.low
        elif parameter.choices is not None and len(parameter.choices) == 1:
            (choice,) = parameter.choices
            fixed[name] = members[name].get(choice, choice)
        else:
            parameters.append(parameter)
    members = {name: found for name, found in members.items() if found and name not in fixed}
    space = Space(tuple(parameters), tuple(constraints))
    unique_objects = tuple(dict.fromkeys(objects))
    return TuneSpace(space, fixed, constants, members, unique_objects, is_nested=True)


def joined(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a nested dictionary; keys are joined by `/`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}/{inner}": v for inner, v in joined(value).items()}
        else:
            flat[str(key)] = value
    return flat


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuilds a nested dictionary from keys joined by `/`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


# ------------------------------------------------------------------- within


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields joined keys and values; a dictionary without a domain is one constant."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) == {"grid_search"}:
            raise SearchError(
                f"{name}: tune.grid_search tries all values by itself; use tune.choice here"
            )
        if isinstance(value, dict) and set(value) == {"eval"}:
            raise SearchError(
                f"{name}: Tune evaluates an `eval` expression for each trial, so it cannot be "
                "searched; compute the value in the trainable"
            )
        is_searched = has_domain(value)
        if not isinstance(key, str) or "/" in key:
            if is_searched or isinstance(key, str):
                raise SearchError(f"{name}: keys of a search space must be strings without '/'")
            raise SearchError(f"{name}: keys of a search space must be strings, but got {key!r}")
        if isinstance(value, dict) and is_searched:
            yield from _leaves(value, f"{name}/")
        else:
            yield name, value


def _range(name: str, domain: sample.Domain) -> Parameter:
    """Converts a range of numbers."""
    if not isinstance(domain, sample.Float | sample.Integer):
        raise SearchError(
            f"{name}: {type(domain).__name__} cannot be searched (tune.sample_from has no bounds); "
            "use tune.uniform, loguniform, randint, choice or a quantised form of them"
        )
    sampler, step = domain.get_sampler(), None
    if isinstance(sampler, sample.Quantized):
        step, sampler = plain(sampler.q), sampler.get_sampler()
    if isinstance(sampler, sample.Normal):
        raise SearchError(f"{name}: a normal distribution has no bounds; use tune.uniform")
    if not isinstance(sampler, sample.Uniform | sample.LogUniform):
        raise SearchError(f"{name}: {type(sampler).__name__} cannot be searched; use tune.uniform")
    low, high = plain(domain.lower), plain(domain.upper)
    if not (is_number(low) and is_number(high)):
        raise SearchError(
            f"{name}: bounds must be finite numbers, but got {low!r} and {high!r}; use tune.uniform"
            " with bounds (a domain has no bounds unless they are given)"
        )
    if step is not None and not (is_number(step) and step > 0):
        raise SearchError(f"{name}: the step must be > 0, but got {step!r}")
    integer, log = isinstance(domain, sample.Integer), isinstance(sampler, sample.LogUniform)
    if integer:
        if any(value != int(value) for value in (low, high, step or 1)):
            raise SearchError(
                f"{name}: bounds and step of a range of integers must be whole numbers, but got "
                f"{low}, {high}{'' if step is None else f' and {step}'}; use tune.uniform"
            )
        low, high, step = int(low), int(high), None if step in (None, 1) else int(step)
        if step is None:
            high -= 1  # Tune's integers exclude the upper end, except when they are quantised
        else:  # Tune's grid consists of the multiples of q
            low, high = math.ceil(low / step) * step, math.floor(high / step) * step
    if low > high:
        raise SearchError(
            f"{name}: there is no value between {domain.lower} and {domain.upper}; the lower bound "
            "comes first"
        )
    if log and low <= 0:
        raise SearchError(f"{name}: the lower bound must be > 0 on a log scale, but got {low}")
    return Parameter(name=name, low=low, high=high, integer=integer, log=log, step=step)


def _choice(
    name: str, domain: sample.Categorical, hidden: Mapping[str, Any]
) -> tuple[Parameter, dict[Any, Any]]:
    """Converts a choice; also returns the values that replace searched ones for trainables."""
    if isinstance(domain.get_sampler(), sample.Grid):
        raise SearchError(f"{name}: a grid tries all values by itself; use tune.choice here")
    if not 1 <= len(domain.categories) <= MOST_CHOICES:
        raise SearchError(
            f"{name}: tune.choice must have 1 to {MOST_CHOICES} values, but got "
            f"{len(domain.categories)}; many numbers are searched as a range (tune.randint, "
            "tune.quniform)"
        )
    # Tune hides scalars of numpy, too.
    categories = [
        hidden.get(value[1], value) if is_mark(value) else value for value in domain.categories
    ]
    values = [plain(value) for value in categories]
    for value, category in zip(values, categories, strict=True):
        kind = kind_of(value)
        if kind is None:
            raise SearchError(
                f"{name}: tune.choice over "
                f"{'object' if is_mark(category) else type(category).__name__} cannot be searched, "
                f"but got {_shown(category)}; use numbers, strings, booleans or None, and look up "
                "in the trainable what they stand for"
            )
        if kind is float and not is_finite(value):
            raise SearchError(f"{name}: a choice must be finite, but got {_shown(value)}")
        if isinstance(value, int) and abs(value) > LARGEST_CHOICE:
            raise SearchError(
                f"{name}: a whole number among choices must be at most 2**53, but got "
                f"{_shown(value)}; choose among texts and convert them in the trainable"
            )
    kinds = {kind_of(value) for value in values if value is not None}
    if len(kinds) > 1:
        raise SearchError(
            f"{name}: tune.choice over values of several types cannot be searched, but got "
            f"{_shown(values)}; use values of one type"
        )
    is_float = kinds == {float} and any(isinstance(value, float) for value in values)
    members: dict[Any, Any] = {}
    choices: list[Scalar] = []
    for value, category, original in zip(values, categories, domain.categories, strict=True):
        searched = _searched(value, as_text=None in values, as_float=is_float)
        if searched in choices:
            if None in values and value is not None and members[searched] != category:
                raise SearchError(f"{name}: {_shown(category)} and None have the same name")
            _log.warning("%s: tune.choice names %r twice; each counts once", name, value)
            continue
        choices.append(searched)
        if None in values or isinstance(category, enum.Enum) or is_mark(original):
            members[searched] = original
    return Parameter(name=name, choices=tuple(choices)), members


def _searched(value: Any, *, as_text: bool, as_float: bool) -> Scalar:
    """Converts a choice for the search: to text if None is among the choices."""
    if as_text:
        return str(value)
    found: Scalar = float(value) if as_float else value
    return found


def _shown(value: object) -> str:
    """Quotes a value in a message, shortened."""
    text = shown(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
