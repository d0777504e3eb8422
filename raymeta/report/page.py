"""A page for a browser: one HTML file with everything in it, which works without a network.

Its plots are plotly's.  All text is escaped; scripts run only if their digest is in the page's
content security policy, so that nothing from a run's files can become one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

_SHORT = 22  # characters of a cell that is never broken
STYLE_CLASSES = {"green": "good", "yellow": "warn", "red": "bad", "dim": "dim", "": ""}


class Page:
    """Collects headings, text, tables and plots in their order; `html` gives the whole."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._links: list[str] = []
        self._figures: list[Figure] = []

    def header(self, title: str, subtitle: str) -> None:
        """The page's own heading."""
        self._parts.append(f"<h1>{escape(title)}</h1><p class='dim'>{escape(subtitle)}</p>")

    def section(self, title: str) -> None:
        """Begins a section, which the list of contents names."""
        number = len(self._links)
        self._links.append(f"<a href='#s{number}'>{escape(title)}</a>")
        self._parts.append(f"<h2 id='s{number}'>{escape(title)}</h2>")

    def heading(self, title: str) -> None:
        """A heading within a section."""
        self._parts.append(f"<h3>{escape(title)}</h3>")

    def answer(self, text: str) -> None:
        """The sentence that the page is for."""
        self._parts.append(f"<p class='answer'>{escape(text)}</p>")

    def text(self, text: str, style: str = "") -> None:
        """A paragraph; `style` as Rich names it."""
        self._parts.append(f"<p class='{STYLE_CLASSES.get(style, '')}'>{escape(text)}</p>")

    def lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """A list of lines with their styles."""
        items = [
            f"<li class='{STYLE_CLASSES.get(style, '')}'>{escape(text)}</li>"
            for text, style in lines
        ]
        if items:
            self._parts.append(f"<ul>{''.join(items)}</ul>")

    def code(self, text: str, summary: str = "") -> None:
        """Text as it is; folded away under `summary`, if there is one."""
        block = f"<pre>{escape(text)}</pre>"
        if summary:
            block = f"<details><summary>{escape(summary)}</summary>{block}</details>"
        self._parts.append(block)

    def markup(self, html: str, summary: str = "", *, is_open: bool = True) -> None:
        """HTML whose texts are escaped, such as `raymeta.report.pictures` makes.

        It can be folded away under `summary`, if there is one.
        """
        if summary:
            state = " open" if is_open else ""
            html = f"<details{state}><summary>{escape(summary)}</summary>{html}</details>"
        self._parts.append(html)

    def begin_grid(self) -> None:
        """Begins a grid, whose parts stand side by side where there is room, up to `end_grid`."""
        self._parts.append("<div class='grid'>")

    def end_grid(self) -> None:
        """Ends what `begin_grid` began."""
        self._parts.append("</div>")

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        marks: Sequence[tuple[int, str, str]] = (),
    ) -> None:
        """A table.

        If the rows are trials, `marks` has of each its number, its state and the command that
        trains it alone.
        """
        cells = "".join(f"<th>{escape(text)}</th>" for text in head)
        body = []
        for number, row in enumerate(rows):
            mark = ""
            if marks:
                trial, state, command = marks[number]
                mark = (
                    f" data-trial='{trial}' data-state='{escape(state)}' "
                    f"data-command='{escape(command)}' tabindex='0'"
                )
            inner = "".join(
                f"<td{' class=short' if len(text) <= _SHORT else ''}>{escape(text)}</td>"
                for text in row
            )
            body.append(f"<tr{mark}>{inner}</tr>")
        kind = " class='trials'" if marks else ""
        self._parts.append(
            f"<div class='wide'><table{kind}><thead><tr>{cells}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )

    def filters(self, states: Sequence[tuple[str, str, str]]) -> None:
        """Boxes that show and hide trials by state, in all plots: state, text, colour."""
        boxes = [
            f"<label><input type='checkbox' checked data-state='{escape(state)}'>"
            f"<svg width='12' height='12'><circle cx='6' cy='6' r='5' fill='{escape(colour)}'/>"
            f"</svg> {escape(text)}</label>"
            for state, text, colour in states
        ]
        self._parts.append(
            f"<div class='filters'>show: {''.join(boxes)}</div>"
            "<div class='picked' hidden><p></p><pre></pre></div>"
        )

    def plot(self, figure: Figure, name: str) -> None:
        """A plot; `name` says what it is to those who cannot see it."""
        number = len(self._figures)
        self._figures.append(figure)
        height = int(figure.layout.height or 400)
        self._parts.append(
            f"<div class='plot h{height}' id='p{number}' role='img' "
            f"aria-label='{escape(name, quote=True)}'></div>"
        )

    def fragment(self) -> str:
        """The page's contents so far, without plots and scripts, for a notebook."""
        return f"<div>{''.join(self._parts)}</div>"

    def html(self) -> str:
        """The whole page."""
        heights = sorted({int(f.layout.height or 400) for f in self._figures})
        sizes = "".join(f".h{height}{{min-height:{height}px}}" for height in heights)
        style = _own("page.css") + sizes
        scripts = [get_plotlyjs(), _own("page.js")] if self._figures else [_own("page.js")]
        data = f"[{','.join(_json(figure) for figure in self._figures)}]"
        policy = "; ".join(
            [
                "default-src 'none'",
                "base-uri 'none'",
                "form-action 'none'",
                "img-src data: blob:",  # the picture that plotly saves
                "style-src 'unsafe-inline'",  # plotly sets styles
                "script-src " + " ".join(map(_digest, scripts)),
            ]
        )
        tags = "".join(f"<script>{script}</script>\n" for script in scripts)
        contents = f"<nav>{' '.join(self._links)}</nav>" if len(self._links) > 3 else ""
        first, *rest = self._parts
        return (
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            "<meta name='color-scheme' content='light dark'>\n"
            f"<title>{escape(self._title)}</title><style>{style}</style></head>\n"
            f"<body><main>{first}{contents}\n{chr(10).join(rest)}</main>\n"
            f"<script type='application/json' id='figures'>{data}</script>\n{tags}</body></html>\n"
        )


def _json(figure: Figure) -> str:
    """A figure as JSON in which no tag can end the script around it."""
    content = json.loads(figure.to_json())
    content.get("layout", {}).pop("template", None)  # the page has its own
    text = json.dumps(content, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _own(name: str) -> str:
    return (files("raymeta.report") / name).read_text(encoding="utf-8")
