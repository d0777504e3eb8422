"""The deal of a user's data: the split of each sequence, and why others are in none.

The loader draws episodes from it; `raymeta inspect` shows it even if no episode can be drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Protocol
from weakref import WeakValueDictionary

from raymeta.data.files import stamps
from raymeta.data.sequences import Sequences
from raymeta.data.splits import Deal, deal_units
from raymeta.episodes import SPLITS, Split
from raymeta.errors import DataError
from raymeta.tasks.table_settings import TableTasks


@dataclass(frozen=True)
class Dealt:
    """Sequences dealt into splits.

    `left_out` counts the sequences in no split by the reason; with those in `chosen` they are all
    `num_read` sequences.  `target` is the axis of the classes. `task` is the axis of the tasks;
    None if a task is a set of classes.  `groups` are the axes whose units are in one split each.
    `classes` are those of all splits; forecasts and numbers have none.
    """

    chosen: Mapping[Split, Sequences]
    deal: Deal
    num_read: int
    left_out: Mapping[str, int]
    target: str
    task: str | None
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def has_numbers(self) -> bool:
        """Whether a number is to be predicted for every example."""
        return any(own.targets for own in self.chosen.values())

    def sizes(self, split: Split) -> dict[str, dict[str, int]]:
        """Counts the sequences of each class, by task or in one entry for all tasks."""
        return sizes(self.chosen[split], self.task, self.classes)

    def fitting(self, num_ways: int, num_examples: int) -> tuple[int, int]:
        """Computes the most ways and examples per class that every split can serve.

        Args:
            num_ways: requested; ignored if tasks have all classes.
            num_examples: requested support and query examples per class.

        Returns:
            The ways and, for that many ways, the examples per class; at most as requested.
        """
        if self.task is not None:
            found = [min(c.values()) for s in SPLITS for c in self.sizes(s).values()]
            return len(self.classes), min([num_examples, *(found or [0])])
        ways, examples = num_ways, num_examples
        counts = [sorted(self.sizes(s)[""].values(), reverse=True) for s in SPLITS]
        ways = min(num_ways, *(sum(count >= 2 for count in own) for own in counts))
        if ways >= 1:
            examples = min(num_examples, *(own[-1] for own in counts))
        return ways, examples


class _Deals(Protocol):
    def __call__(self, settings: TableTasks, *, sealed: bool = False) -> Dealt: ...


_HELD: WeakValueDictionary[tuple[object, ...], Dealt] = WeakValueDictionary()


def once_while_held(deals: _Deals) -> _Deals:
    """Deals a table once as long as somebody holds what was dealt, and its files stay the same.

    `raymeta inspect` holds it while the loader asks again; nobody does in training.
    """

    @wraps(deals)
    def deal(settings: TableTasks, *, sealed: bool = False) -> Dealt:
        key = (deals, settings.model_dump_json(), sealed, stamps(settings.data_files()))
        found = _HELD.get(key)
        if found is None:
            found = _HELD[key] = deals(settings, sealed=sealed)
        return found

    return deal


def sizes(
    sequences: Sequences, task: str | None, classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Counts the sequences of each class by task, or in a split if there are no tasks."""
    if task is None:
        return {"": dict(sorted(Counter(sequences.classes).items()))}
    counts = Counter(zip(sequences.groups[task], sequences.classes, strict=True))
    return {
        unit: {label: counts[unit, label] for label in classes}
        for unit in dict.fromkeys(sequences.groups[task])
    }


def deal_groups(
    sequences: Sequences, axes: Sequence[str], settings: TableTasks
) -> dict[str, Mapping[str, Split]]:
    """Deals the units of some axes, each axis by itself.

    Args:
        sequences: with the units to deal.
        axes: of the groups.
        settings: the number held out of each, and the seed of the deal.

    Raises:
        DataError: an axis has too few units.
    """
    num_test, num_val = settings.test_groups, settings.val_groups
    deal: dict[str, Mapping[str, Split]] = {}
    for axis in axes:
        units = set(sequences.groups[axis])
        if len(units) <= num_test + num_val:
            raise DataError(
                f"column {axis} must have more than {num_test + num_val} groups, since {num_val} "
                f"are held out for validation and {num_test} for the test (tasks.val_groups, "
                f"tasks.test_groups), but it has {len(units)}"
            )
        salt = f"{axis}-{settings.split_seed}"
        deal[axis] = deal_units(units, num_test=num_test, num_val=num_val, salt=salt)
    return deal


def splits_of(sequences: Sequences, deal: Deal) -> list[Split | None]:
    """Finds the common split of each sequence's class and groups; None if they differ."""
    axes = [(units, sequences.groups.get(axis, sequences.classes)) for axis, units in deal.items()]
    found: list[Split | None] = []
    for row in range(len(sequences)):
        own = {units[values[row]] for units, values in axes}
        found.append(own.pop() if len(own) == 1 else None)
    return found
