"""The list of `scripts/check_mends.py` fits the code, though the code moves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from check_mends import MENDS, REPOSITORY, without


@pytest.mark.parametrize("name", MENDS)
def test_a_mend_can_be_switched_off_and_has_its_test(name: str) -> None:
    mend = MENDS[name]
    ast.parse(without(mend))  # what fails then is the mend, not the language
    assert without(mend) != (REPOSITORY / mend.file).read_text()
    assert (REPOSITORY / mend.tests).exists()


def test_the_guide_has_every_mend_in_its_table() -> None:
    guide = (REPOSITORY / "raymeta" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in guide.splitlines() if line.count("|") == 4]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row[3])]
    assert set(MENDS) <= set(names)
    assert len(set(MENDS)) == sum(name in MENDS for name in names)


@pytest.mark.slow
def test_every_mend_chooses_a_test() -> None:
    files = sorted({mend.tests for mend in MENDS.values()})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *files]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = [line for line in told.stdout.splitlines() if "::" in line]
    for name, mend in MENDS.items():
        expression = Expression.compile(mend.chosen)
        nodes = [node.lower() for node in found if node.startswith(mend.tests)]
        assert any(is_chosen(expression, node) for node in nodes), name


def is_chosen(expression: Expression, node: str) -> bool:
    """Whether `pytest -k` takes a test, by the words of its name."""

    def has(word: str, /, **_: object) -> bool:
        return word.lower() in node

    return expression.evaluate(has)
