"""The plots of a meta-test, as plotly figures without the colours of a theme.

All text from run files goes through `label`: plotly reads tags in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from plotly import graph_objects as go

from raymeta.console.text import plus_minus
from raymeta.evaluation.query_scores import QueryScores
from raymeta.evaluation.scores import MetaTest, Row, Score, Verdict

# They read on white and on black, also for the colour-blind (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    *("#3b82c4", "#d9822b", "#1f9e77", "#d1495b", "#a86fb5", "#8a8f98"),
)
SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
VERDICT_COLOURS: dict[Verdict, str] = {
    "beaten": GREEN,
    "undecided": ORANGE,
    "better": RED,
    "too few units": GREY,
    "not finite": GREY,
}
_ROW_HEIGHT, MARGIN = 46, 110  # pixels
_MOST_NAMED = 40  # units whose names have room below their bars
_LONGEST_LABEL = 28  # characters before a line break


def label(text: object, longest: int = 80) -> str:
    """Text as plotly shows it literally, cut if it is long."""
    shown = str(text)
    return escape(shown if len(shown) <= longest else f"{shown[: longest - 1]}…")


def _broken(text: str) -> str:
    """A label over two or three lines, so that it leaves a phone room for the plot."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= _LONGEST_LABEL:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "<br>".join(label(part, 40) for part in [*lines, line])


def score_dot(score: Score, name: str, colour: str, remark: str = "") -> go.Scatter:
    """A row with a score and its interval."""
    hover = f"{label(name)}: {plus_minus(score.mean, score.half_width)}{remark}"
    half = score.half_width
    known = half is not None and math.isfinite(half)
    return go.Scatter(
        x=[score.mean],
        y=[_broken(name)],
        mode="markers",
        marker={"size": 11, "color": colour, "symbol": "circle" if known else "circle-open"},
        error_x={"type": "data", "array": [half], "thickness": 2.5, "width": 5} if known else None,
        hovertemplate=f"{hover}<extra></extra>",
        showlegend=False,
    )


def rows_layout(count: int, title: str) -> dict[str, Any]:
    """The layout of a plot with a row for each of `count` scores."""
    return {
        "height": MARGIN + _ROW_HEIGHT * count,
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "xaxis": {"title": {"text": title}, "zeroline": False},
    }


def score_figure(result: MetaTest) -> go.Figure:
    """The score of each row with its 95 % interval, the run's network first."""
    figure = go.Figure()
    for number, row in enumerate(result.rows):
        if math.isfinite(row.score.mean):
            colour = BLUE if number == 0 else GREY
            figure.add_trace(score_dot(row.score, row.label, colour))
    first = result.rows[0].score.mean
    if math.isfinite(first):
        figure.add_vline(x=first, line={"width": 1, "dash": "dot", "color": BLUE})
    better = "higher" if result.higher_is_better else "lower"
    title = f"{label(result.metric)} ({better} is better)"
    figure.update_layout(rows_layout(len(figure.data), title))
    if result.metric == "accuracy":  # intervals of few units leave its range
        ends = [row.score.mean - (row.score.half_width or 0) for row in result.rows]
        low = max(0.0, min(filter(math.isfinite, ends), default=0.0))
        figure.update_xaxes(range=[low - 0.02, 1.02])
    return figure


def lead_figure(result: MetaTest) -> go.Figure:
    """Draws the network's lead over each control on the same queries."""
    figure = go.Figure()
    for row in result.controls:
        if row.ahead is not None and math.isfinite(row.ahead.mean):
            verdict = result.verdict(row)
            colour = VERDICT_COLOURS[verdict]
            figure.add_trace(score_dot(row.ahead, row.label, colour, f"<br>{verdict}"))
    figure.add_vline(x=0, line={"width": 1.5, "color": GREY})
    title = f"lead over it ({label(result.metric)})"
    return figure.update_layout(rows_layout(len(figure.data), title))


def curve_figure(result: MetaTest) -> go.Figure | None:
    """The score after each adaptation step; None if nothing adapts by steps."""
    rows = [row for row in result.rows if len(row.curve) > 1]
    if not rows:
        return None
    figure = go.Figure()
    for row, colour in zip(rows, SERIES_COLOURS, strict=False):
        steps = list(range(len(row.curve)))
        figure.add_traces(_band(row, steps, colour))
    return figure.update_layout(
        xaxis={
            "title": {"text": "adaptation steps on the support set"},
            "rangemode": "tozero",
            "tickformat": "d",
            "dtick": max(1, (max(len(row.curve) for row in rows) - 1) // 10),
        },
        yaxis={"title": {"text": label(result.metric)}},
    )


def _band(row: Row, steps: list[int], colour: str) -> list[go.Scatter]:
    means = [score.mean for score in row.curve]
    widths = [score.half_width or 0.0 for score in row.curve]
    ends = [m + w for m, w in zip(means, widths, strict=True)]
    ends += [m - w for m, w in reversed(list(zip(means, widths, strict=True)))]
    band = go.Scatter(
        x=[*steps, *reversed(steps)],
        y=ends,
        fill="toself",
        line={"width": 0},
        fillcolor=colour,
        opacity=0.18,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=row.name,
    )
    line = go.Scatter(
        x=steps,
        y=means,
        name=label(row.label, 34),
        line={"color": colour, "width": 2.5},
        legendgroup=row.name,
        hovertemplate="%{y:.3f} after %{x} steps",
    )
    return [band, line]


def _unit(axis: str, number: int, known: Sequence[str]) -> str:
    """Names a unit of an axis; a name that is only a number gets the axis before it."""
    name = known[number] if 0 <= number < len(known) else str(number)
    return f"{label(axis, 20)} {label(name, 40)}" if name.isdigit() else label(name, 40)


def gain_figure(
    result: MetaTest, scores: QueryScores, axis: str, known: Sequence[str] = ()
) -> go.Figure | None:
    """The lead over each control on every unit of an axis, a writer say; None for one unit.

    `known` names the units by their ids.
    """
    ids = scores.queries.units[axis].reshape(-1)
    names, codes = np.unique(ids, return_inverse=True)
    if len(names) < 2:
        return None
    counts = np.bincount(codes)
    sign = 1 if result.higher_is_better else -1

    def means(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(codes, values.reshape(-1)) / counts
        return found

    own = means(scores.own.mean(axis=0))
    rows = [row for row in result.controls if row.name in scores.controls]
    rows.sort(key=lambda row: row.ahead.mean if row.ahead else math.inf)
    if not rows:
        return None
    figure = go.Figure()
    titles = [_unit(axis, n, known) for n in names.tolist()]
    leads = {row.name: sign * (own - means(scores.controls[row.name])) for row in rows}
    order = np.argsort(-leads[rows[0].name], kind="stable")
    for number, row in enumerate(rows):
        lead = leads[row.name][order]
        figure.add_trace(
            go.Bar(
                x=[titles[n] for n in order],
                y=lead,
                name=label(row.label, 34),
                visible=True if number == 0 else "legendonly",
                marker={"color": [GREEN if value > 0 else RED for value in lead]}
                if number == 0
                else {},
                hovertemplate="%{x}: ahead by %{y:.3f}",
            )
        )
    return figure.update_layout(
        barmode="group",
        xaxis={
            "type": "category",
            "tickangle": -60 if len(names) > 6 else 0,
            "automargin": True,
            "showticklabels": len(names) <= _MOST_NAMED,
        },
        yaxis={"title": {"text": f"lead ({label(result.metric)})"}, "zeroline": True},
    )
