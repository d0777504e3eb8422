"""Draws the two sides of an episode, support and queries, from the sequences of one task.

A sequence may be cut into windows, each an example.  All windows of a sequence are on one side:
what is alike in one recording must not tell the answers to its other windows.

Shape legend: S sequences, W ways, M examples of a class, T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from raymeta.data.ragged import Ragged
from raymeta.episodes import Episode, Split
from raymeta.errors import DataError
from raymeta.tasks.sampling import check_examples, episode_of
from raymeta.tasks.table_settings import TableTasks

MIRROR_CHANCE = 0.5  # of a sequence of meta-training, where tasks.mirror names features


@dataclass(frozen=True)
class Windows:
    """Examples that were cut from sequences: the first row of each and the row behind its last."""

    owner: np.ndarray  # of which sequence, int64 [N]
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, size: int | None, step: int | None) -> Windows:
        """Windows of `size` rows, one every `step` rows; a shorter sequence is one window.

        Args:
            lengths: of the sequences, int64 `[S]`.
            size: rows of a window; None: every sequence is one example.
            step: rows from a window's start to the next one's; None: the size.
        """
        if size is None:
            return cls(np.arange(len(lengths)), np.zeros_like(lengths), lengths)
        every = step or size
        counts = np.maximum(lengths - size, 0) // every + 1
        owner = np.repeat(np.arange(len(lengths)), counts)
        first = np.cumsum(counts) - counts  # of the windows of each sequence
        starts = (np.arange(len(owner)) - first[owner]) * every
        return cls(owner, starts, np.minimum(starts + size, lengths[owner]))

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def lengths(self) -> np.ndarray:
        """Time steps of each window."""
        return self.ends - self.starts


@dataclass(frozen=True)
class Draw:
    """The rule by which an episode draws a class's examples from its sequences.

    `at_random`: from sequences in random order; otherwise from the first ones for the support set,
    as the data order them, and from later ones for the queries.  `each` bounds the windows that an
    episode has of one sequence; None: no bound.
    """

    num_shots: int
    num_queries: int
    at_random: bool = False
    each: int | None = None

    @classmethod
    def of(cls, settings: TableTasks) -> Draw:
        """The rule that the settings describe."""
        return cls(
            settings.num_shots,
            settings.num_queries,
            at_random=settings.support == "random",
            each=settings.windows_each,
        )

    def num_served(self, sizes: Sequence[int]) -> int:
        """The smallest number of queries that a draw may leave.

        Args:
            sizes: windows of each sequence of one class of one task, in the order of the data.

        Returns:
            Below 0 if there are not even enough support examples.
        """
        own = [size if self.each is None else min(size, self.each) for size in sizes]
        total, shots = sum(own), self.num_shots
        if total < shots:
            return total - shots
        if not self.at_random:
            return total - next(found for found in accumulate(own) if found >= shots)
        return total - _most_taken(own, shots)

    def __call__(self, sequences: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Windows of one class: first those of the support set, then the queries.

        Args:
            sequences: the windows of each sequence, in the order of the data.
            rng: draws.
        """
        count = len(sequences)
        order = list(rng.permutation(count) if self.at_random else range(count))
        support: list[int] = []
        while len(support) < self.num_shots:
            own = sequences[order.pop(0)]
            support += list(rng.permutation(own) if self.at_random else own)[: self.each]
        if self.each is None:
            rest = rng.permutation(np.concatenate([sequences[row] for row in order]))
        else:
            found = [rng.permutation(sequences[row])[: self.each] for row in rng.permutation(order)]
            rest = np.concatenate(found)
        return np.array([*support[: self.num_shots], *rest[: self.num_queries]])


def _most_taken(sizes: Sequence[int], wanted: int) -> int:
    """The most windows of sequences that are taken one after the other until `wanted` are there.

    All but the last together have fewer than `wanted`; sums that can be reached are bits of a
    number.
    """
    most, below = 0, (1 << wanted) - 1
    for last in set(sizes):
        others = list(sizes)
        others.remove(last)
        sums = 1
        for size in others:
            sums |= (sums << size) & below
        if (taken := sums.bit_length() - 1 + last) >= wanted:
            most = max(most, taken)
    return most


@dataclass(frozen=True)
class SidePool:
    """The tasks of one split: of each task, of each class, the windows of each sequence."""

    tasks: tuple[tuple[tuple[np.ndarray, ...], ...], ...]

    @classmethod
    def build(
        cls,
        tasks: Sequence[str],
        classes: Sequence[str],
        names: Sequence[str],
        windows: Windows,
    ) -> SidePool:
        """The pool of sequences of these tasks and classes.

        Args:
            tasks: of which task each sequence is, `[S]`.
            classes: of which class, `[S]`.
            names: all classes that there are.
            windows: of the sequences.
        """
        ends = np.searchsorted(windows.owner, np.arange(len(tasks)), side="right")
        own = np.split(np.arange(len(windows)), ends[:-1]) if len(tasks) else []
        found: dict[str, dict[str, list[np.ndarray]]] = {}
        for task, label, rows in zip(tasks, classes, own, strict=True):
            found.setdefault(task, {name: [] for name in names})[label].append(rows)
        return cls(tuple(tuple(map(tuple, of_class.values())) for of_class in found.values()))

    def check(self, split: Split, draw: Draw, of: str = "class") -> None:
        """Refuses episodes that the pool cannot serve.

        Args:
            split: whose pool it is.
            draw: of the episodes.
            of: what messages call that which has the sequences.

        Raises:
            DataError: with the largest number of queries.
        """
        counts = [len(sequences) for classes in self.tasks for sequences in classes]
        if all(len(own) == 1 for classes in self.tasks for seqs in classes for own in seqs):
            check_examples(min(counts, default=0), draw.num_shots + draw.num_queries, split, of)
            return
        served = [
            (draw.num_served([len(rows) for rows in sequences]), sequences)
            for classes in self.tasks
            for sequences in classes
        ]
        least, sequences = min(served, key=lambda found: found[0], default=(-1, ()))
        if least >= draw.num_queries:
            return
        windows = sum(len(rows) for rows in sequences)
        raise DataError(
            f"the meta-{split} split holds a {of} with {windows} windows of {len(sequences)} "
            f"sequences, of which {max(0, least)} are sure to be left when {draw.num_shots} "
            f"support examples are drawn, but tasks.num_queries is {draw.num_queries}; all windows "
            "of a sequence are on one side: lower num_queries, num_shots, tasks.window or "
            "tasks.window_step, or add sequences"
        )


class Examples(Protocol):
    """The N examples of each split, and of which sequence each one is."""

    @property
    def x(self) -> Mapping[Split, Ragged]:
        """The examples `[T, D]` of each split, in float32."""

    @property
    def longest(self) -> int:
        """Time steps of the longest example."""

    @property
    def windows(self) -> Mapping[Split, Windows]:
        """The rows that each example was cut from."""

    @property
    def mirror(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """The mirror image of examples `[…, T, D]` of these lengths `[…]`; None: it is none."""


@dataclass(frozen=True)
class SideSampler:
    """Draws episodes of one task; `units` has the unit `[S]` of each sequence on every axis."""

    pools: Mapping[Split, SidePool]
    examples: Examples
    units: Mapping[Split, Mapping[str, np.ndarray]]
    draw: Draw

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode."""
        return self.episode(split, self.rows(split, rng), rng)

    def rows(self, split: Split, rng: np.random.Generator) -> np.ndarray:
        """The examples `[W, M]` of one task, those of the support set first."""
        pool = self.pools[split].tasks
        task = pool[int(rng.integers(len(pool)))]
        return np.stack([self.draw(sequences, rng) for sequences in task])

    def episode(self, split: Split, rows: np.ndarray, rng: np.random.Generator) -> Episode:
        """The episode of the examples `[W, M]`.

        In meta-training each sequence is its mirror image with a chance of one half, with all its
        windows: where tasks have one.
        """
        examples = self.examples
        x = examples.x[split].padded(rows, examples.longest)
        lengths, owner = examples.x[split].lengths[rows], examples.windows[split].owner[rows]
        if examples.mirror is not None and split == "train":
            own, place = np.unique(owner, return_inverse=True)
            is_mirrored = rng.random(len(own))[place.reshape(owner.shape)] < MIRROR_CHANCE
            image = examples.mirror(x, lengths)
            x = np.where(is_mirrored[..., None, None], image, x)
        return episode_of(
            x,
            owner,
            np.arange(len(rows)),
            self.draw.num_shots,
            units=self.units[split],
            lengths=lengths,
        )
