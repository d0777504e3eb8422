"""The schema of an experiment: every setting with its type, range and default.

`raymeta.experiment.file` reads and checks the files.  Code that runs an experiment receives a
frozen, checked `Experiment`; numerics receive its plain values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from raymeta.acquisitions import AUTO, FOR_ONE_OBJECTIVE
from raymeta.experiment.learners import Learners
from raymeta.experiment.parameter import Parameter, Scalar, is_multiple
from raymeta.experiment.resources import Resources
from raymeta.experiment.trackers import Trackers
from raymeta.meta.settings import SETTINGS
from raymeta.problem import Problem, posed
from raymeta.sections import Probability, Section, Seed
from raymeta.tasks.settings import Tasks

STEP_METRIC = "meta_steps"  # of a trial's reports: how far it has come
MOST_SEEDS = 100  # of a refit


class Model(Section):
    """The recurrent network."""

    cell: Literal["rnn", "gru", "lstm"] = "gru"
    hidden_size: int = Field(64, ge=1, le=8192)
    num_layers: int = Field(1, ge=1, le=16)
    bidirectional: bool = False
    dropout: Probability = 0.0
    pooling: Literal["last", "mean", "attention"] = "last"
    embedding_size: int = Field(32, ge=1, le=4096, description="of tokens; unused without text")
    stacked_steps: int = Field(
        1,
        ge=1,
        le=512,
        description="time steps that the first layer reads at once: a network of so many times "
        "fewer steps, which trains the faster",
    )


if TYPE_CHECKING:
    AcquisitionName = str
else:
    AcquisitionName = Literal[FOR_ONE_OBJECTIVE]


class Training(Section):
    """The outer loop: AdamW over meta-steps."""

    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="of the initial weights and the order of the episodes: another one trains "
        "anew on the same data, judged on the same episodes",
    )
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


class Dimension(Section):
    """One searched key: a `Parameter` as the file writes it, named by its key.

    `when` makes it conditional: in `{KEY: VALUES}`, KEY is searched among choices, and this key is
    searched only while KEY has one of VALUES.  Otherwise it keeps the file's own value.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(None, gt=0)
    choices: list[Scalar] | None = Field(None, min_length=2)
    when: dict[str, list[Scalar]] | None = Field(None, min_length=1, max_length=1)

    def parameter(
        self, name: str = "", *, integer: bool = False, kind: type | None = None
    ) -> Parameter:
        """Describes this dimension to the search.

        Args:
            name: the searched key.
            integer: whether the key takes whole numbers only.
            kind: converts the choices, if it is given: a file may write 1 for 1.0.
        """
        choices = None if self.choices is None else tuple(self.choices)
        if choices is not None and kind is not None:
            choices = tuple(kind(choice) for choice in choices)
        condition = None
        if self.when is not None:
            ((parent, values),) = self.when.items()
            condition = parent, tuple(values)
        return Parameter(
            name=name,
            low=self.low,
            high=self.high,
            integer=integer,
            log=self.log,
            step=self.step,
            choices=choices,
            when=condition,
        )

    @property
    def ends(self) -> list[Scalar]:
        """The values that bound it: all choices, or low and high."""
        return list(self.parameter().ends)

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices, or lies in the range and on its steps."""
        return self.parameter().contains(value)

    @field_validator(
        "when",
        mode="before",
        json_schema_input_type=dict[str, Scalar | list[Scalar]] | None,
    )
    @classmethod
    def _one_or_several(cls, when: object) -> object:
        if not isinstance(when, dict):
            return when
        return {k: v if isinstance(v, list) else [v] for k, v in when.items()}

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        fault = self.parameter().fault
        if fault is not None:
            raise ValueError(fault)
        if self.log and self.step is not None:
            raise ValueError("`step` goes with a linear scale; remove `log: true` or `step`")
        if self.step is not None:
            low, high = self.low, self.high
            assert low is not None
            assert high is not None
            if not is_multiple(high - low, self.step):
                raise ValueError(
                    f"`step` must divide high - low, but got (low={low}, high={high}, "
                    f"step={self.step})"
                )
        return self


class Refit(Section):
    """How often and how long the winner is trained again before the meta-test.

    The file's configuration and joint training, its controls, get as many steps.
    """

    steps: float = Field(2.0, ge=1, le=1000, description="as a multiple of training.meta_steps")
    seeds: int = Field(
        2, ge=1, le=MOST_SEEDS, description="trainings, each with a training.seed of its own"
    )


class Search(Section):
    """The Bayesian search; `space` maps dotted keys of this same file to dimensions."""

    num_trials: int = Field(
        16, ge=1, description="trials in all; budget_s, where it is reached first, ends sooner"
    )
    budget_s: float | None = Field(
        None,
        gt=0,
        description="seconds after which no new trial starts, over all sessions; num_trials holds "
        "beside it, and what is reached first ends the search; null: no limit",
    )
    stop_when_gain_below: float | None = Field(
        None,
        gt=0,
        description="end when, by the model, the metric has less than this to gain; null: do not",
    )
    num_sobol: int = Field(6, ge=1, description="quasi-random trials before the model takes over")
    early_stopping: Literal["asha", "none"] = "asha"
    grace_steps: int = Field(100, ge=1, description="meta-steps before a trial may be stopped")
    reduction_factor: float = Field(3, gt=1)
    method: Literal["bo", "sobol", "random"] = Field(
        "bo", description="Bayesian optimisation, or points that no result has a part in"
    )
    model: Literal["auto", "gp", "gp-ensemble", "saas"] = Field(
        "auto",
        description="gp-ensemble: averages over the hyperparameters of the gp; saas: few of many "
        "keys matter; auto: saas from 20 keys on, otherwise gp",
    )
    acquisition: AcquisitionName = AUTO
    curves: Literal["extrapolate", "ignore"] = Field(
        "extrapolate", description="what the model learns of trials that were stopped early"
    )
    against: Literal["adaptation_seconds", "num_parameters"] | None = Field(
        None,
        description="a second objective, to be least: the search is then for the Pareto front; the "
        "best trial is still the best by the metric",
    )
    refit: Refit | None = Field(
        None, description="train the winner again, longer and from several seeds; null: do not"
    )
    warm_start: str | None = Field(None, description="an earlier run to learn from: its folder")
    learn_from: list[str] = Field(
        [],
        description="finished runs of like experiments, by folder: their models are the prior of "
        "this search's model, each as far as it ranks this search's own trials well",
    )
    constraints: list[str] = Field([], description="such as `KEY + 2 * KEY <= 3`")
    space: dict[str, Dimension] = Field({})

    @model_validator(mode="after")
    def _acquisition_of_several(self) -> Self:
        if self.against is not None and self.acquisition != AUTO:
            raise ValueError(
                "`acquisition` must be auto beside `against`, but got "
                f"{self.acquisition}, which is for one objective"
            )
        return self

    @model_validator(mode="after")
    def _learning_has_a_model(self) -> Self:
        twice = [run for run in self.learn_from if self.learn_from.count(run) > 1]
        if twice:
            raise ValueError(f"`learn_from` must name each run once, but got {twice[0]} twice")
        if self.learn_from:
            self._must_be("method", "bo", beside="learn_from")
            self._must_be("model", "auto", "gp", beside="learn_from")
            self._must_be("against", None, beside="learn_from")
            self._must_be("warm_start", None, beside="learn_from")
        return self

    @model_validator(mode="after")
    def _gain_has_a_model(self) -> Self:
        if self.stop_when_gain_below is not None:
            remedy = "; `budget_s` limits every search"
            self._must_be("method", "bo", beside="stop_when_gain_below", remedy=remedy)
            self._must_be("against", None, beside="stop_when_gain_below", remedy=remedy)
        return self

    def _must_be(self, key: str, *wanted: str | None, beside: str, remedy: str = "") -> None:
        """Refuses any other value of `key` in a search that sets the key `beside`."""
        if (found := getattr(self, key)) not in wanted:
            named = " or ".join("null" if value is None else value for value in wanted)
            raise ValueError(f"`{key}` must be {named} beside `{beside}`, but got {found}{remedy}")


class Evaluation(Section):
    """The settings of the meta-test."""

    num_episodes: int = Field(600, ge=2)
    adaptation_steps: int = Field(
        10, ge=1, description="of meta-validation and meta-test; may be more than meta-training's"
    )
    sealed: bool = Field(
        False,
        description="run on the sealed deal, whose meta-test units are in no other run's "
        "meta-validation or meta-test; RUN/sealed.jsonl records every look at it",
    )


class Subject(Section):
    """The tasks to learn, and the network that learns them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)
    seed: Seed = 0
    tasks: Tasks
    model: Model = Model()


class Experiment(Learners, Subject):
    """Everything that determines a run."""

    training: Training = Training()
    resources: Resources = Resources()
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    trackers: Trackers = Trackers()

    @model_validator(mode="after")
    def _learner_serves_the_problem(self) -> Self:
        # A searched choice that is none is refused with the search space, key and line.
        for learner in sorted(self.learners & SETTINGS.keys()):
            SETTINGS[learner].check_problem(learner, self.tasks.asks_for())
            settings = SETTINGS[learner](**dict(getattr(self, learner)))
            settings.check_labels(self.tasks.has_fixed_labels)
        return self

    @property
    def learner_settings(self) -> dict[str, Any]:
        """The settings of the chosen learner."""
        return dict(getattr(self, self.learner))

    @property
    def learners(self) -> frozenset[str]:
        """The chosen learner, and those that the search chooses from."""
        searched = self.search.space.get("learner")
        return frozenset({self.learner, *(searched.choices or () if searched else ())})

    @property
    def problem(self) -> Problem:
        """The problem that the tasks pose, and how answers are scored."""
        return posed(self.tasks.asks_for(), self.tasks.levels())

    @property
    def metric(self) -> str:
        """The validation metric that the search optimises."""
        return self.problem.val_metric

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction of `metric`."""
        return self.problem.mode

    @property
    def refit_meta_steps(self) -> int:
        """Meta-steps of each training of the refit."""
        steps = 1.0 if self.search.refit is None else self.search.refit.steps
        return round(steps * self.training.meta_steps)

    @property
    def objectives(self) -> tuple[tuple[str, Literal["min", "max"]], ...]:
        """The metrics that the search optimises with their directions, the main one first."""
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
        return type(self.value(section) if section else self).model_fields[leaf].annotation is int
