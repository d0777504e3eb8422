"""Fills in the shipped cluster files as a user would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a user fills in; whatever else is marked in a file gets a name made of its placeholder.
VALUES = {"FILL_IN_IMAGE": "registry.example.org/raymeta:0.1.0"}


def filled_in(name: str, **values: str) -> str:
    """Returns the text of a file of `cluster/` without placeholders."""
    text = (ROOT / "cluster" / name).read_text(encoding="utf-8")

    def value(match: re.Match[str]) -> str:
        made = match[0].removeprefix("FILL_IN_").lower().replace("_", "-")
        return (VALUES | values).get(match[0], made)

    return re.sub(r"FILL_IN_\w+", value, text)


def use_laptop(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """Makes a home with a token and an ssh key, in the repository's folder."""
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("of this test\n")
    patch.setenv("HOME", str(home))
    patch.chdir(ROOT)
    return home
