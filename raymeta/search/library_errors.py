"""What libraries raise when a fit fails: whose error it is, and in a few words what it says."""

from __future__ import annotations

import traceback
from collections.abc import Callable

_LONGEST_REASON = 300  # characters of a library's message


def is_raised_here(error: BaseException) -> bool:
    """Whether raymeta's own code raised it: then it is a bug, not a fit that failed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("raymeta.")


def brief(error: BaseException, translated: Callable[[str], str]) -> str:
    """The kind of an error and the start of its message, on one line and in our names."""
    line = translated(" ".join(f"{type(error).__name__}: {error}".split()))
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 1]}…"
