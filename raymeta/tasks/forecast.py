"""Forecasts of series from a long table: a task is one series, cut in two at a random step.

The support set are windows whose targets end before the cut; queries ask for what follows it:

    past        context + horizon + (num_shots - 1) * stride steps before the cut
    support i   reads the past up to its own first target, i = 0 … num_shots - 1
    query i     reads as many steps, up to i * stride steps behind the cut; its targets come next

Everything is scaled by the past alone.  The unit is the mean absolute error, within the past, of
repeating the season before (Hyndman & Koehler 2006, "Another look at measures of forecast
accuracy", section 3.3), so that mean absolute errors are MASE.  A network's targets are differences
to a plain forecast from what its window shows.

Shape legend: S series, L steps of a series, P steps of the past, D columns (the target is the
first), M windows, T time steps, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from raymeta.data.duplicates import distinct_rows
from raymeta.data.sequences import Sequences, content_of
from raymeta.data.splits import Deal, deal_sealed
from raymeta.episodes import SPLITS, Episode, InputSpec, Legend, Past, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.dealt import Dealt, deal_groups, splits_of
from raymeta.tasks.sampling import fingerprint, unit_ids, unit_names
from raymeta.tasks.table_files import read_sequences
from raymeta.tasks.table_settings import TableTasks

_SHOWN = 3  # most names listed in a message
_UNEVEN = 1.5  # a step of time that is longer than this many median steps is a gap

_BETWEEN = "two of their groups are in different splits"
_COPIES = "copies of others, but for level and unit"
_SHORT = "too short to be cut, or the same in every season (tasks.small_classes)"


@dataclass(frozen=True)
class Cutter:
    """Makes windows of a series around a cut."""

    context: int
    horizon: int
    season: int
    stride: int
    num_shots: int
    num_queries: int
    difference: str  # baseline of the targets; see `TableTasks`

    @classmethod
    def of(cls, settings: TableTasks) -> Cutter:
        """Makes the cutter that the settings describe."""
        return cls(
            context=settings.context,
            horizon=settings.horizon,
            season=settings.season,
            stride=settings.stride,
            num_shots=settings.num_shots,
            num_queries=settings.num_queries,
            difference=settings.difference,
        )

    @property
    def past(self) -> int:
        """Steps before the cut that an episode sees."""
        return self.context + self.horizon + (self.num_shots - 1) * self.stride

    @property
    def future(self) -> int:
        """Steps behind the cut that an episode needs."""
        return self.horizon + (self.num_queries - 1) * self.stride

    def cuts(self, x: np.ndarray) -> np.ndarray:
        """Finds the cuts of a series `[L, D]` whose past varies between seasons, int64."""
        if len(x) < self.past + self.future:
            return np.zeros(0, np.int64)
        changes = self._changes(x)
        # Of each run of the past's changes: the cut behind it leaves room for the future.
        runs = sliding_window_view(changes, self.past - self.season)
        runs = runs[: len(x) - self.past - self.future + 1]
        is_sound = (runs > 0).any(axis=1) & np.isfinite(runs.sum(axis=1))
        return np.flatnonzero(is_sound) + self.past

    def episode(self, x: np.ndarray, cut: int) -> Episode:
        """Makes the windows of a series `[L, D]` around a cut.

        Ids are the steps of their first targets.

        Nothing before `cut` depends on a value behind it.
        """
        start = cut - self.past
        scale = _Scale.of(x[start:cut], self.season)
        ends = cut - self.horizon - self.stride * np.arange(self.num_shots)[::-1]
        support: list[int] = ends.tolist()
        query: list[int] = (cut + self.stride * np.arange(self.num_queries)).tolist()
        # Pad to the queries' length: joint training stacks both.
        support_x = np.zeros((self.num_shots, self.past, x.shape[1] + 1), np.float32)
        for row, end in enumerate(support):
            support_x[row, : end - start] = scale.read(x[start:end])
        base = np.stack([self._base(x[end - self.past : end, 0]) for end in query])
        return Episode(
            support_x=support_x,
            support_y=np.stack(
                [
                    (self._ahead(x, end) - self._base(x[start:end, 0])) / scale.unit
                    for end in support
                ]
            ),
            query_x=np.stack([scale.read(x[end - self.past : end]) for end in query]),
            query_y=(np.stack([self._ahead(x, end) for end in query]) - base) / scale.unit,
            support_lengths=ends - start,
            query_lengths=np.full(self.num_queries, self.past),
            support_ids=np.array(support),
            query_ids=np.array(query),
            query_past=Past(
                values=np.stack([x[end - self.past : end, 0] for end in query]),
                base=base,
                unit=np.full((self.num_queries, 1), scale.unit),
            ),
        )

    def question(self, past: np.ndarray) -> Episode:
        """The episode that asks what follows a past `[P, D]`: one query, whose targets are zeros.

        The past must be one that it `takes`.
        """
        one = replace(self, num_queries=1)
        unknown = np.zeros((self.horizon, past.shape[1]))
        episode = one.episode(np.concatenate([past, unknown]), self.past)
        return replace(episode, query_y=np.zeros_like(episode.query_y))

    def takes(self, past: np.ndarray) -> bool:
        """Whether a past `[P, D]` differs from season to season, by finite numbers."""
        changes = self._changes(past)
        return bool((changes > 0).any() and np.isfinite(changes.sum()))

    def _changes(self, x: np.ndarray) -> np.ndarray:
        """What each season changed of the one before it, `[L - season]`."""
        with np.errstate(over="ignore"):
            changes: np.ndarray = np.abs(x[self.season :, 0] - x[: -self.season, 0])
        return changes

    def _ahead(self, x: np.ndarray, end: int) -> np.ndarray:
        """The values to forecast from `end` on, `[H]`."""
        return x[end : end + self.horizon, 0]

    def _base(self, known: np.ndarray) -> np.ndarray:
        """The baseline of the targets that follow the `known` values, `[H]`."""
        if self.difference == "last":
            return seasonal_naive(known, 1, self.horizon)
        if self.difference == "drift" and len(known) > self.season:
            return moved_season(known, self.season, self.horizon)
        return seasonal_naive(known, self.season, self.horizon)


@dataclass(frozen=True)
class _Scale:
    """What the numbers of a past are measured in; see the top of this module.

    `center` and `spread` `[D - 1]` are those of the columns beside the target.
    """

    unit: float
    center: np.ndarray
    spread: np.ndarray
    season: int

    @classmethod
    def of(cls, past: np.ndarray, season: int) -> _Scale:
        """That of a past `[P, D]`."""
        others = past[:, 1:]
        size = np.abs(others).max(axis=0)  # squares of large numbers would overflow
        size[size == 0] = 1.0
        spread = size * (others / size).std(axis=0)
        return cls(
            unit=float(np.abs(past[season:, 0] - past[:-season, 0]).mean()),
            center=size * (others / size).mean(axis=0),
            spread=np.where(spread > 0, spread, 1.0),
            season=season,
        )

    def read(self, window: np.ndarray) -> np.ndarray:
        """What a network reads of a window `[T, D]`, float32 `[T, D + 1]`.

        The target relative to its last value, its change over a season, and the other columns.
        """
        values = window[:, 0]
        change = np.zeros_like(values)
        change[self.season :] = values[self.season :] - values[: -self.season]
        scaled = np.stack([values - values[-1], change], axis=1) / self.unit
        others = (window[:, 1:] - self.center) / self.spread
        return np.concatenate([scaled, others], axis=1).astype(np.float32)


def seasonal_naive(known: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Repeats the last season, `[..., H]`; the last value if a season is one step.

    Args:
        known: `[..., T]` with T ≥ `season`.
        season: steps of a season.
        horizon: H.
    """
    return known[..., -season + np.arange(horizon) % season]


def moved_season(known: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Repeats the last season, each time moved by the last change over a season, `[..., H]`.

    Arguments are those of `seasonal_naive`, with T > `season`.
    """
    change = known[..., -1:] - known[..., -1 - season, None]
    seasons = 1 + np.arange(horizon) // season
    moved: np.ndarray = seasonal_naive(known, season, horizon) + seasons * change
    return moved


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
    dealt, cutter = deal_forecast(settings, sealed=sealed), Cutter.of(settings)
    for split in SPLITS:
        if not len(dealt.chosen[split]):
            raise DataError(
                f"the meta-{split} split holds no series of {cutter.past + cutter.future} steps, "
                "as tasks.context, horizon, num_shots, num_queries and stride ask for; lower them, "
                "or hold out other groups (tasks.split_seed, tasks.val_groups, tasks.test_groups)"
            )
    chosen = dealt.chosen
    facts = forecast_facts(settings)
    return TaskDistribution(
        name="table",
        input_spec=InputSpec(
            settings.asks_for(),
            settings.horizon * max(1, len(settings.quantiles)),
            num_features=len(facts["columns"]) + 1,
        ),
        seed=seed,
        sample_episode=ForecastSampler(
            cutter,
            {split: chosen[split].x for split in SPLITS},
            {split: [cutter.cuts(x) for x in chosen[split].x] for split in SPLITS},
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
        fingerprint=fingerprint(chosen, facts),
        deal=dealt.deal,
        facts=facts,
        warnings=dealt.warnings,
        season=settings.season,
        legend=Legend(units=unit_names(chosen["test"].groups)),
    )


def forecast_facts(settings: TableTasks) -> dict[str, Any]:
    """What a network must know of its inputs; JSON keeps it."""
    facts = {"columns": [settings.target_name, *settings.features], "season": settings.season}
    return facts | ({"quantiles": list(settings.quantiles)} if settings.quantiles else {})


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
