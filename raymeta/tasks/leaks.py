"""Searches for leaks of data between splits, independently of the loader.

It reads the sequences as dealt and the episodes as drawn, and shares no code with the loader.

Shape legend: T time steps, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Episode, Split, TaskDistribution
from raymeta.finding import Finding

# Consecutive rows that sequences of different recordings do not share by chance.
WINDOW = 8


def find_leaks(chosen: Mapping[Split, Sequences], axes: Sequence[str]) -> list[Finding]:
    """Finds possible leaks between splits.

    Args:
        chosen: the sequences of each split.
        axes: of `Sequences.groups`, each unit of which should be in one split; `""` is the class.

    Returns:
        An error for each axis with a unit in two splits and for each two splits with equal
        sequences; a warning for two splits with sequences that share `WINDOW` rows, as windows that
        were cut from one recording do.  Nothing if the splits are sound.
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
    whole = {
        split: {_bytes(x): name for x, name in zip(own.x, own.ids, strict=True)}
        for split, own in chosen.items()
    }
    parts = {split: _windows(chosen[split]) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        equal = whole[one].keys() & whole[other].keys()
        if equal:
            a, b = whole[one][min(equal)], whole[other][min(equal)]
            text = f"{len(equal)} are in meta-{one} and meta-{other}: {a} equals {b}, for one"
            findings.append(Finding("copies", text, "error"))
            continue
        touching = np.intersect1d(parts[one].distinct, parts[other].distinct, assume_unique=True)
        if len(touching):
            owners, others = parts[one].owners_of(touching), parts[other].owners_of(touching)
            text = (
                f"{len(set(owners))} sequences of meta-{one} share {WINDOW} rows with sequences of "
                f"meta-{other}: {chosen[one].ids[owners[0]]} and {chosen[other].ids[others[0]]}, "
                "for one; if they were cut from one recording, name its column in tasks.groups"
            )
            findings.append(Finding("overlap", text, "warning"))
    return findings


def find_shared_sides(tasks: TaskDistribution, num_episodes: int = 20) -> list[Finding]:
    """Finds data that the support set of an episode shares with its queries.

    Args:
        tasks: whose episodes are drawn; their examples are numbers.
        num_episodes: of each split.

    Returns:
        An error for each split with episodes in which one sequence, or one run of `WINDOW` rows, is
        on both sides: windows of one recording, say.
    """
    findings = []
    for split in SPLITS:
        found = [
            _shared_sides(tasks.episode(split, index), f"episode {index} of meta-{split}")
            for index in range(num_episodes)
        ]
        told = [text for text in found if text is not None]
        if told:
            text = f"{len(told)} of {num_episodes} episodes of meta-{split} share data: {told[0]}"
            findings.append(Finding("sides", text, "error"))
    return findings


def find_future_reads(
    tasks: TaskDistribution, num_known: int, num_episodes: int = 5
) -> list[Finding]:
    """Finds forecasts that read the future, by putting other values in its place.

    Behind the first step of each query all columns but those known in advance get other values, and
    behind its horizon these too.  The support set, what the query reads, and the base and unit of
    its targets must stay as they are.

    Args:
        tasks: of forecasts, whose `sample_episode` is a dataclass with the series `x` by split.
        num_known: how many columns, the last ones, are known in advance.
        num_episodes: of each split.

    Returns:
        An error for each split with episodes that change.
    """
    findings = []
    for split in SPLITS:
        told = []
        for index in range(num_episodes):
            episode = tasks.episode(split, index)
            assert episode.query_ids is not None, "the queries of forecasts have their steps as ids"
            for query, step in enumerate(episode.query_ids.tolist()):
                behind = step + episode.query_y.shape[1]
                sampler: Any = tasks.sample_episode
                other = {
                    **sampler.x,
                    split: _OtherFuture(sampler.x[split], step, behind, num_known),
                }
                changed = replace(tasks, sample_episode=replace(sampler, x=other))
                if _inputs_of(changed.episode(split, index), query) != _inputs_of(episode, query):
                    told.append(f"query {query} of episode {index}")
                    break
        if told:
            share = f"{len(told)} of {num_episodes} episodes of meta-{split}"
            text = f"{share} read it: {told[0]}, for one"
            findings.append(Finding("future", text, "error"))
    return findings


@dataclass(frozen=True)
class _OtherFuture(Sequence[np.ndarray]):
    """Series with other values from `step` on, and from `behind` on in the last columns too."""

    series: Sequence[np.ndarray]
    step: int
    behind: int
    num_known: int

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, row: Any) -> Any:
        x = self.series[row].copy()
        place = x.shape[1] - self.num_known
        for part in (x[self.step :, :place], x[self.behind :, place:]):
            part[:] = 3 * part[::-1] + 7
        return x


def _inputs_of(episode: Episode, query: int) -> tuple[bytes, ...]:
    """All that the answer to a query may depend on."""
    past = episode.query_past
    assert past is not None, "a forecast's episodes have a past"
    found = (episode.support_x, episode.support_y, episode.query_x[query])
    return tuple(x.tobytes() for x in (*found, past.base[query], past.unit[query]))


def _shared_sides(episode: Episode, name: str) -> str | None:
    """Says what the support set of an episode shares with its queries; None for nothing."""
    sides = []
    for x, lengths, ids in (
        (episode.support_x, episode.support_lengths, episode.support_ids),
        (episode.query_x, episode.query_lengths, episode.query_ids),
    ):
        ends = [x.shape[1]] * len(x) if lengths is None else lengths
        rows = tuple(own[:end].astype(np.float64) for own, end in zip(x, ends, strict=True))
        named = tuple(map(str, range(len(x)) if ids is None else ids))
        sides.append(Sequences(x=rows, classes=("",) * len(x), groups={}, ids=named))
    support, query = sides
    if shared := sorted(set(support.ids) & set(query.ids)):
        return f"sequence {shared[0]} is on both sides of {name}"
    if {_bytes(x) for x in support.x} & {_bytes(x) for x in query.x}:
        return f"an example is on both sides of {name}"
    if len(np.intersect1d(_windows(support).distinct, _windows(query).distinct)):
        return f"both sides of {name} hold the same {WINDOW} rows"
    return None


@dataclass(frozen=True)
class _Runs:
    """64-bit hashes of runs of rows, each with the row of the sequence that it is of."""

    hashes: np.ndarray
    owner: np.ndarray

    @cached_property
    def distinct(self) -> np.ndarray:
        """The different hashes, ascending."""
        found = np.sort(self.hashes)  # faster than np.unique's table of hashes
        return found[np.diff(found, prepend=found[:1] - np.uint64(1)) != 0]

    def owners_of(self, hashes: np.ndarray) -> np.ndarray:
        """The first sequence that has each of these ascending hashes."""
        is_one = np.isin(self.hashes, hashes)
        owners: np.ndarray = self.owner[is_one][
            np.unique(self.hashes[is_one], return_index=True)[1]
        ]
        return owners


def _windows(sequences: Sequences) -> _Runs:
    """Hashes all runs of `WINDOW` rows except constant ones, such as silence."""
    none = _Runs(np.zeros(0, np.uint64), np.zeros(0, np.int64))
    if not len(sequences) or sequences.x[0].dtype.kind != "f":
        return none
    steps = np.concatenate(sequences.x) + 0.0  # -0.0 and 0.0 are one value
    owner = np.repeat(np.arange(len(sequences)), sequences.lengths)
    if len(steps) < WINDOW:
        return none
    odd = np.random.default_rng(0).integers(2**63, size=steps.shape[1] + 1, dtype=np.uint64) | 1
    rows = np.zeros(len(steps), np.uint64)
    for column, factor in zip(steps.T, odd, strict=False):
        rows = _mixed(rows ^ (np.ascontiguousarray(column).view(np.uint64) * factor))
    starts = len(steps) - WINDOW + 1
    runs = np.zeros(starts, np.uint64)
    for place in range(WINDOW):
        runs = runs * odd[-1] + rows[place : place + starts]
    changes = np.concatenate([[0], np.cumsum(rows[1:] != rows[:-1])])
    is_run = owner[:starts] == owner[WINDOW - 1 :]
    is_run &= changes[:starts] != changes[WINDOW - 1 :]
    return _Runs(runs[is_run], owner[:starts][is_run])


def _mixed(values: np.ndarray) -> np.ndarray:
    """Mixes all bits by the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bytes(x: np.ndarray) -> bytes:
    """A key that is equal for equal sequences."""
    text = "\0".join(x.tolist()).encode() if x.dtype.kind in "OU" else (x + 0.0).tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()
