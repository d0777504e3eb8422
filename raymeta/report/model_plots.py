"""What the search's model makes of its space, drawn from the data that `raymeta explain` left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
from plotly import graph_objects as go

from raymeta.console.text import leaf
from raymeta.experiment.schema import Experiment
from raymeta.report.facts import Analysis
from raymeta.report.plots import BLUE, GREY, ORANGE, SERIES_COLOURS, label

_Z_95 = 1.96


def importance_figure(importance: dict[str, float], metric: str) -> go.Figure:
    """Each key's share of the metric's variance, the greatest on top."""
    keys = sorted(importance, key=lambda key: importance[key])
    figure = go.Figure(
        go.Bar(
            x=[100 * importance[key] for key in keys],
            y=[label(key, 40) for key in keys],
            orientation="h",
            marker={"color": BLUE},
            hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
        )
    )
    return figure.update_layout(
        height=110 + 32 * len(keys),
        xaxis={"title": {"text": f"share of the variance of {label(metric)}, %"}},
        yaxis={"automargin": True, "type": "category"},
    )


def analysis_figure(analysis: Analysis, experiment: Experiment) -> go.Figure | None:
    """Draws an analysis in the metric's own units; None if nothing in it can be drawn.

    A kind that `_DRAWN` does not name is drawn by its columns, as they are.
    """
    _, draw = _DRAWN.get(analysis.kind, ("", _by_columns))
    return draw(analysis, experiment)


def analysis_title(analysis: Analysis) -> str:
    """The heading of its plot."""
    words, draw = _DRAWN.get(analysis.kind, (analysis.kind, _by_columns))
    keys = _parameters(analysis) if draw in (_slice, _contour) else []
    return f"{words}: {' and '.join(keys) or analysis.of}"


def _parameters(analysis: Analysis) -> list[str]:
    """The searched keys among the columns of a slice or a contour: those before the mean."""
    names = list(analysis.columns)
    mean = analysis.ending("_mean")
    return names[: names.index(mean)] if mean else []


def _axis(key: str, experiment: Experiment) -> dict[str, object]:
    parameter = experiment.search.space.get(key)
    axis: dict[str, object] = {"title": {"text": label(leaf(key), 40)}}
    if parameter is None or not parameter.log or not parameter.low or not parameter.high:
        return axis
    low, high = parameter.low, parameter.high
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{first}e{decade}") for decade in decades for first in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    text = [f"{tick:g}" for tick in inside]
    return {**axis, "type": "log", "tickvals": inside, "ticktext": text}


def _is_numeric(values: Sequence[float]) -> bool:
    return bool(np.isfinite(values).all())


def _slice(analysis: Analysis, experiment: Experiment) -> go.Figure | None:
    keys, mean_column = _parameters(analysis), analysis.ending("_mean")
    if len(keys) != 1 or not analysis.columns[mean_column]:
        return None
    metric = mean_column.removesuffix("_mean")
    mean = np.array(analysis.numbers(mean_column))
    spread = _Z_95 * np.nan_to_num(analysis.numbers(f"{metric}_sem"))
    xs = analysis.numbers(keys[0])
    sampled = np.array([text == "True" for text in analysis.columns.get("sampled", [])])
    if not _is_numeric(xs):  # a choice
        names = analysis.columns[keys[0]]
        first = {name: n for n, name in reversed(list(enumerate(names)))}
        rows = list(first.values())
        dots = go.Scatter(
            x=[label(names[n], 24) for n in rows],
            y=mean[rows],
            mode="markers",
            marker={"size": 10, "color": BLUE},
            error_y={"type": "data", "array": spread[rows]},
            showlegend=False,
        )
        return go.Figure(dots).update_layout(yaxis={"title": {"text": label(metric)}})
    order = np.argsort(xs, kind="stable")
    x, mean, spread = np.array(xs)[order], mean[order], spread[order]
    band = go.Scatter(
        x=[*x, *x[::-1]],
        y=[*(mean + spread), *(mean - spread)[::-1]],
        fill="toself",
        fillcolor=BLUE,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        name="95 % of the model",
    )
    line = go.Scatter(x=x, y=mean, line={"color": BLUE}, name="model", mode="lines")
    figure = go.Figure([band, line])
    if len(sampled) == len(x):
        at = sampled[order]
        ticks = {"symbol": "line-ns-open", "size": 11, "color": ORANGE}
        figure.add_trace(
            go.Scatter(x=x[at], y=mean[at], mode="markers", marker=ticks, name="values tried")
        )
    return figure.update_layout(
        xaxis=_axis(keys[0], experiment), yaxis={"title": {"text": label(metric)}}
    )


def _contour(analysis: Analysis, experiment: Experiment) -> go.Figure | None:
    keys, mean_column = _parameters(analysis), analysis.ending("_mean")
    if len(keys) != 2 or not analysis.columns[mean_column]:
        return None
    metric = mean_column.removesuffix("_mean")
    x, y, z = (np.array(analysis.numbers(c)) for c in (*keys, mean_column))
    sampled = np.array([text == "True" for text in analysis.columns.get("sampled", [])])
    if not (_is_numeric(x.tolist()) and _is_numeric(y.tolist())) or len(sampled) != len(x):
        return None
    grid = ~sampled
    # What the model is unsure of by far must not look like hills.
    spread = np.nan_to_num(analysis.numbers(f"{metric}_sem"))
    middle = (z[grid].max() + z[grid].min()) / 2
    half = max((z[grid].max() - z[grid].min()) / 2, float(np.median(spread)), 1e-9)
    surface = go.Contour(
        x=x[grid],
        y=y[grid],
        z=z[grid],
        zmin=middle - half,
        zmax=middle + half,
        colorscale="Viridis",
        contours={"coloring": "heatmap"},
        colorbar={"title": {"text": label(metric, 16)}, "thickness": 12, "tickformat": ".3~g"},
        hovertemplate=f"{label(leaf(keys[0]))} %{{x:.3g}}<br>{label(leaf(keys[1]))} %{{y:.3g}}"
        f"<br>{label(metric)} %{{z:.3f}}<extra></extra>",
    )
    dots = go.Scatter(
        x=x[sampled],
        y=y[sampled],
        mode="markers",
        marker={"color": "white", "size": 7, "line": {"color": "black", "width": 1}},
        name="trials",
        showlegend=False,
        hoverinfo="skip",
    )
    return go.Figure([surface, dots]).update_layout(
        xaxis=_axis(keys[0], experiment), yaxis=_axis(keys[1], experiment)
    )


def _cross_validation(analysis: Analysis, _: Experiment) -> go.Figure | None:
    observed, predicted = analysis.numbers("observed"), analysis.numbers("predicted")
    if not observed or not predicted:
        return None
    ends = [min(observed + predicted), max(observed + predicted)]
    figure = go.Figure(
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"dash": "dot", "color": GREY}, name="as observed"
        )
    )
    figure.add_trace(
        go.Scatter(
            x=observed,
            y=predicted,
            mode="markers",
            marker={"size": 8, "color": BLUE},
            error_x={"type": "data", "array": analysis.numbers("observed_95_ci"), "thickness": 1},
            error_y={"type": "data", "array": analysis.numbers("predicted_95_ci"), "thickness": 1},
            name="trials",
            hovertemplate="observed %{x:.3f}, predicted %{y:.3f}",
        )
    )
    return figure.update_layout(
        xaxis={"title": {"text": f"observed {label(analysis.of)}"}},
        yaxis={"title": {"text": "predicted from the other trials"}},
    )


def _importance(analysis: Analysis, _: Experiment) -> go.Figure | None:
    shares = [abs(share) for share in analysis.numbers("sensitivity")]
    keys = analysis.columns.get("parameter_name", [])
    return importance_figure(dict(zip(keys, shares, strict=True)), analysis.of) if keys else None


def _by_columns(analysis: Analysis, _: Experiment) -> go.Figure | None:
    """Columns of numbers over the first column: bars over names, dots over numbers."""
    first, *others = analysis.columns or {"": []}
    numbers = {name: analysis.numbers(name) for name in others}
    drawn = {name: ys for name, ys in numbers.items() if ys and _is_numeric(ys)}
    if not drawn:
        return None
    xs = analysis.numbers(first)
    figure = go.Figure()
    for (name, ys), colour in zip(drawn.items(), cycle(SERIES_COLOURS), strict=False):
        if _is_numeric(xs):
            marker = {"size": 8, "color": colour}
            figure.add_trace(
                go.Scatter(x=xs, y=ys, mode="markers", marker=marker, name=label(name))
            )
        else:
            names = [label(text, 24) for text in analysis.columns[first]]
            figure.add_trace(go.Bar(x=names, y=ys, marker={"color": colour}, name=label(name)))
    return figure.update_layout(xaxis={"title": {"text": label(first)}}, showlegend=len(drawn) > 1)


_DRAWN: dict[str, tuple[str, Callable[[Analysis, Experiment], go.Figure | None]]] = {
    "importance": ("What matters", _importance),
    "slice": ("Along one key", _slice),
    "contour": ("Over two keys", _contour),
    "cross_validation": ("Each trial predicted from the others", _cross_validation),
}
