"""Sequences of different lengths in one array, as Arrow has them.

Shape legend: R rows of all sequences, S sequences, T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True)
class Ragged(Sequence[np.ndarray]):
    """S sequences, each a run of rows of `values` `[R, …]`; runs may overlap, as windows do.

    `starts` and `lengths` are int64 `[S]`.  An item is a view: nothing is copied.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def contiguous(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Sequences of these lengths, one behind the other."""
        return cls(values, np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> Ragged: ...
    def __getitem__(self, row: int | slice) -> np.ndarray | Ragged:
        if isinstance(row, slice):
            return Ragged(self.values, self.starts[row], self.lengths[row])
        start = int(self.starts[row])
        return self.values[start : start + int(self.lengths[row])]

    def __iter__(self) -> Iterator[np.ndarray]:
        ends = self.starts + self.lengths
        for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True):
            yield self.values[start:end]

    def select(self, rows: Sequence[int]) -> Ragged:
        """The sequences at `rows`, in that order, of the same values."""
        kept = np.array(rows, dtype=np.int64)
        return Ragged(self.values, self.starts[kept], self.lengths[kept])

    def padded(self, rows: np.ndarray, length: int) -> np.ndarray:
        """The sequences at `rows` of any shape `[…]`: `[…, length, D]`, zero behind their ends."""
        found = np.zeros((rows.size, length, *self.values.shape[1:]), dtype=self.values.dtype)
        for place, row in enumerate(rows.reshape(-1).tolist()):
            own = self[row]
            found[place, : len(own)] = own
        return found.reshape(*rows.shape, *found.shape[1:])


def ragged(arrays: Iterable[np.ndarray]) -> Ragged:
    """A copy of arrays, of which there is one at least, as one array."""
    found = list(arrays)
    return Ragged.contiguous(np.concatenate(found), np.array([len(x) for x in found]))


def concatenated(parts: Iterable[Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    """The sequences of several files as those of one."""
    found = list(parts)
    if found and all(isinstance(part, Ragged) for part in found):
        return ragged(x for part in found for x in part)
    return tuple(x for part in found for x in part)
