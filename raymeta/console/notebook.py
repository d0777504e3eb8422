"""A live view in a notebook: one piece of HTML that is replaced in place, and kept when saved."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console, RenderableType

REFRESH_S = 0.5  # between two updates; each is a message to the browser
_WIDTH = 120  # characters of a line; the page scrolls beside longer ones
# Colours of text and paper are the notebook's own, light or dark.
_FRAME = (
    '<pre style="overflow-x:auto;white-space:pre;line-height:1.3;'
    "font-family:Menlo,'DejaVu Sans Mono',Consolas,monospace\">{code}</pre>"
)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows HTML."""
    if "IPython" not in sys.modules:  # a kernel has imported it
        return False
    from IPython.core.getipython import get_ipython  # noqa: PLC0415  (optional)

    return getattr(get_ipython(), "kernel", None) is not None


class LiveHtml:
    """The notebook's counterpart of `rich.live.Live`; `refresh` draws it again.

    Args:
        get_renderable: draws the present state.
    """

    def __init__(self, get_renderable: Callable[[], RenderableType]) -> None:
        self._get_renderable = get_renderable
        self._handle: Any = None
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        from IPython.display import HTML, display  # noqa: PLC0415  (optional)

        self._handle = display(HTML(self._html()), display_id=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._draw()

    def refresh(self) -> None:
        """Draws the present state, unless it was drawn just now."""
        if time.monotonic() - self._drawn_at >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML  # noqa: PLC0415  (optional)

        self._handle.update(HTML(self._html()))

    def _html(self) -> str:
        self._drawn_at = time.monotonic()
        console = Console(
            file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True, force_jupyter=False
        )
        console.print(self._get_renderable())
        return console.export_html(inline_styles=True, code_format=_FRAME)
