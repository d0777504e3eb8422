"""Messages are bounded and printable, whatever they quote."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raymeta.errors import MAX_MESSAGE, DataError, ExperimentError, RaymetaError, RunError, shown


@pytest.mark.parametrize("text", ["", "short", "two\nlines", "naïve 字", "x" * MAX_MESSAGE])
def test_a_message_of_usual_size_stays_as_it_is(text: str) -> None:
    assert str(RaymetaError(text)) == text


def test_a_long_line_is_shortened_in_the_middle() -> None:
    told = str(DataError("file.csv: " + "x" * 100_000 + "; remove it"))
    assert len(told) <= MAX_MESSAGE
    assert told.startswith("file.csv: xxx")
    assert told.endswith("xxx; remove it")


def test_of_many_lines_the_first_are_reported_and_the_others_counted() -> None:
    told = str(ExperimentError("\n".join(f"line {n}" for n in range(1000)))).splitlines()
    assert told[0] == "line 0"
    kept = len(told) - 1
    assert told[kept - 1] == f"line {kept - 1}"
    assert told[-1] == f"... and {1000 - kept} more lines"
    assert len("\n".join(told)) <= MAX_MESSAGE


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\ud800", "\u202e", "\r", "\x85"])
def test_characters_that_would_change_a_terminal_are_written_out(character: str) -> None:
    told = str(RunError(f"a{character}b"))
    assert character not in told
    assert told.startswith("a\\")
    told.encode()


def test_errors_pass_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("a: is broken")))  # noqa: S301
    assert type(error) is DataError
    assert str(error) == "a: is broken"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"), ("a", "'a'"), ({"x": 1, "a": [None, True]}, "{'x': 1, 'a': [None, True]}"),
        (10**6000, "a number of 19932 bits"), (-(2**200), str(-(2**200))),
    ],
    ids=["float", "text", "mapping", "huge", "long"],
)  # fmt: skip
def test_values_are_shown_as_python_writes_them(value: object, text: str) -> None:
    assert shown(value) == text


def test_values_of_any_size_are_shown_in_short() -> None:
    itself: list[object] = []
    itself.append(itself)
    deep: object = 1
    for _ in range(10_000):
        deep = [deep]
    for value in (itself, deep, "x" * 10**7, ["y" * 10**5] * 1000, {n: n for n in range(10**5)}):
        assert len(shown(value)) <= 200
    assert shown("a" * 1000 + "end").endswith("end'")
    assert "Path" in shown(Path("a"))
