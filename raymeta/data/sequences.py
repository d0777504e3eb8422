"""The type that every reader returns: sequences of different lengths with their labels.

Shape legend: S sequences, T time steps, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """S sequences in the order of their files.

    `x` has one array per sequence: numbers `[T, D]` or tokens `[T]` (text), each with its own T ≥
    1.
    `classes` are the labels, as text.  `groups` maps an axis, such as `writer`, to the unit of each
    sequence on it.  `ids` say where each one was read: file, and line or row.  `texts` has each
    sequence as it is written (text only).  `times` `[T]` has the time of each step since the first
    one, where the data have times, `targets` `[T]` the number to be predicted at each step, where
    it is a number.  A category has the code of its level (`level_code`) in `x`, NaN where it is
    missing; `levels` has the text of each code.  `warnings` are for the user: what the reader
    accepted but could not take as it is.
    """

    x: tuple[np.ndarray, ...]
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    ids: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())
    texts: tuple[str, ...] = ()
    times: tuple[np.ndarray, ...] = ()
    targets: tuple[np.ndarray, ...] = ()
    levels: Mapping[float, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lengths(self) -> np.ndarray:
        """Time steps of each sequence, int64 `[S]`."""
        return np.array([len(x) for x in self.x], dtype=np.int64)

    def select(self, rows: Iterable[int]) -> Sequences:
        """The sequences at `rows`, in that order."""
        kept = [int(row) for row in rows]
        return Sequences(
            x=tuple(self.x[row] for row in kept),
            classes=tuple(self.classes[row] for row in kept),
            groups={axis: tuple(units[row] for row in kept) for axis, units in self.groups.items()},
            ids=tuple(self.ids[row] for row in kept),
            warnings=self.warnings,
            texts=tuple(self.texts[row] for row in kept) if self.texts else (),
            times=tuple(self.times[row] for row in kept) if self.times else (),
            targets=tuple(self.targets[row] for row in kept) if self.targets else (),
            levels=self.levels,
        )

    def padded(self, length: int) -> np.ndarray:
        """Numbers `[S, length, D]` in float32, zero behind the end of each sequence."""
        result = np.zeros((len(self), length, self.x[0].shape[1]), dtype=np.float32)
        for row, x in enumerate(self.x):
            result[row, : len(x)] = x
        return result


def joined(parts: Sequence[Sequences]) -> Sequences:
    """Concatenates the sequences of several files, which have the same group axes."""
    return Sequences(
        x=tuple(x for part in parts for x in part.x),
        classes=tuple(label for part in parts for label in part.classes),
        groups={
            axis: tuple(unit for part in parts for unit in part.groups[axis])
            for axis in (parts[0].groups if parts else ())
        },
        ids=tuple(name for part in parts for name in part.ids),
        warnings=tuple(text for part in parts for text in part.warnings),
        texts=tuple(text for part in parts for text in part.texts),
        times=tuple(times for part in parts for times in part.times),
        targets=tuple(targets for part in parts for targets in part.targets),
        levels={code: text for part in parts for code, text in part.levels.items()},
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
