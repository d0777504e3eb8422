"""Attributions drawn over their examples: signals, pen strokes, or the words of a text.

Red speaks for the answer, blue against it.

Shape legend: T time steps, C channels.
"""

from __future__ import annotations

from html import escape

import numpy as np
from plotly.colors import sample_colorscale
from plotly.graph_objects import Bar, Figure, Heatmap, Scatter
from plotly.subplots import make_subplots

from raymeta.inference.attribution import Attribution
from raymeta.report.page import Page

_TITLE = "What the answers are made of"
MOST_EXAMPLES = 20  # of a page
MOST_CHANNELS = 8  # of an example
_AGAINST, _FOR = (33, 102, 172), (178, 24, 43)  # blue and red that show on light and dark ground
_COLOURS = [f"rgb{_AGAINST}", "rgb(247, 247, 247)", f"rgb{_FOR}"]
_INK = "#888"


def attribution_page(found: Attribution) -> str:
    """A self-contained page of HTML with the first `MOST_EXAMPLES` examples."""
    method = found.method.replace("_", " ")
    page = Page("What the answers are made of")
    page.header(
        "What the answers are made of",
        f"By {method}; the baseline is {_BASELINES[found.baseline]}.",
    )
    # Words without attribution have the page's own ground.
    middle = "transparent" if found.words else _COLOURS[1]
    colours = f"background: linear-gradient(90deg, {_COLOURS[0]}, {middle}, {_COLOURS[2]})"
    page.markup(
        f"<p class='dim'>against the answer <span class='scale' style='{colours}'></span> for the "
        "answer</p>"
    )
    num_examples = len(found.values)
    for number in range(min(num_examples, MOST_EXAMPLES)):
        title = _caption(page, found, number)
        if found.words:
            page.markup(_words(found, number))
        else:
            page.plot(figure(found, number), title)
    if num_examples > MOST_EXAMPLES:
        page.text(f"The first {MOST_EXAMPLES} of {num_examples} examples.", "dim")
    return page.html()


_BASELINES = {
    "support": "the mean of the support set",
    "zeros": "zero (the mean of meta-training, where features are standardised)",
}


def figure(found: Attribution, number: int) -> Figure:
    """A plot of one example of numbers.

    Pen strokes are drawn as they were written, beside the attribution of each channel; signals have
    a row each, in the colours of their attributions.  With many channels, those are shown that
    count the most.  Where the networks pool by attention, its weights are below.

    Raises:
        ValueError: the examples are texts.
    """
    if found.x is None:
        raise ValueError("texts have no plot; attribution_page shows their words")
    return _strokes(found, number) if found.are_strokes else _signals(found, number)


def _signals(found: Attribution, number: int) -> Figure:
    assert found.x is not None, "the examples are numbers"
    length = int(found.lengths[number])
    x, values = found.x[number, :length], found.values[number, :length]
    shown = _most_important(values)
    titles = [escape(found.channels[channel]) for channel in shown]
    attention = None if found.attention is None else found.attention[number, :length]
    rows = len(shown) + (attention is not None)
    plot = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.35 / max(rows, 4))
    steps = np.arange(1, length + 1)
    for row, (channel, title) in enumerate(zip(shown, titles, strict=True), start=1):
        marker = {
            "color": values[:, channel],
            "coloraxis": "coloraxis",
            "size": 9 if length <= 150 else 6,
            "line": {"color": _INK, "width": 0.5},
        }
        plot.add_trace(
            Scatter(
                x=steps,
                y=x[:, channel],
                mode="lines+markers",
                line={"color": "#bbb", "width": 1.5},
                marker=marker,
                customdata=values[:, channel],
                hovertemplate="step %{x}: %{y:.4g}<br>"
                "attribution %{customdata:+.3g}<extra></extra>",
            ),
            row,
            1,
        )
        plot.update_yaxes(title_text=title, row=row, col=1)
    if attention is not None:
        plot.add_trace(_attention_bars(steps, attention), rows, 1)
        plot.update_yaxes(title_text="attention", rangemode="tozero", row=rows, col=1)
    plot.update_xaxes(title_text="time step", row=rows, col=1)
    return _laid_out(plot, values, height=90 + 130 * rows)


def _strokes(found: Attribution, number: int) -> Figure:
    """The pen's path, each segment in the colour of its end, beside the channels."""
    assert found.x is not None, "the examples are numbers"
    length = int(found.lengths[number])
    (x, y, pen), values = found.x[number, :length, :3].T, found.values[number, :length]
    attention = None if found.attention is None else found.attention[number, :length]
    rows = 1 + (attention is not None)
    plot = make_subplots(
        rows,
        2,
        column_widths=[0.42, 0.58],
        row_heights=[0.78, 0.22][:rows],
        horizontal_spacing=0.12,
        specs=[[{"rowspan": rows}, {}], *[[None, {}]] * (rows - 1)],
        shared_xaxes=True,
    )
    for trace in _segments(x, y, pen, values.sum(axis=1)):
        plot.add_trace(trace, 1, 1)
    steps = np.arange(1, length + 1)
    plot.add_trace(
        Heatmap(
            x=steps,
            y=[escape(name) for name in found.channels],
            z=values.T,
            coloraxis="coloraxis",
            hovertemplate="step %{x}, %{y}<br>attribution %{z:+.3g}<extra></extra>",
        ),
        1,
        2,
    )
    plot.update_yaxes(autorange="reversed", row=1, col=2)
    if attention is not None:
        plot.add_trace(_attention_bars(steps, attention), 2, 2)
        plot.update_yaxes(title_text="attention", rangemode="tozero", row=2, col=2)
    plot.update_xaxes(title_text="time step", row=rows, col=2)
    # A tablet counts y from the top.
    plot.update_yaxes(
        autorange="reversed", scaleanchor="x", visible=False, constrain="domain", row=1, col=1
    )
    plot.update_xaxes(visible=False, constrain="domain", row=1, col=1)
    return _laid_out(plot, values, height=340 + 80 * (rows - 1))


def _segments(x: np.ndarray, y: np.ndarray, pen: np.ndarray, values: np.ndarray) -> list[Scatter]:
    """The path from point to point: dotted in the air, on paper in the colour of its end."""
    most = float(np.abs(values).max()) or 1.0
    colours = sample_colorscale(_COLOURS, [0.5 + float(v) / most / 2 for v in values])
    traces = []
    for end in range(1, len(x)):
        at = {"x": x[end - 1 : end + 1], "y": y[end - 1 : end + 1]}
        text = f"step {end + 1}<br>attribution {values[end]:+.3g}"
        if pen[end] > 0.5:
            # A darker line below keeps pale colours visible.
            traces.append(
                Scatter(**at, mode="lines", line={"color": "#999", "width": 9}, hoverinfo="skip")
            )
            line = {"color": colours[end], "width": 7}
        else:
            line = {"color": colours[end], "width": 2, "dash": "dot"}
        traces.append(
            Scatter(
                **at, mode="lines", line=line, text=text, hovertemplate="%{text}<extra></extra>"
            )
        )
    return traces


def _attention_bars(steps: np.ndarray, attention: np.ndarray) -> Bar:
    hover = "step %{x}<br>attention %{y:.3g}<extra></extra>"
    return Bar(x=steps, y=attention, marker_color="#888", hovertemplate=hover)


def _laid_out(plot: Figure, values: np.ndarray, *, height: int) -> Figure:
    most = float(np.abs(values).max()) or 1.0
    plot.update_layout(
        height=height,
        showlegend=False,
        coloraxis={
            "colorscale": _COLOURS,
            "cmin": -most,
            "cmax": most,
            "colorbar": {"title": {"text": "attribution", "side": "right"}, "thickness": 12},
        },
    )
    return plot


def _most_important(values: np.ndarray) -> list[int]:
    """The channels to show, in their own order."""
    order = np.argsort(-np.abs(values).sum(axis=0), kind="stable")
    return sorted(order[:MOST_CHANNELS].tolist())


def _caption(page: Page, found: Attribution, number: int) -> str:
    """Says what is explained of an example; returns the title."""
    target, output = found.targets[number].item(), found.outputs[number]
    before = found.baseline_outputs[number]
    if found.is_classification:
        answer = f"probability of {target} is {output:.3f}"
    else:
        answer = f"value is {output:.4g}" + f" (output {target + 1})" * bool(target)
    total = found.values[number].sum()
    title = f"{found.names[number]}: the {answer}"
    page.heading(title)
    page.text(f"The baseline's answer is {before:.4g}; the attributions add up to {total:+.4g}.")
    if found.nearest is not None and found.support_weights is not None:
        place = int(found.nearest[number])
        weight = found.support_weights[number, place]
        page.text(
            f"The nearest support example is number {place + 1}, with {weight:.0%} of the weight "
            f"of all {found.support_weights.shape[1]}."
        )
    num_channels = len(found.channels)
    if not found.are_strokes and num_channels > MOST_CHANNELS:
        page.text(f"The {MOST_CHANNELS} of {num_channels} channels that count most.", "dim")
    return title


def _words(found: Attribution, number: int) -> str:
    """The tokens of a text, shaded."""
    length = int(found.lengths[number])
    values = found.values[number, :length, 0]
    most = float(np.abs(values).max()) or 1.0
    spans = []
    for step, (word, value) in enumerate(zip(found.words[number], values, strict=True)):
        red, green, blue = _FOR if value > 0 else _AGAINST
        share = abs(float(value)) / most
        colour = f"background: rgba({red}, {green}, {blue}, {share:.3f})"
        ink = "; color: #fff" * (share > 0.6)
        title = f"attribution {value:+.3g}"
        if found.attention is not None:
            title += f", attention {found.attention[number, step]:.3g}"
        spans.append(f"<span style='{colour}{ink}' title='{title}'>{escape(word)}</span>")
    return f"<p class='words'>{' '.join(spans)}</p>"
