"""The records of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raymeta.search.space import Point

Status = Literal["running", "completed", "early_stopped", "failed", "abandoned"]
Source = Literal["given", "sobol", "bo", "random", "fallback", "earlier"]
Curve = list[tuple[float, float, float | None]]  # (step, mean, standard error or None)


def pareto_front(
    records: Mapping[str, TrialRecord], objectives: Sequence[tuple[str, Literal["min", "max"]]]
) -> dict[str, list[float]]:
    """Computes the Pareto front: the values of non-dominated completed trials, by trial."""
    values = {
        trial_id: [r.curve_of(number, name)[-1][1] for number, (name, _) in enumerate(objectives)]
        for trial_id, r in records.items()
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
        """Restores a record from JSON of its `dataclasses.asdict`."""

        def curve(points: list[list[Any]]) -> Curve:
            return [(step, mean, sem) for step, mean, sem in points]

        return cls(
            point=content["point"],
            source=content["source"],
            status=content["status"],
            curve=curve(content["curve"]),
            others={name: curve(points) for name, points in content.get("others", {}).items()},
            reason=content.get("reason", ""),
            began_s=content.get("began_s"),
            latest_s=content.get("latest_s", 0.0),
            gain=content.get("gain"),
            passed_over=content.get("passed_over", ""),
        )


def noise_known(records: Mapping[str, TrialRecord], metrics: Sequence[str]) -> set[str]:
    """Finds the metrics whose standard error every completed trial reported."""
    completed = [r.curves(metrics) for r in records.values() if r.status == "completed"]
    return {m for m in metrics if completed and all(c[m][-1][2] is not None for c in completed)}
