"""Cuts series into windows of past and future, and scales them by the past alone.

The support set are windows whose targets end before the cut; queries ask for what follows it:

    past        context + horizon + (num_shots - 1) * stride steps before the cut
    support i   reads the past up to its own first target, i = 0 … num_shots - 1
    query i     reads as many steps, up to i * stride steps behind the cut; its targets come next

Of columns that are known in advance a window also shows the steps of its horizon, behind its own
steps, in which all else is zero.

Everything is scaled by the past alone.  The unit is the mean absolute error, within the past, of
repeating the season before (Hyndman & Koehler 2006, "Another look at measures of forecast
accuracy", section 3.3), so that mean absolute errors are MASE.  A network's targets are differences
to a plain forecast from what its window shows.

Shape legend: L steps of a series, P steps of the past, D columns (the target is the first; the K
known in advance are the last, and before them those of the levels of categories), M windows, T
time steps, H horizon, I inputs of a network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from raymeta.episodes import Episode, Past
from raymeta.tasks.table_settings import TableTasks


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
    num_known: int = 0  # columns known in advance, those of the calendar among them
    num_calendar: int = 0  # columns of the calendar, the last of all
    num_levels: int = 0  # columns of levels, which are read as they are

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
            num_known=len(settings.known) + 2 * len(settings.calendar),
            num_calendar=2 * len(settings.calendar),
        )

    @property
    def past(self) -> int:
        """Steps before the cut that an episode sees."""
        return self.context + self.horizon + (self.num_shots - 1) * self.stride

    @property
    def future(self) -> int:
        """Steps behind the cut that an episode needs."""
        return self.horizon + (self.num_queries - 1) * self.stride

    def num_inputs(self, num_columns: int) -> int:
        """I, for series of D columns."""
        return num_columns + 1 + (self.num_known > 0)

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

        Nothing before `cut` depends on a value behind it, but for the columns known in advance.
        """
        start = cut - self.past
        scale = _Scale.of(x[start:cut], self.season, self._as_they_are(x.shape[1]))
        ends = cut - self.horizon - self.stride * np.arange(self.num_shots)[::-1]
        support: list[int] = ends.tolist()
        query: list[int] = (cut + self.stride * np.arange(self.num_queries)).tolist()
        # Pad to the queries' length: joint training stacks both.
        steps_ahead = self.horizon if self.num_known else 0
        shape = self.num_shots, self.past + steps_ahead, self.num_inputs(x.shape[1])
        support_x = np.zeros(shape, np.float32)
        for row, end in enumerate(support):
            support_x[row, : end - start + steps_ahead] = self._read(scale, x, start, end)
        base = np.stack([self._base(x[end - self.past : end, 0]) for end in query])
        return Episode(
            support_x=support_x,
            support_y=np.stack(
                [
                    (self._ahead(x, end) - self._base(x[start:end, 0])) / scale.unit
                    for end in support
                ]
            ),
            query_x=np.stack([self._read(scale, x, end - self.past, end) for end in query]),
            query_y=(np.stack([self._ahead(x, end) for end in query]) - base) / scale.unit,
            support_lengths=ends - start + steps_ahead,
            query_lengths=np.full(self.num_queries, self.past + steps_ahead),
            support_ids=np.array(support),
            query_ids=np.array(query),
            query_past=Past(
                values=np.stack([x[end - self.past : end, 0] for end in query]),
                base=base,
                unit=np.full((self.num_queries, 1), scale.unit),
            ),
        )

    def question(self, past: np.ndarray, known: np.ndarray | None = None) -> Episode:
        """The episode that asks what follows a past `[P, D]`: one query, whose targets are zeros.

        The past must be one that it `takes`; `known` `[H, K]` are the columns known in advance.
        """
        one = replace(self, num_queries=1)
        coming = np.zeros((self.horizon, past.shape[1]))
        if known is not None:
            coming[:, past.shape[1] - self.num_known :] = known
        episode = one.episode(np.concatenate([past, coming]), self.past)
        return replace(episode, query_y=np.zeros_like(episode.query_y))

    def takes(self, past: np.ndarray) -> bool:
        """Whether the target of a past `[P, D]` changes between seasons, by finite numbers."""
        changes = self._changes(past)
        return bool((changes > 0).any() and np.isfinite(changes.sum()))

    def _read(self, scale: _Scale, x: np.ndarray, start: int, end: int) -> np.ndarray:
        """The network's inputs for the steps from `start` to `end`, `[T, I]`.

        With columns known in advance there are H more steps, which the last input marks by a one.
        """
        window = scale.read(x[start:end])
        if not self.num_known:
            return window
        place = x.shape[1] - self.num_known
        ahead = np.zeros((self.horizon, window.shape[1] + 1), np.float32)
        ahead[:, 1 + place : -1] = scale.of_others(x[end : end + self.horizon, place:], place)
        ahead[:, -1] = 1
        return np.concatenate([np.pad(window, ((0, 0), (0, 1))), ahead])

    def _as_they_are(self, num_columns: int) -> np.ndarray:
        """Marks those of the D - 1 other columns that are not scaled: levels and the calendar."""
        found = np.zeros(num_columns - 1, dtype=bool)
        place = len(found) - self.num_known
        found[place - self.num_levels : place] = True
        found[len(found) - self.num_calendar :] = True
        return found

    def _changes(self, x: np.ndarray) -> np.ndarray:
        """The absolute change of the target since the season before, `[L - season]`."""
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
    """The units of a past's numbers; see the top of this module.

    `center` and `spread` `[D - 1]` are those of the columns beside the target.
    """

    unit: float
    center: np.ndarray
    spread: np.ndarray
    season: int

    @classmethod
    def of(cls, past: np.ndarray, season: int, as_they_are: np.ndarray) -> _Scale:
        """The scale of a past `[P, D]`; the columns marked in `as_they_are` `[D - 1]` stay."""
        others = past[:, 1:]
        size = np.abs(others).max(axis=0)  # squares of large numbers would overflow
        size[size == 0] = 1.0
        center = size * (others / size).mean(axis=0)
        spread = size * (others / size).std(axis=0)
        center[as_they_are], spread[as_they_are] = 0.0, 1.0
        return cls(
            unit=float(np.abs(past[season:, 0] - past[:-season, 0]).mean()),
            center=center,
            spread=np.where(spread > 0, spread, 1.0),
            season=season,
        )

    def read(self, window: np.ndarray) -> np.ndarray:
        """The network's inputs for a window `[T, D]`, float32 `[T, D + 1]`.

        The target relative to its last value, its change over a season, and the other columns.
        """
        values = window[:, 0]
        change = np.zeros_like(values)
        change[self.season :] = values[self.season :] - values[: -self.season]
        scaled = np.stack([values - values[-1], change], axis=1) / self.unit
        return np.concatenate([scaled, self.of_others(window[:, 1:], 1)], axis=1, dtype=np.float32)

    def of_others(self, values: np.ndarray, place: int) -> np.ndarray:
        """Scales the columns from `place` on, `[T, D - place]`."""
        found: np.ndarray = (values - self.center[place - 1 :]) / self.spread[place - 1 :]
        return found


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
