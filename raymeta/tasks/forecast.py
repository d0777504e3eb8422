"""Forecasts of series from a long table: a task is one series, cut in two at a random step.

What an episode holds, and how it is scaled, is in `raymeta.tasks.cutter`.

Shape legend: S series, L steps of a series, D columns (the target is the first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raymeta.data.calendar import calendar_names
from raymeta.data.duplicates import distinct_rows
from raymeta.data.ragged import ragged
from raymeta.data.sequences import Sequences, content_of
from raymeta.data.splits import Deal, deal_sealed
from raymeta.episodes import SPLITS, Episode, InputSpec, Legend, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.cutter import Cutter
from raymeta.tasks.dealt import Dealt, deal_groups, splits_of
from raymeta.tasks.levels import level_facts, unknown_in_splits, with_levels
from raymeta.tasks.ready import Ready, ready_table
from raymeta.tasks.sampling import fingerprint, unit_ids, unit_names
from raymeta.tasks.table_files import read_sequences
from raymeta.tasks.table_settings import TableTasks

_SHOWN = 3  # most names listed in a message
_UNEVEN = 1.5  # a step of time that is longer than this many median steps is a gap

_BETWEEN = "two of their groups are in different splits"
_COPIES = "copies of others, but for level and unit"
_SHORT = "too short to be cut, or the same in every season (tasks.small_classes)"


@dataclass(frozen=True)
class ForecastSampler:
    """Draws a series and its cut.

    In a split, `x` has the series `[L, D]`, `cuts` where each can be cut, and `units` `[S]` the
    unit of each on every axis.
    """

    cutter: Cutter
    x: Mapping[Split, Sequence[np.ndarray]]
    cuts: Mapping[Split, Sequence[np.ndarray]]
    units: Mapping[Split, Mapping[str, np.ndarray]]

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode."""
        row = int(rng.integers(len(self.x[split])))
        cuts = self.cuts[split][row]
        episode = self.cutter.episode(self.x[split][row], int(cuts[rng.integers(len(cuts))]))
        units = {
            axis: np.full(self.cutter.num_queries, ids[row])
            for axis, ids in self.units[split].items()
        }
        return replace(episode, query_units=units)


def load_forecast(settings: TableTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution of a table's series.

    Args:
        settings: of the tasks, with `kind: forecast`.
        seed: of the episodes.
        sealed: whether to use the sealed deal.

    Raises:
        DataError: a file is broken, or the data cannot serve such episodes.
    """
    cutter = Cutter.of(settings)

    def with_facts(facts: Mapping[str, Any]) -> Cutter:
        return replace(cutter, num_levels=len(facts.get("shares", ())))

    def make() -> Ready:
        found = deal_forecast(settings, sealed=sealed)
        for split in SPLITS:
            if not len(found.chosen[split]):
                raise DataError(
                    f"the meta-{split} split holds no series of {cutter.past + cutter.future} "
                    "steps, as tasks.context, horizon, num_shots, num_queries and stride ask for; "
                    "lower them, or hold out other groups (tasks.split_seed, tasks.val_groups, "
                    "tasks.test_groups)"
                )
        facts = forecast_facts(settings) | level_facts(settings, found.chosen["train"])
        digest = fingerprint(found.chosen, facts)
        found = replace(
            found,
            chosen={
                split: replace(own, x=tuple(with_levels(x, settings, facts) for x in own.x))
                for split, own in found.chosen.items()
            },
            warnings=(*found.warnings, *unknown_in_splits(settings, found.chosen, facts)),
        )
        cuts = {
            split: ragged(map(with_facts(facts).cuts, own.x)) for split, own in found.chosen.items()
        }
        return Ready(found, (), (digest,), cuts, facts)

    ready = ready_table(settings, sealed=sealed, make=make)
    dealt, chosen, facts = ready.dealt, ready.dealt.chosen, ready.facts
    cutter = with_facts(facts)
    return TaskDistribution(
        name=settings.source,
        input_spec=InputSpec(
            settings.asks_for(),
            settings.horizon * max(1, len(settings.quantiles)),
            num_features=cutter.num_inputs(len(facts["columns"]) + cutter.num_levels),
        ),
        seed=seed,
        sample_episode=ForecastSampler(
            cutter,
            {split: chosen[split].x for split in SPLITS},
            ready.cuts,
            {
                split: {axis: unit_ids(own) for axis, own in chosen[split].groups.items()}
                for split in SPLITS
            },
        ),
        fixed_labels=True,
        note=(
            f"meta-test: {len(chosen['test'])} series, forecast {settings.horizon} steps ahead "
            f"after {cutter.past} steps; no {' or '.join(dealt.groups)} of theirs occurs in "
            f"meta-training, but its years do; a season is {settings.season} "
            f"step{'s' * (settings.season > 1)} (tasks.season)"
        ),
        fingerprint=ready.fingerprints[0],
        deal=dealt.deal,
        facts=facts,
        warnings=dealt.warnings,
        season=settings.season,
        legend=Legend(units=unit_names(chosen["test"].groups)),
    )


def forecast_facts(settings: TableTasks) -> dict[str, Any]:
    """The facts about its inputs that a network needs, except for the levels of categories."""
    columns = [settings.target_name, *settings.features, *settings.known]
    further: dict[str, list[Any]] = {"quantiles": settings.quantiles, "known": settings.known}
    facts = {"columns": [*columns, *calendar_names(settings.calendar)], "season": settings.season}
    return facts | {key: list(value) for key, value in further.items() if value}


def deal_forecast(settings: TableTasks, *, sealed: bool = False) -> Dealt:
    """Reads a table and deals its series into splits, whether or not they serve any episodes.

    Raises:
        DataError: a file is broken, a series is too short, or there are too few groups to deal.
    """
    sequences, unread = read_sequences(settings)
    sequences = replace(sequences, classes=("",) * len(sequences))
    warnings = [*unread, *_gaps(sequences, settings)]
    kept = _long_enough(sequences, settings, warnings)
    left_out = {_SHORT: len(sequences) - len(kept)}
    dealt = sequences.select(kept)
    deal: Deal = deal_groups(dealt, settings.groups or [settings.sequence], settings)
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
    split_of = splits_of(dealt, deal)
    used = [row for row, split in enumerate(split_of) if split is not None]
    left_out[_BETWEEN] = len(kept) - len(used)
    rows, dropped = distinct_rows(
        dealt.select(used),
        [content_of(_plain(dealt.x[row])) for row in used],
        [-SPLITS.index(split_of[row] or "train") for row in used],
    )
    left_out[_COPIES] = len(used) - len(rows)
    return Dealt(
        chosen={s: dealt.select(used[r] for r in rows if split_of[used[r]] == s) for s in SPLITS},
        deal=deal,
        num_read=len(sequences),
        left_out={reason: count for reason, count in left_out.items() if count},
        target=settings.target_name,
        task=settings.sequence,
        groups=tuple(deal),
        classes=(),
        warnings=(*warnings, *dropped),
    )


def _plain(x: np.ndarray) -> np.ndarray:
    """Removes a series' level and unit, and rounds: copies in another unit become equal."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread = x.std(axis=0)
        return np.round((x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0), 6)


def _long_enough(sequences: Sequences, settings: TableTasks, warnings: list[str]) -> list[int]:
    """Selects the series that have a valid cut; warns of the others.

    Raises:
        DataError: a series has none, and the settings refuse that.
    """
    cutter = Cutter.of(settings)
    kept = [row for row, x in enumerate(sequences.x) if len(cutter.cuts(x))]
    left = sorted(set(range(len(sequences))) - set(kept))
    if not left:
        return kept
    listed = ", ".join(f"{sequences.ids[row]} ({len(sequences.x[row])} rows)" for row in left[:3])
    text = (
        f"{len(left)} series cannot be cut: an episode needs {cutter.past} steps before the cut, "
        f"in which not every season is the same, and {cutter.future} after it: {listed}"
        + ", …"
        * (len(left) > _SHOWN)
    )
    if settings.small_classes == "refuse" or not kept:
        raise DataError(
            f"{settings.data_dir}: {text}; lower tasks.context, horizon, num_shots, num_queries or "
            "stride, or leave such series out with tasks.small_classes: leave_out"
        )
    warnings.append(f"{text}; left out")
    return kept


def _gaps(sequences: Sequences, settings: TableTasks) -> list[str]:
    """Warns of series with gaps in time: their steps are treated as evenly spaced."""
    uneven = [
        row
        for row, times in enumerate(sequences.times)
        if len(times) > 2 and np.diff(times).max() > _UNEVEN * np.median(np.diff(times))
    ]
    if not uneven:
        return []
    text = (
        f"{len(uneven)} series have gaps in {settings.time}, {sequences.ids[uneven[0]]} for one; "
        "their rows are taken for evenly spaced: fill the gaps in if they are not"
    )
    return [text]
