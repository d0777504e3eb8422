"""The plots of a run's trials.

A trace of one trial carries `meta: {"trial": number, "state": status}`, by which the page filters
and highlights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from raymeta.console.text import leaf, plus_minus, value_text
from raymeta.experiment.schema import Experiment
from raymeta.report.plots import BLUE, GREEN, GREY, MARGIN, ORANGE, PURPLE, RED, label
from raymeta.report.words import STATUS_WORDS
from raymeta.search.records import TrialRecord, pareto_front

STATE_COLOURS = {
    "completed": BLUE,
    "early_stopped": GREY,
    "failed": RED,
    "abandoned": PURPLE,
    "running": ORANGE,
}
_UNUSED = -0.15  # where a trial crosses the axis of a key that it does not use
MOST_TRIALS = 200  # in plots with a line for each
Trials = Mapping[int, TrialRecord]  # by their number, from 1


def shown_trials(records: Sequence[TrialRecord], sign: int) -> dict[int, TrialRecord]:
    """All trials by their number; of very many the best."""
    numbered = dict(enumerate(records, start=1))
    if len(numbered) <= MOST_TRIALS:
        return numbered
    ranked = sorted(numbered, key=lambda n: _rank(numbered[n], sign))
    return {n: numbered[n] for n in sorted(ranked[:MOST_TRIALS])}


def _rank(record: TrialRecord, sign: int) -> float:
    return -sign * record.curve[-1][1] if record.curve else math.inf


def _mark(number: int, record: TrialRecord) -> dict[str, Any]:
    return {"trial": number, "state": record.status}


def _point_text(record: TrialRecord) -> str:
    pairs = (f"{label(leaf(k), 30)} {label(value_text(v), 30)}" for k, v in record.point.items())
    return "<br>".join(pairs)


def learning_figure(trials: Trials, experiment: Experiment) -> go.Figure | None:
    """The validation metric of each trial while it was trained; None if no trial has reported."""
    figure = go.Figure()
    for number, record in trials.items():
        if record.curve:
            steps, values, spreads = zip(*record.curve, strict=True)
            last = plus_minus(values[-1], spreads[-1])
            head = f"trial {number}, {STATUS_WORDS[record.status]}: {last}"
            figure.add_trace(
                go.Scatter(
                    x=steps,
                    y=values,
                    mode="lines+markers",
                    marker={"size": 5},
                    line={"color": STATE_COLOURS[record.status], "width": 1.8},
                    meta=_mark(number, record),
                    hovertemplate=f"{head}<br>{_point_text(record)}<extra></extra>",
                    showlegend=False,
                )
            )
    if not figure.data:
        return None
    return figure.update_layout(
        xaxis={"title": {"text": "meta-steps"}, "rangemode": "tozero"},
        yaxis={"title": {"text": label(experiment.metric)}},
        hovermode="closest",
    )


def progress_figure(trials: Trials, experiment: Experiment) -> go.Figure | None:
    """Each trial's last value ± its standard error, and the best of the finished ones so far."""
    sign, best = experiment.problem.sign, -math.inf
    figure, xs, ys = go.Figure(), [], []
    for number, record in trials.items():
        if not record.curve:
            continue
        _, value, sem = record.curve[-1]
        if record.status == "completed" and sign * value > best:
            best = sign * value
        if math.isfinite(best):
            xs.append(number)
            ys.append(sign * best)
        head = f"trial {number}, {STATUS_WORDS[record.status]}: {plus_minus(value, sem)}"
        figure.add_trace(
            go.Scatter(
                x=[number],
                y=[value],
                mode="markers",
                error_y=None if sem is None else {"type": "data", "array": [sem], "width": 3},
                marker={"size": 8, "color": STATE_COLOURS[record.status]},
                meta=_mark(number, record),
                hovertemplate=f"{head}<br>{_point_text(record)}<extra></extra>",
                showlegend=False,
            )
        )
    if len(figure.data) < 2:
        return None
    line = {"shape": "hv", "width": 2, "color": GREEN}
    figure.add_trace(
        go.Scatter(x=xs, y=ys, mode="lines", line=line, name="best so far", hoverinfo="skip")
    )
    return figure.update_layout(
        xaxis={"title": {"text": "trial"}},
        yaxis={"title": {"text": label(experiment.metric)}},
        showlegend=True,
    )


def time_figure(trials: Trials) -> go.Figure | None:
    """Draws when each trial ran; None if no times were recorded."""
    figure, count = go.Figure(), 0
    for number, record in trials.items():
        if record.began_s is not None and record.latest_s > record.began_s:
            count += 1
            length = record.latest_s - record.began_s
            figure.add_trace(
                go.Bar(
                    x=[length],
                    base=[record.began_s],
                    y=[str(number)],
                    orientation="h",
                    width=0.7,
                    marker={"color": STATE_COLOURS[record.status]},
                    meta=_mark(number, record),
                    hovertemplate=f"trial {number}, {STATUS_WORDS[record.status]}: {length:.0f} s"
                    "<extra></extra>",
                    showlegend=False,
                )
            )
    if not count:
        return None
    return figure.update_layout(
        height=MARGIN + min(20 * count, 700),
        barmode="overlay",
        xaxis={"title": {"text": "seconds since the search began"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": "trial"},
            "type": "category",
            "autorange": "reversed",
        },
    )


def parallel_figure(trials: Trials, experiment: Experiment) -> go.Figure | None:
    """Parallel coordinates of the searched keys and the metric; None with less than two trials."""
    keys = [k for k in experiment.search.space if any(k in r.point for r in trials.values())]
    drawn = {n: r for n, r in trials.items() if r.curve}
    if len(drawn) < 2 or not keys:
        return None
    columns = [
        _Axis.of(key, [r.point.get(key) for r in drawn.values()], experiment) for key in keys
    ]
    metric = _Axis.of_metric(experiment, [r.curve[-1][1] for r in drawn.values()])
    columns.append(metric)
    goodness = [p if experiment.problem.sign > 0 else 1 - p for p in metric.places]
    figure = go.Figure()
    for row, (number, record) in enumerate(drawn.items()):
        head = f"trial {number}: {plus_minus(record.curve[-1][1], record.curve[-1][2])}"
        figure.add_trace(
            go.Scatter(
                x=list(range(len(columns))),
                y=[column.places[row] for column in columns],
                mode="lines+markers",
                line={"color": _shade(goodness[row]), "width": 2},
                marker={"size": 5},
                opacity=0.8,
                meta=_mark(number, record),
                hovertemplate=f"{head}<br>{_point_text(record)}<extra></extra>",
                showlegend=False,
            )
        )
    for x, column in enumerate(columns):
        figure.add_vline(x=x, line={"width": 1, "color": GREY})
        for place, text in column.ticks:
            figure.add_annotation(
                x=x, y=place, text=label(text, 12), showarrow=False, xanchor="left", xshift=4
            )
    return figure.update_layout(
        height=460,
        xaxis={
            "tickvals": list(range(len(columns))),
            "ticktext": [label(column.name, 24) for column in columns],
            "tickangle": 30,
            "range": [-0.2, len(columns) - 0.4],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis={"visible": False, "range": [_UNUSED - 0.08, 1.08]},
        hovermode="closest",
    )


class _Axis:
    """An axis of the parallel coordinates: places from 0 to 1, below them where a key is unused."""

    def __init__(
        self, name: str, places: list[float | None], ticks: list[tuple[float, str]]
    ) -> None:
        self.name = name
        self.places = [_UNUSED if place is None else place for place in places]
        self.ticks = [*ticks, (_UNUSED, "unused")] if None in places else ticks

    @classmethod
    def of(cls, key: str, values: list[Any], experiment: Experiment) -> _Axis:
        parameter = experiment.search.space[key]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        known = [v for v in values if v is not None]
        if parameter.choices is not None or len(numbers) < len(known):
            names = list(dict.fromkeys(map(str, parameter.choices or known)))
            places = {n: (i + 0.5) / len(names) for i, n in enumerate(names)}
            found = [None if v is None else places.get(str(v)) for v in values]
            return cls(leaf(key), found, [(place, name) for name, place in places.items()])
        return cls(leaf(key), *_scaled(values, log=bool(parameter.log)))

    @classmethod
    def of_metric(cls, experiment: Experiment, values: list[float]) -> _Axis:
        return cls(experiment.metric, *_scaled(values, log=False))


def _scaled(
    values: Sequence[float | None], *, log: bool
) -> tuple[list[float | None], list[tuple[float, str]]]:
    known = [v for v in values if v is not None]
    log = log and min(known, default=1) > 0
    low, high = min(known, default=0.0), max(known, default=1.0)

    def place(value: float) -> float:
        if high == low:
            return 0.5
        if log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    middle = math.sqrt(low * high) if log else (low + high) / 2
    ticks = [(place(v), f"{v:.3g}") for v in dict.fromkeys((low, middle, high))]
    return [None if v is None else place(v) for v in values], ticks


def _shade(place: float) -> str:
    """A colour for a place in 0 … 1, from grey over blue to orange; both themes show it well."""
    stops = ((138, 143, 152), (59, 130, 196), (217, 130, 43))
    at = 2 * place
    low = stops[min(int(at), 1)]
    high = stops[min(int(at), 1) + 1]
    part = at - min(int(at), 1)
    mixed = (round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def front_figure(records: Mapping[str, TrialRecord], experiment: Experiment) -> go.Figure | None:
    """The finished trials by both objectives, those on the Pareto front joined; None for one."""
    objectives = experiment.objectives
    if len(objectives) < 2:
        return None
    front = pareto_front(records, objectives)
    figure = go.Figure()
    for number, (trial_id, record) in enumerate(records.items(), start=1):
        cost = record.curve_of(1, objectives[1][0])
        if record.curve and cost:
            on_front = trial_id in front
            figure.add_trace(
                go.Scatter(
                    x=[cost[-1][1]],
                    y=[record.curve[-1][1]],
                    mode="markers",
                    marker={
                        "size": 11 if on_front else 7,
                        "color": GREEN if on_front else STATE_COLOURS[record.status],
                    },
                    meta=_mark(number, record),
                    hovertemplate=f"trial {number}{', on the front' * on_front}"
                    f"<br>{_point_text(record)}<extra></extra>",
                    showlegend=False,
                )
            )
    if not figure.data:
        return None
    steps = sorted((cost, value) for value, cost in front.values())
    if steps:
        xs, ys = zip(*steps, strict=True)
        line = {"shape": "hv", "color": GREEN}
        figure.add_trace(
            go.Scatter(x=xs, y=ys, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
        )
    return figure.update_layout(
        xaxis={"title": {"text": label(objectives[1][0])}},
        yaxis={"title": {"text": label(objectives[0][0])}},
    )
