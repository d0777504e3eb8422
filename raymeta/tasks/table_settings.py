"""The settings of tables of sequences."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from raymeta.problem import MEDIAN
from raymeta.sections import Seed
from raymeta.tasks.base_settings import FileTasks, TaskSettings
from raymeta.tasks.table_sections import NumberTarget, RemainingLife, Spectrum

MAX_LEVELS = 100  # of a category: each is an input of the network


class TableTasks(FileTasks):
    """Sequences in a long table: one row a time step."""

    problem: ClassVar[str] = "classification"
    FIXED: ClassVar[frozenset[str]] = TaskSettings.FIXED | {
        "kind",
        "files",
        "sequence",
        "target",
        "time",
        "categories",
        "time_differences",
        "missing",
        "groups",
        "small_classes",
        "val_classes",
        "test_classes",
        "val_groups",
        "test_groups",
        "split_seed",
        "window",
        "window_step",
        "windows_each",
        "support",
        "spectrum",
        "horizon",
        "context",
        "season",
        "stride",
        "quantiles",
        "known",
        "calendar",
    }

    source: Literal["table"]
    kind: Literal["classes", "groups", "forecast"] = Field(
        "classes",
        description="classes: a task is num_ways classes that no network has seen; groups: a task "
        "is one group of the first group column, such as a patient, with the classes of all, and "
        "no sequence has examples in the support set and among the queries; "
        "forecast: a task is one sequence, a series cut in two: the support set is before the cut, "
        "what is to be forecast after it",
    )
    num_ways: int = Field(5, ge=1, description="classes of an episode; 1 for kind: forecast")
    num_shots: int = Field(1, ge=1)
    num_queries: int = Field(3, ge=1, description="query examples a class")
    sequence: str = Field(description="column of the sequence that a row belongs to")
    target: str | NumberTarget | RemainingLife = Field(
        description="column of the class; kind: forecast: of the numbers; kind: groups: also "
        "{number: COLUMN}, a number, or {rul: TIME, cap: N}, the useful life that remains"
    )
    categories: list[str] = Field(
        [],
        description="columns of text, truth values or whole numbers of which each is a name: the "
        f"network learns a vector for each of at most {MAX_LEVELS} levels of meta-training, and "
        "one for a missing value; a level that is unknown counts as their mean",
    )
    features: list[str] = Field(
        [],
        validate_default=True,
        description="columns of numbers; kind: forecast: further ones, known of the past alone",
    )
    time: str | None = Field(
        None, description="column that orders a sequence's rows; null for the order of the file"
    )
    time_differences: bool = Field(
        False, description="the time since the row before is a feature, for irregular times"
    )
    missing: Literal["refuse", "interpolate", "mask"] = Field(
        "refuse",
        description="what to do with missing numbers: interpolate: straight lines in time; mask: "
        "the last number, and two more features a column: whether there is one, and since when",
    )
    spectrum: Spectrum | None = Field(
        None,
        description="of periodic signals: networks read the amplitudes of an example's lowest "
        "frequencies (their square roots) in place of its time steps; controls read both",
    )
    mirror: list[str] = Field(
        [],
        description="kind: groups: features whose signs turn in the mirror image, as of a sensor "
        "on the other arm; half the sequences of meta-training are read as their mirror image",
    )
    groups: list[str] = Field(
        [], description="columns such as the person: each group's sequences stay in one split"
    )
    small_classes: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="what to do with classes (kind: groups: with groups) that have fewer than "
        "num_shots + num_queries sequences; kind: forecast: with series too short to be cut",
    )
    val_classes: int = Field(5, ge=1, description="kind: classes: held out for meta-validation")
    test_classes: int = Field(5, ge=1, description="kind: classes: held out for meta-test")
    val_groups: int = Field(
        1,
        ge=1,
        description="of each group column (kind: forecast without one: series), for "
        "meta-validation",
    )
    test_groups: int = Field(1, ge=1, description="the same for meta-test")
    max_steps: int = Field(
        512,
        ge=1,
        description="rows of a sequence; longer ones are refused; unused for forecasts and windows",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="kind: groups: rows of a window; sequences are cut into windows, each an "
        "example; those of a sequence are all in the support set or all among the queries; null: "
        "a sequence is one example",
    )
    window_step: int | None = Field(
        None, ge=1, description="rows from a window to the next; null: as many as a window has"
    )
    windows_each: int | None = Field(
        None, ge=1, description="windows that an episode has of one sequence at most"
    )
    support: Literal["first", "random"] = Field(
        "first",
        description="kind: groups: the support set has a group's first sequences, in the order of "
        "the files, and queries are of later ones; or both are of sequences at random",
    )
    horizon: int = Field(1, ge=1, le=1000, description="kind: forecast: steps to be forecast")
    context: int = Field(
        24,
        ge=1,
        le=4096,
        description="kind: forecast: steps before the first window of the support set; an episode "
        "sees context + horizon + (num_shots - 1) × stride steps before its cut",
    )
    season: int = Field(
        1,
        ge=1,
        description="kind: forecast: steps of a season, such as 12 of monthly numbers; MASE is in "
        "units of the error of repeating the last season; 1: the last value",
    )
    stride: int = Field(1, ge=1, description="kind: forecast: steps from a window to the next")
    difference: Literal["season", "drift", "last"] = Field(
        "season",
        description="kind: forecast: networks learn the difference to the last season, to the last "
        "season moved by the change over a season (drift; where a window shows one), or to the "
        "last value",
    )
    quantiles: list[float] = Field(
        [],
        max_length=99,
        description="kind: forecast: levels such as [0.1, 0.5, 0.9]: networks give these quantiles "
        "of every step; the one at 0.5 is the point forecast; empty: a point forecast alone",
    )
    known: list[str] = Field(
        [],
        description="kind: forecast: further columns of numbers, such as prices, whose values over "
        "the horizon are known when a forecast is made; networks read them",
    )
    calendar: list[Literal["month", "weekday", "hour"]] = Field(
        [],
        description="kind: forecast: what networks read of the column of times, over past and "
        "horizon, as sine and cosine: month, weekday, hour",
    )
    split_seed: Seed = Field(0, description="deals classes and groups into the splits")

    @model_validator(mode="before")
    @classmethod
    def _a_forecast_has_no_ways(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "forecast":
            return {"num_ways": 1, **values}
        target = values.get("target") if isinstance(values, dict) else None
        if isinstance(target, dict | NumberTarget | RemainingLife):
            values = {"num_ways": 1, **values}
            if isinstance(target, dict) and "rul" in target and values.get("time") is None:
                values["time"] = target["rul"]
        return values

    @field_validator("features")
    @classmethod
    def _classes_need_features(cls, features: list[str], others: ValidationInfo) -> list[str]:
        has_others = others.data.get("kind") == "forecast" or others.data.get("categories")
        if not has_others and not features:
            short = {"field_type": "List", "min_length": 1, "actual_length": 0}
            raise PydanticKnownError("too_short", short)
        return features

    @field_validator("quantiles")
    @classmethod
    def _levels_ascend_about_the_median(cls, levels: list[float]) -> list[float]:
        is_ascending = all(low < high for low, high in pairwise([0.0, *levels, 1.0]))
        if levels and not (is_ascending and MEDIAN in levels):
            raise ValueError(
                "must ascend strictly between 0 and 1 and hold 0.5, the point forecast, such as "
                f"[0.1, 0.5, 0.9], but got {levels!s:.100}"
            )
        return levels

    @property
    def example_steps(self) -> int:
        """The most rows of an example."""
        return self.max_steps if self.window is None else self.window

    @property
    def channels(self) -> tuple[str, ...]:
        """The columns that an example is made of: features, then categories."""
        return (*self.features, *self.categories)

    @property
    def reads_times(self) -> bool:
        """Whether the network reads how long the times between steps are."""
        return self.time is not None and (self.time_differences or self.missing == "mask")

    @property
    def has_numbers(self) -> bool:
        """Whether a number is to be predicted, and nothing is forecast."""
        return not isinstance(self.target, str)

    @property
    def target_name(self) -> str:
        """The target's name in tables and messages, mostly its column."""
        if isinstance(self.target, RemainingLife):
            return f"remaining {self.target.rul}"
        return self.target if isinstance(self.target, str) else self.target.number

    def asks_for(self) -> str:
        """The name of the problem; forecasts and numbers are problems of their own."""
        if self.kind == "forecast":
            return "quantiles" if self.quantiles else "forecast"
        return "regression" if self.has_numbers else self.problem

    def levels(self) -> tuple[float, ...]:
        """The levels of `quantiles`."""
        return tuple(self.quantiles)

    @property
    def has_fixed_labels(self) -> bool:
        """Classes that no network has seen are labels anew in every episode."""
        return self.kind != "classes"

    @model_validator(mode="after")
    def _checks_columns_and_classes(self) -> Self:
        columns = [self.sequence, *self.groups, *self.features, *self.known, *self.categories]
        if isinstance(self.target, RemainingLife):
            if self.time != self.target.rul:
                raise ValueError(
                    f"target.rul must be the column of times, but got (time={self.time}, "
                    f"target.rul={self.target.rul})"
                )
        else:
            columns.append(self.target_name)
        columns += [] if self.time is None else [self.time]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"a column has one role, but {twice[0]!r} is named twice")
        if self.time_differences and self.time is None:
            raise ValueError("time_differences needs a column of times; name it as time")
        self._checks_mirror()
        if self.kind == "forecast":
            self._checks_windows()
            if self.has_numbers:
                raise ValueError("kind: forecast has a column of numbers as target, no mapping")
            if self.spectrum is not None:
                raise ValueError("spectrum is for classes and groups, but kind is forecast")
            return self._checks_forecast()
        for key in ("quantiles", "known", "calendar"):
            if getattr(self, key):
                raise ValueError(f"{key} is for kind: forecast alone, but kind is {self.kind}")
        if self.has_numbers:
            return self._checks_numbers()
        if self.num_ways < 2:
            raise ValueError(f"num_ways must be >= 2, but got {self.num_ways}")
        self._checks_windows()
        self._checks_spectrum()
        if self.kind == "groups":
            if not self.groups:
                raise ValueError("kind: groups needs the column of the groups; name it in groups")
            return self
        fewest = min(self.val_classes, self.test_classes)
        if fewest < self.num_ways:
            raise ValueError(
                f"val_classes and test_classes must be at least num_ways, but got "
                f"(val_classes={self.val_classes}, test_classes={self.test_classes}, "
                f"num_ways={self.num_ways})"
            )
        return self

    def _checks_mirror(self) -> None:
        if not self.mirror:
            return
        if self.kind != "groups":
            raise ValueError(f"mirror is for kind: groups alone, but kind is {self.kind}")
        if self.spectrum is not None:
            raise ValueError("mirror needs signs, but a spectrum has none: leave out one of them")
        unknown = [name for name in self.mirror if name not in self.features]
        if unknown or len(set(self.mirror)) < len(self.mirror):
            named = unknown or self.mirror
            raise ValueError(
                f"mirror must name features, each once, but got {named[0]!r:.60}; features are "
                f"{', '.join(self.features)!s:.300}"
            )

    def _checks_windows(self) -> None:
        given = {
            "window": self.window is not None,
            "window_step": self.window_step is not None,
            "windows_each": self.windows_each is not None,
            "support": self.support != "first",
        }
        named = [key for key, is_given in given.items() if is_given]
        if self.kind != "groups" and named:
            raise ValueError(f"{named[0]} is for kind: groups alone, but kind is {self.kind}")
        if self.window is None and ({"window_step", "windows_each"} & set(named)):
            raise ValueError(f"{named[0]} needs window: the rows of a window")

    def _checks_numbers(self) -> Self:
        if self.kind != "groups":
            raise ValueError(
                f"a target that is a number is for kind: groups alone, but kind is {self.kind}"
            )
        if self.num_ways != 1:
            raise ValueError(
                f"a target that is a number has no classes: leave num_ways out, but got "
                f"{self.num_ways}"
            )
        if self.small_classes != "refuse":
            raise ValueError("small_classes is for classes, but the target is a number")
        self._checks_windows()
        self._checks_spectrum()
        return self

    def _checks_spectrum(self) -> None:
        if self.spectrum is None:
            return
        if self.missing == "mask" or self.time_differences:
            raise ValueError(
                "spectrum needs evenly spaced rows without gaps: take neither missing: mask nor "
                "time_differences with it"
            )
        if self.categories:
            raise ValueError("categories have no spectrum: leave out one of them")
        most = self.example_steps // 2 + 1
        if self.spectrum.frequencies > most:
            raise ValueError(
                f"spectrum.frequencies must be at most {most}, half the rows of an example (window "
                f"or max_steps) and one, but got {self.spectrum.frequencies}"
            )

    def _checks_forecast(self) -> Self:
        if self.num_ways != 1:
            raise ValueError(
                f"kind: forecast has no classes: leave num_ways out, but got {self.num_ways}"
            )
        if self.missing != "refuse" or self.time_differences:
            raise ValueError(
                "kind: forecast takes neither missing (filling in looks into the future) nor "
                "time_differences: steps are evenly spaced; fill the table in yourself"
            )
        if self.calendar and self.time is None:
            raise ValueError("calendar needs a column of times; name it as time")
        if len(set(self.calendar)) < len(self.calendar):
            raise ValueError(f"calendar must name parts once each, but got {self.calendar}")
        if self.context < self.season:
            raise ValueError(
                f"context must be at least season, since every example must hold a season, but "
                f"got (context={self.context}, season={self.season})"
            )
        return self
