"""A console for terminals of any encoding, and the printing of warnings."""

from __future__ import annotations

import codecs
import io
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from raymeta.errors import DataWarning

# Replacements for characters that the terminal's encoding lacks.
SPELLED = {
    "±": "+/-",
    "×": "x",
    "…": "...",
    "·": "-",
    "━": "=",
    "✓": "+",
    "✗": "x",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "–": "-",
    "—": "-",
    "’": "'",
    "“": '"',
    "”": '"',
}
_HANDLER = "raymeta.spelled"


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Encoding error handler: spells a missing character out, or escapes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    spelled = (SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(spelled), error.end


codecs.register_error(_HANDLER, _spell)


# Colours, and what would command a terminal: C0 and C1, but tab and the end of a line.
_COMMANDS = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """A text without commands to the terminal, which files and logs of strangers may hold."""
    return _COMMANDS.sub("", text)


class Terminal(Console):
    """A console that replaces characters missing from its encoding before laying out tables.

    Texts command nothing of the terminal; rich's own segments do.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Replaces missing characters and renders the text."""
        known = text.encode(self.encoding, _HANDLER).decode(self.encoding)
        return super().render_str(known, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Renders all that is printed but by `out`, without commands in its texts."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(harmless(text), style)

    def out(self, *objects: Any, **options: Any) -> None:
        """Prints texts as they are, without commands in them."""
        super().out(*(harmless(str(one)) for one in objects), **options)


def prepare_streams() -> None:
    """Makes standard output and error replace characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def show_data_warnings() -> None:
    """Prints each loader warning once, on one line, without its place in the code."""
    shown = set[str]()
    default = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, DataWarning):
            default(message, category, *place, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            Terminal(stderr=True).print(
                f"warning: {message}", style="yellow", highlight=False, soft_wrap=True
            )

    warnings.showwarning = show
