"""What a check found: the lines of `raymeta check`, `new` and `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was checked, what was found, and how serious it is."""

    subject: str
    text: str
    level: Literal["ok", "note", "warning", "error"] = "ok"
