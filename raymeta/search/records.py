"""The records of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

from raymeta.errors import shown
from raymeta.experiment.parameter import is_finite
from raymeta.search.plain_values import is_number, kind_of
from raymeta.search.space import Point, Space

T = TypeVar("T")
_LONGEST_S = 1e10  # seconds of a search: 300 years
Status = Literal["running", "completed", "early_stopped", "failed", "abandoned"]
Source = Literal["given", "sobol", "bo", "random", "fallback", "earlier"]
Curve = list[tuple[float, float, float | None]]  # (step, mean, standard error or None)


def measured(records: Mapping[str, TrialRecord], metrics: Sequence[str]) -> dict[str, TrialRecord]:
    """Leaves out ended trials that lack a metric, as only a stranger notes them."""
    ended = ("completed", "early_stopped")
    return {
        i: r for i, r in records.items() if r.status not in ended or all(r.curves(metrics).values())
    }


def within(space: Space, records: Mapping[str, TrialRecord]) -> dict[str, TrialRecord]:
    """Leaves out trials with a value of a type that its key has not, as only a stranger notes."""

    def fits(point: Point) -> bool:
        pairs = [(p.first, point[p.name]) for p in space.parameters if p.name in point]
        return all(
            is_number(value) if is_number(first) else kind_of(value) is kind_of(first)
            for first, value in pairs
        )

    return {i: r for i, r in records.items() if fits(r.point)}


def pareto_front(
    records: Mapping[str, TrialRecord], objectives: Sequence[tuple[str, Literal["min", "max"]]]
) -> dict[str, list[float]]:
    """Computes the Pareto front: the values of non-dominated completed trials, by trial."""
    values = {
        trial_id: [r.curve_of(number, name)[-1][1] for number, (name, _) in enumerate(objectives)]
        for trial_id, r in measured(records, [name for name, _ in objectives]).items()
        if r.status == "completed"
    }
    signs = [1 if mode == "max" else -1 for _, mode in objectives]

    def dominates(a: list[float], b: list[float]) -> bool:
        gains = [sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    return {i: v for i, v in values.items() if not any(dominates(o, v) for o in values.values())}


@dataclass(frozen=True)
class Proposal:
    """A point that the search proposes to try.

    `source` is `fallback` if the model failed and a random point replaces its proposal; `reason` is
    then the library's message. `gain` is the model's bound on the remaining gain, in the metric's
    units; None if it was not requested or there was no model. `passed_over` says why the point
    replaces one that is known to fail.
    """

    point: Point
    source: Source
    reason: str = ""
    gain: float | None = None
    passed_over: str = ""


@dataclass
class TrialRecord:
    """All that the search knows about a trial; the records are the searcher's whole state.

    `curve` holds the (first) objective as reported, finite means only, and `others` the other
    metrics that count, by name.  `source` says where the point came from: given by the user, Ax's
    Sobol sequence, its model (Bayesian optimisation), drawn at random, drawn at random because the
    model failed (`fallback`; `reason` is then the library's message), or an earlier search.
    `began_s` and `latest_s` say when it began and when it was last heard of, in seconds of the
    search, over all sessions (None: unknown); comparisons ignore both.  `gain` and
    `passed_over` are those of the proposal.
    """

    point: Point
    source: Source
    status: Status = "running"
    curve: Curve = field(default_factory=list)
    others: dict[str, Curve] = field(default_factory=dict)
    reason: str = ""
    began_s: float | None = field(default=None, compare=False)
    latest_s: float = field(default=0.0, compare=False)
    gain: float | None = None
    passed_over: str = ""

    def curve_of(self, number: int, metric: str) -> Curve:
        """The curve of the search's `number`-th metric."""
        return self.curve if number == 0 else self.others.get(metric, [])

    def curves(self, metrics: Sequence[str]) -> dict[str, Curve]:
        """The curve of each metric of the search, by name."""
        return {metric: self.curve_of(number, metric) for number, metric in enumerate(metrics)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialRecord:
        """Restores a record from JSON of its `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: it is of another form, as a stranger may write it.
        """
        found = cls(
            point=_point(content["point"]),
            source=_one_of(get_args(Source), content["source"], "source"),
            status=_one_of(get_args(Status), content["status"], "status"),
            curve=_curve(content["curve"]),
            others={name: _curve(points) for name, points in content.get("others", {}).items()},
            reason=_text(content.get("reason", ""), "reason"),
            began_s=None if content.get("began_s") is None else clock(content["began_s"]),
            latest_s=clock(content.get("latest_s", 0.0)),
            gain=_number_or_none(content.get("gain"), "gain"),
            passed_over=_text(content.get("passed_over", ""), "passed_over"),
        )
        if found.status in ("completed", "early_stopped") and not found.curve:
            raise ValueError(f"a trial that is {found.status} has a curve")
        return found


def curve_point(content: Any) -> tuple[float, float, float | None]:
    """A point of a curve from JSON.

    Raises:
        TypeError, ValueError: it is none.
    """
    step, mean, sem = content
    spread = _number_or_none(sem, "a standard error")
    if spread is not None and spread < 0:
        raise ValueError(f"a standard error must be >= 0, but is {shown(sem)}")
    return checked_number(step, "a step"), checked_number(mean, "a mean"), spread


def checked_number(value: Any, what: str) -> float:
    """A finite number from JSON.

    Raises:
        ValueError: it is none.
    """
    if not is_number(value):
        raise ValueError(f"{what} must be a finite number, but is {shown(value)}")
    return value


def clock(value: Any) -> float:
    """Seconds of a search from JSON.

    Raises:
        ValueError: they are none.
    """
    if abs(checked_number(value, "a time")) > _LONGEST_S:
        raise ValueError(f"a time must be at most {_LONGEST_S:.0e} seconds, but is {shown(value)}")
    return float(value)


def _number_or_none(value: Any, what: str) -> float | None:
    return None if value is None else checked_number(value, what)


def _curve(content: Any) -> Curve:
    curve = [curve_point(point) for point in content]
    if any(later[0] <= earlier[0] for earlier, later in pairwise(curve)):
        raise ValueError("the steps of a curve must grow")
    return curve


def _point(content: Any) -> Point:
    if not isinstance(content, dict):
        raise ValueError(f"a point must be a mapping, but is {shown(content)}")  # noqa: TRY004
    for key, value in content.items():
        # A choice may be infinite, but no whole number so large that it is no float.
        if kind_of(value) is None or (isinstance(value, int) and not is_finite(value)):
            raise ValueError(f"{key!r:.100} of a point cannot be {shown(value)}")
    return content


def _one_of(known: tuple[T, ...], value: Any, what: str) -> T:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(str, known))}, not {shown(value)}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, but is {shown(value)}")  # noqa: TRY004
    return value


def noise_known(records: Mapping[str, TrialRecord], metrics: Sequence[str]) -> set[str]:
    """Finds the metrics whose standard error every completed trial reported."""
    completed = [r.curves(metrics) for r in records.values() if r.status == "completed"]
    return {
        m for m in metrics if completed and all(c[m] and c[m][-1][2] is not None for c in completed)
    }
