"""The experiment file: its schema, its loading, overrides, and where in the file an error is.

This module alone reads YAML.  Everything below the command line receives an `Experiment`, frozen
and checked, or plain values out of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from raymeta.errors import ExperimentError

Probability = Annotated[float, Field(ge=0, lt=1)]
Scalar = bool | int | float | str


class Section(BaseModel):
    """Base of every section: unknown keys refused, values never coerced, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PenAugmentation(Section):
    """Random variation of meta-training episodes; see `raymeta.tasks.pen.Augmentation`."""

    class_rotation_deg: float = Field(30.0, ge=0, le=180)
    class_mirror: float = Field(0.5, ge=0, le=1)
    class_scale: float = Field(0.2, ge=0, le=2)
    class_shear: float = Field(0.2, ge=0, le=2)
    example_rotation_deg: float = Field(10.0, ge=0, le=180)
    example_scale: float = Field(0.1, ge=0, le=2)
    example_shear: float = Field(0.1, ge=0, le=2)
    example_bend: float = Field(0.1, ge=0, le=2)


class PenTasks(Section):
    """Characters written with a pen, UCI "UJI Pen Characters"."""

    source: Literal["pen"]
    num_ways: int = Field(5, ge=2)
    num_shots: int = Field(1, ge=1)
    num_queries: int = Field(3, ge=1, description="query examples a class")
    num_points: int = Field(24, ge=4, le=512, description="time steps a character is resampled to")
    split_seed: int = Field(0, ge=0, description="deals characters and writers into the splits")
    data_dir: str | None = Field(None, description="a folder of UNIPEN files in place of the own")
    augmentation: PenAugmentation = PenAugmentation()


class SentimentTasks(Section):
    """Sentences of praise and blame by domain, UCI "Sentiment Labelled Sentences"."""

    source: Literal["sentiment"]
    num_shots: int = Field(5, ge=1)
    num_queries: int = Field(10, ge=1, description="query examples a class")
    test_domain: str = Field("yelp", description="held out whole: amazon, imdb or yelp")
    split_seed: int = Field(0, ge=0, description="keeps back sentences for meta-validation")
    max_tokens: int = Field(32, ge=4, le=512, description="longer sentences are cut here")
    min_count: int = Field(2, ge=1, description="rarer training tokens become <unk>")
    token_dropout: Probability = Field(0.1, description="chance of a training token to be <unk>")
    data_dir: str | None = Field(None, description="a folder of JSON files in place of the own")


class SinusoidTasks(Section):
    """Regression of sine waves of random amplitude and phase (Finn et al. 2017, section 5.1)."""

    source: Literal["sinusoid"]
    num_shots: int = Field(10, ge=1)
    num_queries: int = Field(10, ge=1)


class Model(Section):
    """The recurrent network."""

    cell: Literal["rnn", "gru", "lstm"] = "gru"
    hidden_size: int = Field(64, ge=1, le=8192)
    num_layers: int = Field(1, ge=1, le=16)
    bidirectional: bool = False
    dropout: Probability = 0.0
    pooling: Literal["last", "mean", "attention"] = "last"
    embedding_size: int = Field(32, ge=1, le=4096, description="of tokens; unused without text")


class MamlSection(Section):
    """The inner loop; see `raymeta.meta.maml.Maml`."""

    adaptation_steps: int = Field(5, ge=1, le=1000)
    inner_lr: float = Field(0.1, gt=0)
    learn_inner_lr: bool = False
    first_order: bool = False
    adapt: Literal["all", "head"] = "all"
    inner_clip: float | None = Field(None, gt=0)


class Training(Section):
    """The outer loop: AdamW over meta-steps."""

    meta_steps: int = Field(500, ge=1)
    meta_batch_size: int = Field(16, ge=1, description="episodes per meta-step over all workers")
    outer_lr: float = Field(1e-3, gt=0)
    outer_clip: float | None = Field(10.0, gt=0, description="bound on the meta-gradient's norm")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    eval_every: int = Field(50, ge=1, description="meta-steps between validations and checkpoints")
    val_episodes: int = Field(200, ge=2)
    precision: Literal["float32", "float64"] = "float32"
    max_skipped: int = Field(20, ge=0, description="non-finite steps in a row that end a trial")


class Resources(Section):
    """What one trial takes, and how many trials run at once."""

    num_workers: int = Field(1, ge=1, description="data-parallel workers of a trial")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0, description="whole or a fraction; 0 trains on CPU")
    max_concurrent_trials: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0, description="restarts of a trial from its last checkpoint")


class Dimension(Section):
    """One searched key: a range (`low`, `high`, and `log` or `step`) or a list of `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(None, gt=0)
    choices: list[Scalar] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("`choices` stands alone, without low, high, step and log")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"`choices` must differ, but got {self.choices}")
            if len({type(choice) for choice in self.choices}) > 1:
                raise ValueError(f"`choices` must be of one type, but got {self.choices}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `low` and `high`, or `choices`")
        if not self.low < self.high:
            raise ValueError(f"`low < high` must hold, but got (low={self.low}, high={self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"`low > 0` must hold for `log: true`, but got (low={self.low})")
        if self.log and self.step is not None:
            raise ValueError("`step` goes with a linear scale; remove `log: true` or `step`")
        if self.step is not None:
            ratio = (self.high - self.low) / self.step
            if abs(ratio - round(ratio)) > 1e-9:
                raise ValueError(
                    f"`step` must divide high - low, but got (low={self.low}, high={self.high}, "
                    f"step={self.step})"
                )
        return self


class Search(Section):
    """The Bayesian search; `space` maps dotted keys of this same file to dimensions."""

    num_trials: int = Field(16, ge=1)
    num_sobol: int = Field(6, ge=1, description="quasi-random trials before the model takes over")
    early_stopping: Literal["asha", "none"] = "asha"
    grace_steps: int = Field(100, ge=1, description="meta-steps before a trial may be stopped")
    reduction_factor: float = Field(3, gt=1)
    space: dict[str, Dimension] = {}


class Evaluation(Section):
    """Meta-test."""

    num_episodes: int = Field(600, ge=2)
    adaptation_steps: int = Field(10, ge=1, description="length of the adaptation curve")


Tasks = Annotated[Union[PenTasks, SentimentTasks, SinusoidTasks], Field(discriminator="source")]


class Experiment(Section):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0)
    tasks: Tasks
    model: Model = Model()
    maml: MamlSection = MamlSection()
    training: Training = Training()
    resources: Resources = Resources()
    search: Search = Search()
    evaluation: Evaluation = Evaluation()

    @field_validator("resources")
    @classmethod
    def _whole_gpus_above_one(cls, value: Resources) -> Resources:
        if value.gpus_per_worker > 1 and value.gpus_per_worker != int(value.gpus_per_worker):
            raise ValueError("gpus_per_worker must be a fraction up to 1 or a whole number")
        return value

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """What the tasks ask for."""
        return "regression" if self.tasks.source == "sinusoid" else "classification"

    @property
    def metric(self) -> str:
        """The validation metric that the search optimises."""
        return "val_loss" if self.kind == "regression" else "val_accuracy"

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction of `metric`."""
        return "min" if self.kind == "regression" else "max"

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with the dotted keys of `values` replaced, checked anew.

        Raises:
            ExperimentError: a key does not exist or a value breaks a rule.
        """
        data = self.model_dump()
        for key, value in values.items():
            _replace(data, key, value, place="")
        return _validated(data, {})

    def value(self, key: str) -> Any:
        """The value at a dotted key."""
        return _dotted(self.model_dump())[key]

    def to_yaml(self) -> str:
        """The whole experiment, defaults included, as a file that `load_experiment` reads."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def shipped_experiments() -> list[str]:
    """Names of the experiment files that come with raymeta."""
    folder = resources.files("raymeta.experiments")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_experiment(source: str, overrides: Sequence[str] = ()) -> Experiment:
    """Reads and checks an experiment.

    Args:
        source: the name of a shipped experiment (`pen`) or the path of a YAML file.  A file may
            build on another by `base: NAME_OR_PATH`, and then holds only what differs.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        ExperimentError: naming key, rule, value and line of everything that is wrong.
    """
    places: dict[str, str] = {}
    data = _read(source, places, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ExperimentError(f"--set takes KEY=VALUE, but got {override!r}")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ExperimentError(f"--set {override}: the value is not valid YAML") from None
        # The defaults of sections that the file leaves out may be overridden as well.
        _replace(data, key, value, place=" (--set)", complete=_validated(data, places).model_dump())
        places[key] = "--set"
    return _validated(data, places)


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read(source: str, places: dict[str, str], seen: tuple[str, ...]) -> dict[str, Any]:
    """The merged mapping of a file and its bases; fills `places` with the line of every key."""
    if source in shipped_experiments():
        path = Path(str(resources.files("raymeta.experiments") / f"{source}.yaml"))
    else:
        path = Path(source)
    if str(path) in seen:
        raise ExperimentError(f"base: {' -> '.join([*seen, str(path)])} never ends; remove one")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = shipped_experiments()
        hint = difflib.get_close_matches(source, names, n=1)
        raise ExperimentError(
            f"experiment {source!r} is neither a readable file ({_os_reason(error)}) nor one of the "
            f"shipped ones: {', '.join(names)}" + (f". Did you mean {hint[0]}?" if hint else "")
        ) from None
    try:
        root = yaml.compose(text, _Loader)
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "invalid"
        raise ExperimentError(f"{path.name}{line}: not valid YAML: {problem}") from None
    if not isinstance(data, dict):
        raise ExperimentError(f"{path.name}: expected a mapping of sections, but got {data!r:.60}")
    own_places = dict(_lines(root, path.name, ""))
    base = data.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ExperimentError(f"base must be a name or a path, but got {base!r} ({path.name})")
        beside = path.parent / base
        parent = str(beside) if beside.is_file() else base
        inherited = _read(parent, places, (*seen, str(path)))
        # A space is one thing: a file that gives one replaces the inherited one.
        if "space" in (data.get("search") or {}):
            inherited.get("search", {}).pop("space", None)
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


def _dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All keys of a nested mapping, sections included, by dotted name; the space's own are none."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found[prefix + key] = value
        if isinstance(value, dict) and prefix + key != "search.space":
            found |= _dotted(value, f"{prefix}{key}.")
    return found


def _replace(
    data: dict[str, Any],
    key: str,
    value: Any,
    *,
    place: str,
    complete: Mapping[str, Any] | None = None,
) -> None:
    known = _dotted(complete or data)
    *sections, leaf = key.split(".")
    if key.startswith("search.space."):  # the keys of the space contain dots themselves
        sections, leaf = ["search", "space"], key.removeprefix("search.space.")
    elif key not in known:
        raise ExperimentError(f"{key}: no such key{place}{_nearest(key, known)}")
    node = data
    for part in sections:
        node = node.setdefault(part, {})
    node[leaf] = value


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not matches:
        leaf = key.rsplit(".", 1)[-1]
        matches = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    return f"; did you mean {matches[0]}?" if matches else ""


def _validated(data: Mapping[str, Any], places: Mapping[str, str]) -> Experiment:
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        messages = [_message(e, places) for e in error.errors()]
        raise ExperimentError("\n".join(messages)) from None
    _check_space(experiment, places)
    _check_budget(experiment, places)
    return experiment


def _check_space(experiment: Experiment, places: Mapping[str, str]) -> None:
    """Every searched key exists in this file, and every end of its range is a value it takes."""
    plain = experiment.model_dump()
    known = _dotted(plain)
    for key, dimension in experiment.search.space.items():
        where = f"search.space.{key}"
        at = f" ({places[where]})" if where in places else ""
        if key not in known:
            raise ExperimentError(f"{where}: no such key{at}{_nearest(key, known)}")
        if key.split(".")[0] not in {"tasks", "model", "maml", "training"} or isinstance(
            known[key], dict
        ):
            raise ExperimentError(
                f"{where}: only single values of tasks, model, maml and training can be searched{at}"
            )
        for value in dimension.choices or [dimension.low, dimension.high]:
            trial = experiment.model_dump()
            trial["search"]["space"] = {}
            _replace(trial, key, _as_integer(value), place="")
            try:
                Experiment.model_validate(trial)
            except ValidationError as error:
                reason = _message(error.errors()[0], {})
                raise ExperimentError(f"{where}: {value!r} is not allowed{at}: {reason}") from None
        if is_integer_key(experiment, key) and not dimension.choices:
            parts = [dimension.low, dimension.high, dimension.step or 1]
            if any(_as_integer(part) != part or isinstance(_as_integer(part), float) for part in parts):
                raise ExperimentError(f"{where}: {key} takes whole numbers, but got {parts}{at}")


def _check_budget(experiment: Experiment, places: Mapping[str, str]) -> None:
    training = experiment.training
    if training.eval_every > training.meta_steps:
        at = f" ({places['training.eval_every']})" if "training.eval_every" in places else ""
        raise ExperimentError(
            f"training.eval_every must be at most training.meta_steps, but got "
            f"{training.eval_every} > {training.meta_steps}{at}"
        )


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_integer_key(experiment: Experiment, key: str) -> bool:
    """Whether the schema wants a whole number at a dotted key."""
    *sections, leaf = key.split(".")
    section: Any = experiment
    for part in sections:
        section = getattr(section, part)
    return type(section).model_fields[leaf].annotation is int


def _message(error: ErrorDetails, places: Mapping[str, str]) -> str:
    """`key rule, but got value (file, line)`, from one of pydantic's findings."""
    parts = [str(part) for part in error["loc"]]
    if parts[:1] == ["tasks"] and len(parts) > 1 and parts[1] in _TASK_SOURCES:
        del parts[1]  # pydantic names the member of the union, which the file does not
    key = ".".join(parts)
    at = next((places[p] for p in _prefixes(key) if p in places), "")
    at = f" ({at})" if at else ""
    got, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            siblings = _known_keys(parts[:-1])
            return f"{key}: no such key{at}{_nearest(key, siblings)}"
        case "missing":
            return f"{key} is required, but is not given{at}"
        case "value_error":
            return f"{key or 'experiment'}: {context['error']}{at}"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"tasks.source must be one of {', '.join(_TASK_SOURCES)}{at}"
        case "literal_error":
            return f"{key} must be {context['expected']}, but got {got!r}{at}"
        case "greater_than":
            rule = f"be > {context['gt']}"
        case "greater_than_equal":
            rule = f"be >= {context['ge']}"
        case "less_than":
            rule = f"be < {context['lt']}"
        case "less_than_equal":
            rule = f"be <= {context['le']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} must be a section of keys, but got {got!r}{at}"
        case _:
            rule = error["msg"].removeprefix("Input should ")
    return f"{key} must {rule}, but got {got!r}{at}"


_TASK_SOURCES = ("pen", "sentiment", "sinusoid")


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _known_keys(sections: list[str]) -> dict[str, None]:
    """The keys that the schema has in a section, with the section's own name before them."""
    models: list[type[BaseModel]] = [Experiment]
    for part in sections:
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        members = [get_args(a) or (a,) for a in annotations]
        models = [m for group in members for m in group if isinstance(m, type) and issubclass(m, BaseModel)]
    prefix = ".".join(sections)
    return {f"{prefix}.{name}" if prefix else name: None for m in models for name in m.model_fields}


def _os_reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"
