"""Examples of a task as their user knows them, as pieces of HTML: pen strokes, signals, texts.

Only numbers get into the pictures, and every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from raymeta.evaluation.drawings import DrawnEpisode, Example
from raymeta.report.plots import SERIES_COLOURS, label

_WIDTH, _HEIGHT, _EDGE = 96, 72, 6  # pixels of a picture
Range = tuple[float, float]


def episode_cards(episode: DrawnEpisode) -> str:
    """The support set, and below it the queries with the network's answers."""
    ranges = _ranges(episode)
    support = "".join(_card(e, episode, ranges, is_query=False) for e in episode.support)
    query = "".join(_card(e, episode, ranges, is_query=True) for e in episode.query)
    is_text = any(example.text for example in episode.query)
    kind = "cards texts" if is_text else "cards"
    return (
        f"<p class='dim'>Support: what the network adapts to</p><div class='{kind}'>{support}</div>"
        f"<p class='dim'>Queries: what it answers</p><div class='{kind}'>{query}</div>"
        f"{_key(episode)}"
    )


def _card(
    example: Example, episode: DrawnEpisode, ranges: Sequence[Range], *, is_query: bool
) -> str:
    content = f"<blockquote>{escape(example.text)}</blockquote>" if example.text else ""
    if example.lines:
        content = _picture(_strokes(example) if episode.are_strokes else _signals(example, ranges))
    if not is_query:
        return f"<figure>{content}<figcaption>{_name(example.truth)}</figcaption></figure>"
    is_right = example.answer == example.truth
    sign, style = ("✓", "good") if is_right else ("✗", "bad")
    told = f"{sign} {_name(example.answer)} ({100 * example.probability:.0f}&nbsp;%)"
    truth = "" if is_right else f"<br><span class='dim'>is {_name(example.truth)}</span>"
    return (
        f"<figure class='{style}'>{content}<figcaption>"
        f"<b class='{style}'>{told}</b>{truth}</figcaption></figure>"
    )


def _name(text: str) -> str:
    return label(text, 40)


def _picture(lines: Iterator[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' aria-hidden='true'>{''.join(lines)}</svg>"


def _strokes(example: Example) -> Iterator[str]:
    """Lines of a pen, which keep their proportions."""
    xs = [value for line in example.lines for value in line[0::2]]
    ys = [value for line in example.lines for value in line[1::2]]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    scale = min(
        (_WIDTH - 2 * _EDGE) / (width or 1e-9), (_HEIGHT - 2 * _EDGE) / (height or 1e-9), 1e6
    )
    left = (_WIDTH - scale * width) / 2 - scale * min(xs)
    top = (_HEIGHT - scale * height) / 2 - scale * min(ys)
    for line in example.lines:
        points = zip(line[0::2], line[1::2], strict=False)
        placed = [(left + scale * x, top + scale * y) for x, y in points]
        yield _line(placed, "currentColor", 2.2)


def _signals(example: Example, ranges: Sequence[Range]) -> Iterator[str]:
    """A line for each channel, in the range that the channel has in the episode."""
    colours = [SERIES_COLOURS[n % len(SERIES_COLOURS)] for n in range(len(example.lines))]
    for line, (low, high), colour in zip(example.lines, ranges, colours, strict=False):
        step = (_WIDTH - 2 * _EDGE) / max(1, len(line) - 1)
        tall = (_HEIGHT - 2 * _EDGE) / ((high - low) or 1.0)
        bottom = _HEIGHT - _EDGE
        points = [(_EDGE + step * n, bottom - tall * (v - low)) for n, v in enumerate(line)]
        yield _line(points, colour, 1.4)


def _line(points: Iterable[tuple[float, float]], colour: str, width: float) -> str:
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f"<polyline points='{told}' fill='none' stroke='{colour}' stroke-width='{width}' "
        "stroke-linecap='round' stroke-linejoin='round'/>"
    )


def _ranges(episode: DrawnEpisode) -> list[Range]:
    """The least and the greatest value of each channel."""
    examples = [e for e in (*episode.support, *episode.query) if e.lines]
    count = min((len(example.lines) for example in examples), default=0)
    values = [[v for e in examples for v in e.lines[n]] or [0.0] for n in range(count)]
    return [(min(own), max(own)) for own in values]


def _key(episode: DrawnEpisode) -> str:
    """The legend of an episode's lines: each channel with its colour and its drawn range."""
    if episode.are_strokes or not episode.channels:
        return ""
    key = line_key(
        {
            f"{name} ({low:.3g} to {high:.3g})": SERIES_COLOURS[n % len(SERIES_COLOURS)]
            for n, (name, (low, high)) in enumerate(
                zip(episode.channels, _ranges(episode), strict=False)
            )
        }
    )
    left = episode.num_channels - len(episode.channels)
    return f"{key}<p class='dim'>and {left} more channels, not drawn</p>" if left > 0 else key


def line_key(colours: Mapping[str, str]) -> str:
    """The legend of lines in pictures or plots, from texts with their colours."""
    items = [
        "<span><svg width='14' height='8' aria-hidden='true'><line x1='0' y1='4' x2='14' y2='4' "
        f"stroke-width='2.5' stroke='{escape(colour)}'/></svg> {label(text)}</span>"
        for text, colour in colours.items()
    ]
    return f"<p class='key dim'>{' '.join(items)}</p>"
