"""The plots of what a meta-test has kept to be drawn: confusion, reliability, forecasts, fits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from plotly import graph_objects as go

from raymeta.evaluation.drawings import Bin, Confusion, DrawnFit, DrawnForecast
from raymeta.report.plots import BLUE, GREY, MARGIN, ORANGE, label

BAND = "rgba(59,130,196,0.18)"  # of the network's interval
_CELL, _MOST_WRITTEN = 30, 12  # pixels of a class; classes whose shares are written out


def confusion_figure(confusion: Confusion) -> go.Figure:
    """Draws the share of each class's queries (row) that got each answer (column), in percent."""
    counts = np.array(confusion.counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(totals > 0, totals, 1.0)
    names = [label(name, 24) for name in confusion.classes]
    places = list(range(len(names)))
    texts = list(zip(shares.tolist(), counts.tolist(), strict=True))
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=shares,
            customdata=np.round(counts, 1),
            text=[[_percent(*cell) for cell in zip(*row, strict=True)] for row in texts],
            texttemplate="%{text}" if len(names) <= _MOST_WRITTEN else "",
            zmin=0,
            zmax=100,
            colorscale=[[0, "rgba(59,130,196,0.04)"], [1, "rgba(59,130,196,0.65)"]],
            xgap=1,
            ygap=1,
            showscale=False,
            hovertemplate="%{customdata:.4~g} queries: %{z:.0f} %<extra></extra>",
        )
    )
    ticks = {"tickvals": places, "ticktext": names, "showgrid": False, "zeroline": False}
    return figure.update_layout(
        height=MARGIN + 60 + _CELL * len(names),
        xaxis={**ticks, "title": {"text": "answer"}, "tickangle": -45, "automargin": True},
        yaxis={
            **ticks,
            "title": {"text": "class"},
            "autorange": "reversed",
            "automargin": True,
        },
    )


def _percent(share: float, count: float) -> str:
    """A share as it is written into its cell; nothing for none."""
    if not count:
        return ""
    return "&lt;1" if share < 0.5 else f"{share:.0f}"


def reliability_figure(bins: tuple[Bin, ...]) -> go.Figure:
    """Draws the accuracy of answers against their predicted probability."""
    diagonal = go.Scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"dash": "dot", "color": GREY},
        name="as probable as said",
        hoverinfo="skip",
    )
    most = max(found.count for found in bins)
    dots = go.Scatter(
        x=[found.confidence for found in bins],
        y=[found.accuracy for found in bins],
        mode="lines+markers",
        line={"color": BLUE},
        marker={"color": BLUE, "size": [6 + 14 * (b.count / most) ** 0.5 for b in bins]},
        customdata=[found.count for found in bins],
        name="the network; large dots: many queries",
        hovertemplate="%{customdata} queries: probability %{x:.2f}, right %{y:.2f}<extra></extra>",
    )
    return go.Figure([diagonal, dots]).update_layout(
        height=360,
        xaxis={"title": {"text": "probability of the answer"}, "range": [-0.02, 1.02]},
        yaxis={"title": {"text": "share answered right"}, "range": [-0.02, 1.05]},
    )


def forecast_figure(drawn: DrawnForecast, shown: Mapping[str, str]) -> go.Figure:
    """The past of a series, what came, and forecasts; `shown` has the colour of each of those."""
    ahead = list(range(1, len(drawn.truth) + 1))
    past = list(range(1 - len(drawn.past), 1))
    # From the last known value on, so that the series is one line.
    known = go.Scatter(
        x=[*past, *ahead],
        y=[*drawn.past, *drawn.truth],
        mode="lines",
        line={"color": GREY, "width": 2.5},
        name="the series",
    )
    figure = go.Figure([known])
    if drawn.band is not None:
        low, high = drawn.band
        figure.add_trace(
            go.Scatter(
                x=[*ahead, *reversed(ahead)],
                y=[*high, *reversed(low)],
                fill="toself",
                fillcolor=BAND,
                line={"width": 0},
                hoverinfo="skip",
                name=f"{drawn.band_share:g} % interval",
            )
        )
    for whose, colour in shown.items():
        values = drawn.forecasts.get(whose, ())
        is_own = colour == BLUE
        figure.add_trace(
            go.Scatter(
                x=ahead[: len(values)],
                y=values,
                mode="lines+markers" if is_own else "lines",
                marker={"size": 5},
                line={"color": colour, "width": 2.5 if is_own else 1.6}
                | ({} if is_own else {"dash": "dash"}),
                name=label(whose, 40),
            )
        )
    figure.add_vline(x=0.5, line={"width": 1, "dash": "dot", "color": GREY})
    return figure.update_layout(
        height=300,
        showlegend=False,
        hovermode="x unified",
        xaxis={"title": {"text": "steps after the cut"}, "zeroline": False},
        yaxis={
            "title": {"text": label(drawn.series, 40)},
            "zeroline": False,
            "tickformat": ",.5~g",
        },
    )


def fit_figure(fit: DrawnFit) -> go.Figure:
    """A regression on one number: support points, the truth and the network's answers."""
    xs, ys, answers = zip(*fit.query, strict=True) if fit.query else ((), (), ())
    known = list(zip(*fit.support, strict=True)) or [(), ()]
    return go.Figure(
        [
            go.Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 3}, name="truth"),
            go.Scatter(
                x=xs, y=answers, mode="lines", line={"color": BLUE, "width": 2.5}, name="network"
            ),
            go.Scatter(
                x=known[0],
                y=known[1],
                mode="markers",
                marker={"color": ORANGE, "size": 10, "symbol": "diamond"},
                name="support",
            ),
        ]
    ).update_layout(height=340, xaxis={"title": {"text": "x"}}, yaxis={"title": {"text": "y"}})
