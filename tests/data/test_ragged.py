"""Sequences of different lengths in one array."""

from __future__ import annotations

import numpy as np

from raymeta.data.ragged import Ragged, concatenated

ROWS = np.arange(14.0).reshape(7, 2)
LENGTHS = np.array([3, 1, 2])


def test_an_item_is_a_view_of_its_rows() -> None:
    found = Ragged.contiguous(ROWS[:6], LENGTHS)
    assert [x.tolist() for x in found] == [x.tolist() for x in np.split(ROWS[:6], [3, 4])]
    assert len(found) == 3
    assert np.shares_memory(found[-1], ROWS)
    assert [len(x) for x in found[1:]] == [1, 2]


def test_selected_sequences_share_the_values() -> None:
    found = Ragged.contiguous(ROWS[:6], LENGTHS).select([2, 0])
    assert [x.tolist() for x in found] == [ROWS[4:6].tolist(), ROWS[:3].tolist()]
    assert np.shares_memory(found.values, ROWS)


def test_padded_sequences_are_zero_behind_their_ends() -> None:
    overlapping = Ragged(ROWS, np.array([0, 1, 5]), np.array([3, 3, 2]))
    found = overlapping.padded(np.array([[2, 0], [1, 1]]), 4)
    assert found.shape == (2, 2, 4, 2)
    assert found[0, 0].tolist() == [*ROWS[5:].tolist(), [0, 0], [0, 0]]
    assert found[1, 1].tolist() == [*ROWS[1:4].tolist(), [0, 0]]
    assert not np.shares_memory(found, ROWS)


def test_sequences_of_several_files_are_those_of_one() -> None:
    parts = [Ragged(ROWS, np.array([4]), np.array([2])), Ragged.contiguous(ROWS[:6], LENGTHS)]
    found = concatenated(parts)
    assert isinstance(found, Ragged)
    assert [x.tolist() for x in found] == [x.tolist() for part in parts for x in part]
    words = (np.array(["a", "b"], dtype=object),)
    assert concatenated([words, words]) == (*words, *words)
