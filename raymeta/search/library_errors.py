"""Errors of libraries when a fit fails: tells them from bugs, and shortens them."""

from __future__ import annotations

import traceback
from collections.abc import Callable

_LONGEST_REASON = 300  # characters of a library's message


def is_raised_here(error: BaseException) -> bool:
    """Whether raymeta's own code raised the error: then it is a bug, not a failed fit."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("raymeta.")


def brief(error: BaseException, translated: Callable[[str], str]) -> str:
    """Formats an error's kind and the start of its message on one line, with the search's names."""
    line = translated(" ".join(f"{type(error).__name__}: {error}".split()))
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 1]}…"
