"""Looks for what could carry data of one split into another, whatever the loader promises.

It goes by the sequences as they are dealt, and shares no code with the loader.

Shape legend: T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Split
from raymeta.finding import Finding

# Rows in a row that two sequences of different recordings do not share by chance.
WINDOW = 8


def find_leaks(chosen: Mapping[Split, Sequences], axes: Sequence[str]) -> list[Finding]:
    """What could leak from a split into another one.

    Args:
        chosen: the sequences of each split.
        axes: of `Sequences.groups`, each unit of which should be in one split; `""` is the class.

    Returns:
        An error for each axis with a unit in two splits and for each two splits with equal
        sequences; a warning for two splits with sequences that share `WINDOW` rows, as windows that
        were cut from one recording do.  None of these where the splits are sound.
    """
    findings = []
    for axis in axes:
        units = {
            split: set(chosen[split].classes if axis == "" else chosen[split].groups[axis])
            for split in SPLITS
        }
        for one, other in combinations(SPLITS, 2):
            if shared := sorted(units[one] & units[other]):
                text = f"{len(shared)} in meta-{one} and meta-{other}: {shared[0]:.60}, for one"
                findings.append(Finding(axis or "class", text, "error"))
    whole = {split: _by_content(chosen[split], _whole) for split in SPLITS}
    parts = {split: _by_content(chosen[split], _windows) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        equal = whole[one].keys() & whole[other].keys()
        if equal:
            a, b = whole[one][min(equal)], whole[other][min(equal)]
            text = f"{len(equal)} are in meta-{one} and meta-{other}: {a} equals {b}, for one"
            findings.append(Finding("copies", text, "error"))
        elif touching := parts[one].keys() & parts[other].keys():
            first = min(touching)
            pairs = {(parts[one][key], parts[other][key]) for key in touching}
            text = (
                f"{len(pairs)} sequences of meta-{one} share {WINDOW} rows with sequences of "
                f"meta-{other}: {parts[one][first]} and {parts[other][first]}, for one; if they "
                "were cut from one recording, name its column in tasks.groups"
            )
            findings.append(Finding("overlap", text, "warning"))
    return findings


def _by_content(
    sequences: Sequences, contents: Callable[[np.ndarray], Iterator[bytes]]
) -> dict[bytes, str]:
    """Content -> the id of the first sequence that has it."""
    found: dict[bytes, str] = {}
    for x, name in zip(sequences.x, sequences.ids, strict=True):
        for content in contents(x):
            found.setdefault(content, name)
    return found


def _whole(x: np.ndarray) -> Iterator[bytes]:
    yield _bytes(x)


def _windows(x: np.ndarray) -> Iterator[bytes]:
    """All runs of rows but those in which nothing changes, such as silence."""
    for start in range(len(x) - WINDOW + 1):
        window = x[start : start + WINDOW]
        if len(np.unique(window, axis=0)) > 1:
            yield _bytes(window)


def _bytes(x: np.ndarray) -> bytes:
    if x.dtype.kind in "OU":
        return "\0".join(x.tolist()).encode()
    return (x + 0.0).tobytes()
