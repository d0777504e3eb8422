"""A console for terminals of any encoding, and the printing of warnings."""

from __future__ import annotations

import codecs
import io
import sys
import warnings
from typing import Any

from rich.console import Console
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


class Terminal(Console):
    """A console that replaces characters missing from its encoding before laying out tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Replaces missing characters and renders the text."""
        known = text.encode(self.encoding, _HANDLER).decode(self.encoding)
        return super().render_str(known, **options)


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
