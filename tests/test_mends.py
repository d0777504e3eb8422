"""The list of `scripts/check_mends.py` fits the code, though the code moves."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from check_mends import MENDS, REPOSITORY, without


@pytest.mark.parametrize("name", MENDS)
def test_a_mend_can_be_switched_off_and_has_its_test(name: str) -> None:
    mend = MENDS[name]
    ast.parse(without(mend))  # what fails then is the mend, not the language
    assert without(mend) != (REPOSITORY / mend.file).read_text()
    assert (REPOSITORY / mend.tests).exists()
