"""The result of a meta-test: mean scores with intervals, one row per contestant.

Shape legend: E episodes, M queries of an episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from raymeta.uncertainty import Units

Z_95 = 1.959964  # a normal variable lies within ± this with probability 0.95


@dataclass(frozen=True)
class Score:
    """A mean and half the width of its 95 % interval; None: too few units for an interval."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """The score of `values` `[episodes]`: mean ± 1.96 standard errors.

        The interval is of more episodes of the same units, not of other units.
        """
        values = values.double()
        return cls(values.mean().item(), Z_95 * values.std().item() / math.sqrt(len(values)))

    @classmethod
    def over(cls, values: Tensor, units: Units) -> Score:
        """The score of `values` `[E, M]`, or `[R, E, M]` of R trainings; see `Units.estimate`."""
        found = units.estimate(values.numpy())
        return cls(found.mean, found.half_width if units.are_enough else None)

    @property
    def is_finite(self) -> bool:
        """Whether every episode had a finite score."""
        return math.isfinite(self.mean) and math.isfinite(self.half_width or 0.0)


# The meta-test's verdicts on a control.
Verdict = Literal["beaten", "undecided", "better", "too few units", "not finite"]


@dataclass(frozen=True)
class Row:
    """A network or a control in the table of the meta-test.

    `score` is after `steps` adaptation steps, its interval over the units that are new at
    deployment.  `over_episodes` is the same mean with the interval of more episodes of the same
    units, and so is each point of `curve`, after 0 … S steps; a control that does not adapt has
    neither steps nor curve.  `ahead` is the mean difference to the run's network over the same
    queries, positive where the network is better; its interval is over units too, and narrower than
    those of the two scores, because what is hard for one is mostly hard for the other.  `detail`
    names what was chosen on meta-validation.  `seeds` are the mean scores of the trainings that the
    row is the mean of, where there are several.  `own_units` are further measures of forecasts
    and numbers, in the units of the data, by name.
    """

    name: str
    label: str
    score: Score
    over_episodes: Score
    steps: int | None = None
    curve: tuple[Score, ...] = ()
    ahead: Score | None = None
    detail: str = ""
    seeds: tuple[float, ...] = ()
    own_units: Mapping[str, Score] = field(default_factory=dict)


ENSEMBLE = "ensemble"
NUM_BINS = 15  # bins of the expected calibration error, as in Guo et al.


@dataclass(frozen=True)
class Reliability:
    """The expected calibration error in the meta-test, with the temperature and without.

    It is Σ_bins (share of queries in the bin) |accuracy - mean confidence| over `num_bins` equal
    bins of the largest class probability (Guo et al. 2017, equation 3).
    """

    temperature: float
    error: float
    error_without: float
    num_bins: int = NUM_BINS


@dataclass(frozen=True)
class Coverage:
    """The share of meta-test values that lie in the intervals around the answers.

    The intervals should hold the share `wanted`; they hold `found`, over units.  They come from
    `num_tasks` tasks of meta-validation, of so many units of each axis as `val_units` says: tasks
    of two persons are not independent, however many they are.  `half_width` is the mean of half
    their widths, `narrowest` and `widest` are the ends of those halves, all in `unit`; empty for
    the targets' own unit without a name.
    """

    wanted: float
    found: Score
    num_tasks: int
    half_width: float
    narrowest: float
    widest: float
    unit: str = ""
    val_units: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Coverage:
        """Reads plain values; the first files knew forecasts alone, and no ends of the widths."""
        mean = float(content["half_width"])
        return cls(
            wanted=float(content["wanted"]),
            found=_score(content["found"]),
            num_tasks=int(content.get("num_tasks") or content["num_series"]),
            half_width=mean,
            narrowest=float(content.get("narrowest", mean)),
            widest=float(content.get("widest", mean)),
            unit=str(content.get("unit", MASE_UNIT)),
            val_units=_units(content),
        )


MASE_UNIT = "units of MASE"  # a series' mean error of the season before


@dataclass(frozen=True)
class SetCoverage:
    """The share of meta-test queries whose prediction set holds their class.

    The sets should hold the share `wanted` of the classes; they hold `found`, over units, and have
    `size` of the `num_classes` classes of a task on average.  `num_tasks` and `val_units` are as in
    `Coverage`.
    """

    wanted: float
    found: Score
    size: float
    num_classes: int
    num_tasks: int
    val_units: Mapping[str, int]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SetCoverage:
        """Reads plain values."""
        return cls(
            wanted=float(content["wanted"]),
            found=_score(content["found"]),
            size=float(content["size"]),
            num_classes=int(content["num_classes"]),
            num_tasks=int(content["num_tasks"]),
            val_units=_units(content),
        )


@dataclass(frozen=True)
class UnlikeTraining:
    """The share of tasks whose support examples do not look like those of meta-training.

    `of_validation` and `of_test` are the shares of the first `num_validation` and `num_test` tasks
    with a distance above `threshold`.  The threshold is made so that about one meta-validation task
    in a hundred is beyond it; see `raymeta.evaluation.familiarity`.
    """

    threshold: float
    of_validation: float
    num_validation: int
    of_test: float
    num_test: int

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> UnlikeTraining:
        """Reads plain values."""
        return cls(
            threshold=float(content["threshold"]),
            of_validation=float(content["of_validation"]),
            num_validation=int(content["num_validation"]),
            of_test=float(content["of_test"]),
            num_test=int(content["num_test"]),
        )


@dataclass(frozen=True)
class MetaTest:
    """The meta-test of a run: `rows[0]` is its network, the others are the controls.

    After a refit from several seeds `rows[0]` is the mean over them, and their ensemble has a row.

    `units` counts the units of every axis that are new at deployment.  `reliability` is of the
    classes' probabilities as `predict_proba` gives them, `sets` of their prediction sets,
    `coverage` of the intervals of values and forecasts, `unlike` of the support examples of all but
    forecasts; None of other problems and of runs of earlier versions.
    """

    metric: str
    higher_is_better: bool
    num_episodes: int
    units: dict[str, int]
    note: str
    rows: tuple[Row, ...]
    reliability: Reliability | None = None
    coverage: Coverage | None = None
    unlike: UnlikeTraining | None = None
    sets: SetCoverage | None = None

    @property
    def controls(self) -> tuple[Row, ...]:
        """The rows that the network must beat."""
        return tuple(row for row in self.rows[1:] if row.name != ENSEMBLE)

    def verdict(self, row: Row) -> Verdict:
        """Judges a control by its paired difference.

        A control is beaten if the interval of `ahead` over units lies above zero, and better if it
        lies below.  All controls are beaten only if each one is, so that their number needs no
        correction (Berger 1982, intersection-union tests).
        """
        ahead = row.ahead
        if ahead is None or not (self.rows[0].score.is_finite and ahead.is_finite):
            return "not finite"
        if ahead.half_width is None:
            return "too few units"
        if abs(ahead.mean) <= ahead.half_width:
            return "undecided"
        return "beaten" if ahead.mean > 0 else "better"

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values for `from_json`; numbers that are not finite become None."""
        content: dict[str, Any] = _without_nan(asdict(self))
        for name in ("reliability", "coverage", "unlike", "sets"):
            if content[name] is None:
                del content[name]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> MetaTest:
        """Reads what any version's `to_json` wrote; intervals of version 0.1 are over episodes."""
        rows = tuple(
            Row(
                **{
                    **row,
                    "score": _score(row["score"]),
                    "over_episodes": _score(row.get("over_episodes", row["score"])),
                    "curve": tuple(_score(point) for point in row["curve"]),
                    "ahead": _score(row["ahead"]) if row.get("ahead") else None,
                    "seeds": tuple(map(_number, row.get("seeds", ()))),
                    "own_units": {k: _score(v) for k, v in row.get("own_units", {}).items()},
                }
            )
            for row in content["rows"]
        )
        further: dict[str, Any] = {}
        if found := content.get("reliability"):
            further["reliability"] = Reliability(**found)
        if found := content.get("coverage"):
            further["coverage"] = Coverage.from_json(found)
        if found := content.get("unlike"):
            further["unlike"] = UnlikeTraining.from_json(found)
        if found := content.get("sets"):
            further["sets"] = SetCoverage.from_json(found)
        return cls(**{"units": {}, **content, "rows": rows, **further})


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score(content: dict[str, float | None]) -> Score:
    mean, half_width = content["mean"], content["half_width"]
    if mean is None:
        return Score(math.nan, math.nan)
    return Score(mean, half_width)


def _units(content: Mapping[str, Any]) -> dict[str, int]:
    return {str(axis): int(count) for axis, count in content.get("val_units", {}).items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
