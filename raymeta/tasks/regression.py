"""A number for every example of a long table: a dose, a score, or the useful life that remains.

A task is a group, such as a patient or a fleet, or, without group columns, what the sequences of a
split have in common.  Its support set are examples of some sequences, its queries examples of
others: within one run to failure, the rows that passed and those that remain add up to a constant,
so that one label would tell all others.

Targets are standardised by the meta-training sequences alone.

Shape legend: S sequences, N examples, T time steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.ragged import Ragged, ragged
from raymeta.data.sequences import Sequences
from raymeta.data.splits import Deal, deal_sealed
from raymeta.episodes import SPLITS, Episode, InputSpec, Split, TargetScale, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.dealt import Dealt, deal_groups, once_while_held, splits_of
from raymeta.tasks.preparation import Prepared, windows_of
from raymeta.tasks.ready import Ready, ready_table, recorded_last
from raymeta.tasks.sampling import unit_ids
from raymeta.tasks.sides import Draw, SidePool, SideSampler, Windows
from raymeta.tasks.table_files import read_sequences
from raymeta.tasks.table_sections import NumberTarget, RemainingLife
from raymeta.tasks.table_settings import TableTasks

_BETWEEN = "two of their groups are in different splits"
_COPIES = "copies of others"
_EVERY = "every sequence"  # the name of the only task of a split


def load_regression(settings: TableTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution of a table whose target is a number.

    Args:
        settings: of the tasks, with a target that is a number.
        seed: of the episodes.
        sealed: whether to use the sealed deal.

    Raises:
        DataError: a file is broken, or the data cannot serve such episodes.
    """

    def facts(own: Prepared, found: Dealt) -> dict[str, Any]:
        scale = _scale(settings, _targets(found.chosen["train"], own.windows["train"]))
        return {**own.facts, "target": {"mean": scale.mean, "deviation": scale.deviation}}

    def make() -> Ready:
        found = deal_regression(settings, sealed=sealed)
        windows = windows_of(settings, found.chosen)
        _pools(settings, found)
        _scale(settings, _targets(found.chosen["train"], windows["train"]))
        return Ready.of(settings, found, facts)

    ready = ready_table(settings, sealed=sealed, make=make)
    dealt, draw = ready.dealt, Draw.of(settings)
    chosen, windows = dealt.chosen, windows_of(settings, dealt.chosen)
    pools = _pools(settings, dealt)
    targets = {s: _targets(chosen[s], windows[s]) for s in SPLITS}
    scale = _scale(settings, targets["train"])
    units = {
        split: {name: unit_ids(own) for name, own in chosen[split].groups.items()}
        for split in SPLITS
    }

    def distribution(examples: Prepared, digest: str) -> TaskDistribution:
        return TaskDistribution(
            name=settings.source,
            input_spec=InputSpec("regression", 1, num_features=examples.num_features),
            seed=seed,
            sample_episode=RegressionSampler(
                SideSampler(pools, examples, units, draw),
                {s: ((own - scale.mean) / scale.deviation) for s, own in targets.items()},
            ),
            fixed_labels=True,
            note=_note(dealt, settings),
            fingerprint=digest,
            deal=dealt.deal,
            facts=facts(examples, dealt),
            warnings=dealt.warnings,
            target_scale=scale,
        )

    return recorded_last(list(map(distribution, ready.views, ready.fingerprints)))


def _pools(settings: TableTasks, dealt: Dealt) -> dict[Split, SidePool]:
    """The tasks of each split.

    Raises:
        DataError: they cannot serve such episodes.
    """
    axis, windows = settings.groups[:1], windows_of(settings, dealt.chosen)
    pools = {
        split: SidePool.build(
            own.groups[axis[0]] if axis else (_EVERY,) * len(own),
            own.classes,
            ("",),
            windows[split],
        )
        for split, own in dealt.chosen.items()
    }
    for split in reversed(SPLITS):
        pools[split].check(split, Draw.of(settings), "task")
    return pools


@dataclass(frozen=True)
class RegressionSampler:
    """Draws episodes with a number for each example; `targets` `[N]` are those of all windows."""

    sides: SideSampler
    targets: Mapping[Split, np.ndarray]

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode."""
        rows = self.sides.rows(split, rng)
        episode = self.sides.episode(split, rows, rng)
        y = self.targets[split][rows[0]].astype(np.float32)[:, None]
        shots = self.sides.draw.num_shots
        return replace(episode, support_y=y[:shots], query_y=y[shots:], way_classes=None)


@once_while_held
def deal_regression(settings: TableTasks, *, sealed: bool = False) -> Dealt:
    """Reads a table and deals its sequences into splits, whether or not they serve any episodes.

    Raises:
        DataError: a file is broken, a target is missing, or there are too few groups to deal.
    """
    sequences, unread = read_sequences(settings)
    sequences = _with_targets(sequences, settings)
    # By its target too: equal numbers with another target contradict each other.
    contents = sequences.contents
    for axis in settings.groups:
        refuse_copies(sequences, contents, axis)
    deal: Deal = deal_groups(sequences, settings.groups or [settings.sequence], settings)
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
    split_of = splits_of(sequences, deal)
    used = [row for row, split in enumerate(split_of) if split is not None]
    rows, dropped = distinct_rows(
        sequences.select(used),
        [contents[row] for row in used],
        [-SPLITS.index(split_of[row] or "train") for row in used],
    )
    left_out = {_BETWEEN: len(sequences) - len(used), _COPIES: len(used) - len(rows)}
    return Dealt(
        chosen={
            s: sequences.select(used[row] for row in rows if split_of[used[row]] == s)
            for s in SPLITS
        },
        deal=deal,
        num_read=len(sequences),
        left_out={reason: count for reason, count in left_out.items() if count},
        target=settings.target_name,
        task=settings.groups[0] if settings.groups else None,
        groups=tuple(deal),
        classes=(),
        warnings=(*unread, *dropped),
    )


def _with_targets(sequences: Sequences, settings: TableTasks) -> Sequences:
    """The sequences without classes, and the target at each of their steps.

    Raises:
        DataError: a target is missing.
    """
    target, x = settings.target, sequences.x
    assert isinstance(x, Ragged), "it was read from a table"
    if isinstance(target, RemainingLife):
        # The time at the last row is that of the failure: sequences are whole runs.
        lives = [times[-1] - times for times in sequences.times]
        if target.cap is not None:
            lives = [np.minimum(own, target.cap) for own in lives]
        found = ragged(lives)
    else:
        assert isinstance(target, NumberTarget), "the settings are of a regression"
        found = Ragged(x.values[:, 0], x.starts, x.lengths)
        x = Ragged(x.values[:, 1:], x.starts, x.lengths)
        for row, own in enumerate(found):
            if np.isnan(own).any():
                raise DataError(
                    f"{sequences.ids[row]}, column {target.number}: row "
                    f"{int(np.argmax(np.isnan(own))) + 1} of the sequence has no number, but "
                    "tasks.missing fills in features alone; fill the target in, or remove the row"
                )
    return replace(sequences, x=x, classes=("",) * len(x), targets=found)


def _targets(sequences: Sequences, windows: Windows) -> np.ndarray:
    """The target of each window `[N]`: that at its last row."""
    targets = sequences.targets
    assert isinstance(targets, Ragged), "it was read from a table"
    found: np.ndarray = targets.values[targets.starts[windows.owner] + windows.ends - 1]
    return found


def _scale(settings: TableTasks, training: np.ndarray) -> TargetScale:
    """The mean and deviation of the targets of meta-training.

    Raises:
        DataError: they are all the same, or too large.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(training.mean()), float(training.std())
    name = settings.target_name
    if not np.isfinite([mean, deviation]).all():
        raise DataError(
            f"{settings.data_dir}, column {name}: holds numbers too large to be standardised; "
            "mend them, or rescale the column"
        )
    if deviation == 0:
        raise DataError(
            f"{settings.data_dir}, column {name}: is {mean:g} in all examples of meta-training, so "
            "that there is nothing to learn; name another target, or raise tasks.target.cap where "
            "there is one"
        )
    return TargetScale(mean, deviation, name)


def _note(dealt: Dealt, settings: TableTasks) -> str:
    tested = dealt.chosen["test"]
    disjoint = " or ".join(dealt.groups)
    return (
        f"meta-test: {len(tested)} × {settings.sequence}; no {disjoint} of theirs occurs in "
        f"meta-training, and none is in the support set and among the queries; errors are in "
        f"deviations of {settings.target_name} in meta-training"
    )
