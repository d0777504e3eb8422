"""What a mend is, and how its proof ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mend:
    """A mend, and the test that must fail without it: `code` of `file` becomes `instead`."""

    file: str
    code: str
    instead: str
    tests: str
    chosen: str  # as `pytest -k`
    is_quick: bool = False
    says: str = (
        ""  # what the failing test must say: a test that ends for another reason is no proof
    )
