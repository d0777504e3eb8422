"""The terminal: a console that writes to any terminal, whatever its encoding, and warnings."""

from __future__ import annotations

import codecs
import io
import sys
import warnings
from typing import Any

from rich.console import Console
from rich.text import Text

from raymeta.errors import DataWarning

# What signs become where the terminal's encoding lacks them.
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
    """The handler of characters that an encoding lacks: spelled out, or as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    spelled = (SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(spelled), error.end


codecs.register_error(_HANDLER, _spell)


class Terminal(Console):
    """A console that spells out the signs that its encoding lacks, before a table is laid out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Spells out a text, and renders it."""
        known = text.encode(self.encoding, _HANDLER).decode(self.encoding)
        return super().render_str(known, **options)


def prepare_streams() -> None:
    """Makes whatever is printed fit the encoding of standard output and standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def show_data_warnings() -> None:
    """Prints what a loader warns of as one line, once, without a place in the code."""
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
