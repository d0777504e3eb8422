"""The schema of an experiment: every setting there is, its type, its range and its default.

`raymeta.experiment_file` reads and checks the files.  Whatever runs an experiment receives an
`Experiment`, frozen and checked; numerics receive plain values out of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Probability = Annotated[float, Field(ge=0, lt=1)]
Scalar = bool | int | float | str


def _kind(value: object) -> type:
    """What a choice is: a truth value, a number or a word."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _is_multiple(distance: float, step: float) -> bool:
    """Whether `distance` is a whole number of steps, up to rounding."""
    ratio = distance / step
    return abs(ratio - round(ratio)) < 1e-9


class Section(BaseModel):
    """Base of every section: unknown keys refused, values never coerced, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PenAugmentation(Section):
    """Random variation of meta-training episodes; see `raymeta.tasks.pen.Augmentation`."""

    class_rotation_deg: float = Field(30.0, ge=0, le=180)
    class_mirror: float = Field(0.5, ge=0, le=1)
    class_reverse: float = Field(0.0, ge=0, le=1)
    class_blend: float = Field(0.0, ge=0, le=1)
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
    shared_head: bool = Field(False, description="one learned start of the head for all ways")


class Training(Section):
    """The outer loop: AdamW over meta-steps."""

    pretrain_steps: int = Field(0, ge=0, description="joint training before the first meta-step")
    pretrain_lr: float = Field(1e-3, gt=0)
    meta_steps: int = Field(500, ge=1)
    meta_batch_size: int = Field(16, ge=1, description="episodes per meta-step over all workers")
    outer_lr: float = Field(1e-3, gt=0)
    outer_clip: float | None = Field(10.0, gt=0, description="bound on the meta-gradient's norm")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    eval_every: int = Field(
        50,
        ge=1,
        description="meta-steps between validations and checkpoints; the end has both",
    )
    val_episodes: int = Field(200, ge=2)
    precision: Literal["float64", "float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="tf32: float32, but products of GPUs that can in TF32; bfloat16: recurrent "
        "layers in bfloat16, all else in float32",
    )
    max_skipped: int = Field(20, ge=0, description="non-finite steps in a row that end a trial")
    graph: Literal["auto", "full", "flat"] = Field(
        "auto",
        description="keep the graphs of all adaptation steps (full: fastest), or take the steps "
        "again on the way back (flat: memory that does not grow with them); auto: full if it fits",
    )
    chunk_size: int | None = Field(
        None, ge=1, description="episodes that a worker takes at once; by default as many as fit"
    )
    cuda_graph: bool = Field(
        False, description="on a GPU, the whole meta-gradient as one CUDA graph per shape"
    )
    memory_gb: float = Field(4.0, gt=0, description="what a worker's meta-step may take, in 1e9 B")


class Resources(Section):
    """What one trial takes, and how many trials run at once."""

    num_workers: int = Field(1, ge=1, description="data-parallel workers of a trial")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0, description="whole or a fraction; 0 trains on CPU")
    accelerator_type: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]+$", description="train on such GPUs alone, e.g. A100"
    )
    placement: Literal["pack", "one_node", "spread"] = Field(
        "pack",
        description="a trial's workers on as few nodes as there is room, on one and the same node, "
        "or each on a node of its own",
    )
    max_concurrent_trials: int | None = Field(
        None, ge=1, description="by default as many as there is room for when the search starts"
    )
    max_failures: int = Field(2, ge=0, description="restarts of a trial from its last checkpoint")

    @model_validator(mode="after")
    def _whole_gpus_above_one(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ValueError(
                f"gpus_per_worker must be a fraction up to 1 or a whole number, but got "
                f"{self.gpus_per_worker}"
            )
        if self.accelerator_type is not None and self.gpus_per_worker == 0:
            raise ValueError(
                "accelerator_type needs gpus_per_worker above 0, but got "
                f"(accelerator_type={self.accelerator_type}, gpus_per_worker=0)"
            )
        return self


class Dimension(Section):
    """One searched key: a range (`low`, `high`, and `log` or `step`) or a list of `choices`.

    `when` makes it conditional: `{KEY: VALUES}`, KEY being searched among choices, VALUES those of
    them under which this key is searched.  Otherwise it keeps the file's own value.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(None, gt=0)
    choices: list[Scalar] | None = Field(None, min_length=2)
    when: dict[str, list[Scalar]] | None = Field(None, min_length=1, max_length=1)

    @property
    def ends(self) -> list[Scalar]:
        """The values that bound it: all choices, or low and high."""
        if self.choices is not None:
            return list(self.choices)
        return [end for end in (self.low, self.high) if end is not None]

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices, or lies in the range and on its steps."""
        if self.choices is not None:
            kind = _kind(value)
            return any(value == choice and kind is _kind(choice) for choice in self.choices)
        if self.low is None or self.high is None or isinstance(value, bool):
            return False
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_multiple(value - self.low, self.step)

    @field_validator("when", mode="before")
    @classmethod
    def _one_or_several(cls, when: object) -> object:
        if not isinstance(when, dict):
            return when
        return {k: v if isinstance(v, list) else [v] for k, v in when.items()}

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("`choices` stands alone, without low, high, step and log")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"`choices` must differ, but got {self.choices}")
            if len({_kind(choice) for choice in self.choices}) > 1:
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
        if self.step is not None and not _is_multiple(self.high - self.low, self.step):
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
    method: Literal["bo", "sobol", "random"] = Field(
        "bo", description="Bayesian optimisation, or points that no result has a part in"
    )
    model: Literal["auto", "gp", "saas"] = Field(
        "auto", description="saas: few of many keys matter; auto: from 20 keys on"
    )
    acquisition: Literal["auto", "log_ei", "log_nei", "ucb"] = "auto"
    curves: Literal["extrapolate", "ignore"] = Field(
        "extrapolate", description="what the model learns of trials that were stopped early"
    )
    against: Literal["adaptation_seconds", "num_parameters"] | None = Field(
        None,
        description="a second objective, to be least: the search is then for the Pareto front; the "
        "best trial is still the best by the metric",
    )
    warm_start: str | None = Field(None, description="an earlier run to learn from: its folder")
    constraints: list[str] = Field([], description="such as `KEY + 2 * KEY <= 3`")
    space: dict[str, Dimension] = {}

    @model_validator(mode="after")
    def _acquisition_of_several(self) -> Self:
        if self.against is not None and self.acquisition != "auto":
            raise ValueError(
                "`acquisition` must be auto beside `against`, but got "
                f"{self.acquisition}, which is for one objective"
            )
        return self


class Evaluation(Section):
    """Meta-test."""

    num_episodes: int = Field(600, ge=2)
    adaptation_steps: int = Field(
        10, ge=1, description="of meta-validation and meta-test; may be more than meta-training's"
    )


Tasks = Annotated[PenTasks | SentimentTasks | SinusoidTasks, Field(discriminator="source")]


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

    @property
    def objectives(self) -> tuple[tuple[str, Literal["min", "max"]], ...]:
        """What the search is for, the metric first."""
        if self.search.against is None:
            return ((self.metric, self.mode),)
        return ((self.metric, self.mode), (self.search.against, "min"))

    def value(self, key: str) -> Any:
        """The value, or the section, at a dotted key; KeyError where there is none."""
        *sections, leaf = key.split(".")
        node: Any = self
        for part in [*sections, leaf]:
            if not isinstance(node, BaseModel) or part not in type(node).model_fields:
                raise KeyError(key)
            node = getattr(node, part)
        return node

    def is_integer(self, key: str) -> bool:
        """Whether the schema wants a whole number at a dotted key."""
        section, _, leaf = key.rpartition(".")
        return type(self.value(section)).model_fields[leaf].annotation is int
