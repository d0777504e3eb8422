"""Finds identical content under different names, so that splits share no data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations

from raymeta.data.sequences import Sequences
from raymeta.errors import DataError

# Two units are copies if they share more than this fraction of the smaller one's sequences.
MAX_SHARED = 0.1


def refuse_copies(
    sequences: Sequences, contents: Sequence[bytes], axis: str, max_shared: float = MAX_SHARED
) -> None:
    """Refuses two units of an axis that are copies of each other under different names.

    Args:
        sequences: all that was read.
        contents: a digest of each sequence's content.
        axis: such as `writer`.
        max_shared: the fraction of the smaller unit's sequences that the other one may share.

    Raises:
        DataError: naming both units.
    """
    of_unit: defaultdict[str, set[bytes]] = defaultdict(set)
    holders: defaultdict[bytes, set[str]] = defaultdict(set)
    for unit, content in zip(sequences.groups[axis], contents, strict=True):
        of_unit[unit].add(content)
        holders[content].add(unit)
    shared: Counter[tuple[str, str]] = Counter()
    for units in holders.values():
        if len(units) > 1:
            shared.update(combinations(sorted(units), 2))
    for (one, other), count in shared.most_common():
        smaller = min(len(of_unit[one]), len(of_unit[other]))
        if count > max_shared * smaller:
            raise DataError(
                f"{axis} {one[:200]} and {axis} {other[:200]} share {count} of {smaller} "
                "sequences: one is a copy of the other, and would carry its data into another "
                "split; remove one of them"
            )


def distinct_rows(
    sequences: Sequences, contents: Sequence[bytes], priorities: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Keeps one sequence of each content, in the split that needs it most.

    Of sequences with equal content, only those with the lowest priority number count: the first is
    kept if they all have one class; all are dropped if their classes differ.

    Args:
        sequences: all that was read.
        contents: a digest of each sequence's content.
        priorities: lower for the splits that must not depend on others: 0 for meta-test.

    Returns:
        The rows to keep, ascending, and warnings that count the rest.
    """
    by_content: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, content in enumerate(contents):
        by_content[content].append(row)
    kept: list[int] = []
    copies: list[list[int]] = []
    contradictions: list[list[int]] = []
    for rows in by_content.values():
        first = min(priorities[row] for row in rows)
        leading = [row for row in rows if priorities[row] == first]
        if len({sequences.classes[row] for row in leading}) > 1:
            contradictions.append(leading)
            continue
        kept.append(leading[0])
        if len(rows) > 1:
            copies.append([leading[0], *(row for row in rows if row != leading[0])])
    warnings = []
    if copies:
        dropped = sum(len(rows) - 1 for rows in copies)
        one, other = copies[0][:2]
        warnings.append(
            f"{dropped} sequences are copies of others and were dropped; {sequences.ids[other]} "
            f"repeats {sequences.ids[one]}, for one"
        )
    if contradictions:
        rows = contradictions[0]
        one = rows[0]
        other = next(row for row in rows if sequences.classes[row] != sequences.classes[one])
        warnings.append(
            f"{sum(map(len, contradictions))} sequences of equal content have different classes "
            f"and were dropped: {sequences.ids[one]} is of class {sequences.classes[one][:40]}, "
            f"{sequences.ids[other]} of class {sequences.classes[other][:40]}, for one"
        )
    return sorted(kept), warnings
