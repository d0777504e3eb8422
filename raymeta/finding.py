"""Findings: the lines that `raymeta check`, `new` and `inspect` print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One result of a check: the subject, the text, and how serious it is."""

    subject: str
    text: str
    level: Literal["ok", "note", "warning", "error"] = "ok"
