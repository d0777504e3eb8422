"""Content under several names: copies are refused; repeats are dropped and counted."""

from __future__ import annotations

import numpy as np
import pytest

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.sequences import Sequences, content_of
from raymeta.errors import DataError


def sequences(*rows: tuple[int, str, str]) -> tuple[Sequences, list[bytes]]:
    """Makes one sequence a row: its value, its class, its writer."""
    made = Sequences(
        x=tuple(np.array([[float(value)]]) for value, _, _ in rows),
        classes=tuple(label for _, label, _ in rows),
        groups={"writer": tuple(writer for _, _, writer in rows)},
        ids=tuple(f"line {n}" for n, _ in enumerate(rows, start=1)),
    )
    return made, [content_of(x) for x in made.x]


def test_content_is_values_and_shape() -> None:
    x = np.arange(6.0)
    assert content_of(x.reshape(2, 3)) == content_of(np.arange(6).reshape(2, 3))
    assert content_of(x.reshape(2, 3)) != content_of(x.reshape(3, 2))
    assert content_of(np.array([[0.0]])) == content_of(np.array([[-0.0]]))
    assert content_of(np.array(["a", "bc"], object)) != content_of(np.array(["ab", "c"], object))


def test_units_that_share_more_than_a_tenth_are_refused() -> None:
    rows = [(n, "a", "Ann") for n in range(20)] + [(n + 18, "a", "Bob") for n in range(20)]
    refuse_copies(*sequences(*rows), "writer")
    rows[-1] = (17, "a", "Bob")
    with pytest.raises(DataError, match="writer Ann and writer Bob share 3 of 20 sequences"):
        refuse_copies(*sequences(*rows), "writer")


def test_a_part_of_a_unit_is_a_copy_too() -> None:
    rows = [(n, "a", "Ann") for n in range(50)] + [(n, "a", "Bob") for n in range(3)]
    with pytest.raises(DataError, match="writer Ann and writer Bob share 3 of 3 sequences"):
        refuse_copies(*sequences(*rows), "writer")


def test_the_split_that_must_not_depend_on_others_keeps_the_sequence() -> None:
    made, contents = sequences((1, "a", "Ann"), (1, "a", "Bob"), (2, "a", "Ann"))
    rows, (warning,) = distinct_rows(made, contents, [2, 0, 2])
    assert rows == [1, 2]
    assert warning == (
        "1 sequences are copies of others and were dropped; line 1 repeats line 2, for one"
    )


def test_contradictions_are_dropped_and_named() -> None:
    made, contents = sequences((1, "a", "Ann"), (1, "b", "Bob"), (2, "a", "Ann"))
    rows, (warning,) = distinct_rows(made, contents, [1, 1, 1])
    assert rows == [2]
    assert "line 1 is of class a, line 2 of class b" in warning


def test_a_contradiction_in_training_does_not_reach_the_test() -> None:
    made, contents = sequences((1, "a", "Ann"), (1, "b", "Bob"))
    assert distinct_rows(made, contents, [0, 2])[0] == [0]
