"""The type that every reader returns: sequences of different lengths with their labels.

Shape legend: S sequences, T time steps, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from raymeta.data.ragged import Ragged, concatenated


@dataclass(frozen=True)
class Sequences:
    """S sequences in the order of their files.

    `x` has one array per sequence: numbers `[T, D]` (of a table a `Ragged`) or tokens `[T]` (text),
    each with its own T ≥ 1.
    `classes` are the labels, as text.  `groups` maps an axis, such as `writer`, to the unit of each
    sequence on it.  `ids` say where each one was read: file, and line or row.  `texts` has each
    sequence as it is written (text only).  `times` `[T]` has the time of each step since the first
    one, where the data have times: in seconds if they `are_dates`, in their own unit if they are
    numbers, None if they differ from file to file.  `targets` `[T]` has the number to be predicted
    at each step, where it is a number.  A category has the code of its level (`level_code`) in `x`,
    NaN where it is missing; `levels` has the text of each code.  `warnings` are for
    the user: what the reader accepted but could not take as it is.
    """

    x: Sequence[np.ndarray]
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    ids: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())
    texts: tuple[str, ...] = ()
    times: Sequence[np.ndarray] = ()
    targets: Sequence[np.ndarray] = ()
    levels: Mapping[float, str] = field(default_factory=dict)
    are_dates: bool | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lengths(self) -> np.ndarray:
        """Time steps of each sequence, int64 `[S]`."""
        if isinstance(self.x, Ragged):
            return self.x.lengths
        return np.array([len(x) for x in self.x], dtype=np.int64)

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """The digest of each sequence's numbers or tokens, as `content_of` computes it."""
        return tuple(map(content_of, self.x))

    def select(self, rows: Iterable[int]) -> Sequences:
        """The sequences at `rows`, in that order."""
        kept = [int(row) for row in rows]
        found = Sequences(
            x=_selected(self.x, kept),
            classes=tuple(self.classes[row] for row in kept),
            groups={axis: tuple(units[row] for row in kept) for axis, units in self.groups.items()},
            ids=tuple(self.ids[row] for row in kept),
            warnings=self.warnings,
            texts=tuple(self.texts[row] for row in kept) if self.texts else (),
            times=_selected(self.times, kept) if self.times else (),
            targets=_selected(self.targets, kept) if self.targets else (),
            levels=self.levels,
            are_dates=self.are_dates,
        )
        if "contents" in vars(self):  # known already
            vars(found)["contents"] = tuple(self.contents[row] for row in kept)
        return found


def _selected(arrays: Sequence[np.ndarray], rows: Sequence[int]) -> Sequence[np.ndarray]:
    return arrays.select(rows) if isinstance(arrays, Ragged) else tuple(arrays[r] for r in rows)


def joined(parts: Sequence[Sequences]) -> Sequences:
    """Concatenates the sequences of several files, which have the same group axes."""
    if len(parts) == 1:
        return parts[0]
    kinds = {part.are_dates for part in parts}
    return Sequences(
        x=concatenated(part.x for part in parts),
        classes=tuple(label for part in parts for label in part.classes),
        groups={
            axis: tuple(unit for part in parts for unit in part.groups[axis])
            for axis in (parts[0].groups if parts else ())
        },
        ids=tuple(name for part in parts for name in part.ids),
        warnings=tuple(text for part in parts for text in part.warnings),
        texts=tuple(text for part in parts for text in part.texts),
        times=concatenated(part.times for part in parts),
        targets=concatenated(part.targets for part in parts),
        levels={code: text for part in parts for code, text in part.levels.items()},
        are_dates=kinds.pop() if len(kinds) == 1 else None,
    )


def level_code(text: str) -> float:
    """The code of a category's level: 48 bits of its digest, the same in all files and processes.

    Two of a thousand levels have one code with a chance of 2e-9.
    """
    return float(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big"))


def content_of(x: np.ndarray) -> bytes:
    """Computes a digest of one sequence's values, equal for copies under any name."""
    digest = hashlib.blake2b(str(x.shape).encode(), digest_size=16)
    if x.dtype.kind in "OU":
        digest.update("\0".join(x.tolist()).encode())
    else:
        # Adding zero turns -0.0 into 0.0; all missing values get the same NaN.
        digest.update((np.ascontiguousarray(x, dtype=np.float64) + 0.0).tobytes())
    return digest.digest()
