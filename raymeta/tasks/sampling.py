"""Draws episodes from dealt sequences; shared by all sources.

Shape legend: S sequences, W ways, M examples of a class, T time steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymeta.data.ragged import Ragged
from raymeta.data.sequences import Sequences, content_of
from raymeta.episodes import SPLITS, Episode, Split
from raymeta.errors import DataError


@dataclass(frozen=True)
class ClassPool:
    """The classes of one split; an episode draws and relabels some of them.

    `families` groups classes that look alike (s and S): an episode has at most one class of a
    family. A class is its number in the split and the rows of its sequences.
    """

    families: tuple[tuple[tuple[int, np.ndarray], ...], ...]
    num_classes: int

    @classmethod
    def build(cls, classes: Sequence[str], family_of: Mapping[str, str]) -> ClassPool:
        """Builds the pool of sequences of these classes; `family_of` maps a class to its family."""
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(classes):
            rows.setdefault(label, []).append(row)
        names = sorted(rows)
        families: dict[str, list[tuple[int, np.ndarray]]] = {}
        for number, name in enumerate(names):
            families.setdefault(family_of[name], []).append((number, np.array(rows[name])))
        return cls(
            families=tuple(tuple(families[name]) for name in sorted(families)),
            num_classes=len(names),
        )

    def check(self, split: Split, num_ways: int, num_examples: int, class_name: str) -> None:
        """Refuses episodes that the pool cannot serve.

        Args:
            split: whose pool it is.
            num_ways: classes of an episode.
            num_examples: support and query examples of a class.
            class_name: the message's word for a class.

        Raises:
            DataError: with the largest numbers that it can serve.
        """
        if not self.families:
            raise DataError(
                f"the meta-{split} split holds no {class_name}; more data, or other ones, are "
                "needed (see tasks.data_dir)"
            )
        if num_ways > len(self.families):
            raise DataError(
                f"tasks.num_ways must be at most {len(self.families)}, the number of different "
                f"{class_name}{'e' * class_name.endswith('s')}s in the meta-{split} split, but got "
                f"{num_ways}"
            )
        smallest = min(len(rows) for family in self.families for _, rows in family)
        check_examples(smallest, num_examples, split, class_name)

    def draw(
        self, num_ways: int, num_examples: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows `[W, M]` and class numbers `[W]` of one episode."""
        families = [self.families[f] for f in rng.permutation(len(self.families))[:num_ways]]
        chosen = [family[rng.integers(len(family))] for family in families]
        rows = np.stack([rng.permutation(rows)[:num_examples] for _, rows in chosen])
        return rows, np.array([number for number, _ in chosen])


@dataclass(frozen=True)
class GroupPool:
    """The groups of one split, each a task of its own with the same classes.

    `groups` has W arrays of each group: the rows of each class in the order of the data.
    """

    groups: tuple[tuple[np.ndarray, ...], ...]

    @classmethod
    def build(
        cls, groups: Sequence[str], classes: Sequence[str], names: Sequence[str]
    ) -> GroupPool:
        """Builds the pool of sequences of these groups and classes; `names` are all classes."""
        rows: dict[str, dict[str, list[int]]] = {}
        for row, (group, label) in enumerate(zip(groups, classes, strict=True)):
            rows.setdefault(group, {name: [] for name in names})[label].append(row)
        return cls(
            tuple(
                tuple(np.array(own, dtype=np.int64) for own in of_class.values())
                for of_class in rows.values()
            )
        )

    def check(self, split: Split, num_examples: int) -> None:
        """Refuses more examples of a class than a group has.

        Raises:
            DataError: with the largest number.
        """
        counts = [len(rows) for group in self.groups for rows in group]
        check_examples(min(counts, default=0), num_examples, split, "class")

    def draw(self, num_examples: int, rng: np.random.Generator) -> np.ndarray:
        """Draws rows `[W, M]` of one episode from one group, in random order."""
        group = self.groups[int(rng.integers(len(self.groups)))]
        return np.stack([rows[rng.permutation(len(rows))[:num_examples]] for rows in group])


def check_examples(smallest: int, num_examples: int, split: Split, class_name: str) -> None:
    """Refuses more examples of a class than its smallest class has.

    Raises:
        DataError: with the largest number.
    """
    if smallest < 2:
        raise DataError(
            f"the meta-{split} split holds {smallest} examples of a {class_name}, but an episode "
            "needs one at least in its support set and one in its query set; more data are needed "
            "(see tasks.data_dir)"
        )
    if num_examples > smallest:
        raise DataError(
            f"tasks.num_shots + tasks.num_queries must be at most {smallest}, the examples of a "
            f"{class_name} in the meta-{split} split, but got {num_examples}"
        )


def episode_of(
    x: np.ndarray,
    rows: np.ndarray,
    classes: np.ndarray,
    num_shots: int,
    *,
    units: Mapping[str, np.ndarray],
    lengths: np.ndarray | None = None,
) -> Episode:
    """Makes an episode of examples `x` `[W, M, T, …]`.

    The first `num_shots` of a class are support.

    `rows` `[W, M]` name the sequence of each example, `classes` `[W]` the classes; `lengths`
    `[W, M]`.  `units` has the unit of every sequence of the split on every axis, `[S]` each.
    """
    num_ways, num_examples = rows.shape
    labels = np.repeat(np.arange(num_ways)[:, None], num_examples, axis=1)

    def part(values: np.ndarray, columns: slice) -> np.ndarray:
        chosen = values[:, columns]
        return chosen.reshape(-1, *chosen.shape[2:])

    support, query = slice(0, num_shots), slice(num_shots, None)
    return Episode(
        support_x=part(x, support),
        support_y=part(labels, support),
        query_x=part(x, query),
        query_y=part(labels, query),
        support_lengths=None if lengths is None else part(lengths, support),
        query_lengths=None if lengths is None else part(lengths, query),
        support_ids=part(rows, support),
        query_ids=part(rows, query),
        way_classes=classes,
        query_units={axis: part(ids[rows], query) for axis, ids in units.items()},
    )


def unit_ids(names: Sequence[str]) -> np.ndarray:
    """Numbers each sequence's unit, int64 `[S]`."""
    ids: np.ndarray = np.unique(np.array(names), return_inverse=True)[1]
    return ids.astype(np.int64)


def unit_names(groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The names behind the numbers of `unit_ids`, on every axis."""
    return {axis: tuple(np.unique(np.array(names)).tolist()) for axis, names in groups.items()}


@dataclass(frozen=True)
class ClassSampler:
    """Draws N-way episodes without augmentation.

    In a split, `x` has S sequences `[T, D]`, of at most `longest` steps, and `units` `[S]` on every
    axis.
    """

    pools: Mapping[Split, ClassPool]
    x: Mapping[Split, Ragged]
    longest: int
    units: Mapping[Split, Mapping[str, np.ndarray]]
    num_ways: int
    num_shots: int
    num_queries: int

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode."""
        rows, classes = self.pools[split].draw(
            self.num_ways, self.num_shots + self.num_queries, rng
        )
        x = self.x[split]
        return episode_of(
            x.padded(rows, self.longest),
            rows,
            classes,
            self.num_shots,
            units=self.units[split],
            lengths=x.lengths[rows],
        )


def fingerprint(splits: Mapping[Split, Sequences], facts: Mapping[str, Any]) -> str:
    """Computes a digest of the data in use: content, class, units and split of every sequence."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for split in SPLITS:
        sequences = splits[split]
        for row, content in enumerate(sequences.contents):
            units = [sequences.groups[axis][row] for axis in sorted(sequences.groups)]
            digest.update(json.dumps([split, sequences.classes[row], *units]).encode())
            digest.update(content)
            if sequences.targets:
                digest.update(content_of(sequences.targets[row]))
    return digest.hexdigest()
