"""The steps to come of series: their times, and what is known of them in advance.

Shape legend: T time steps of a history, H horizon, K columns known in advance.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from raymeta.data.calendar import calendar_columns
from raymeta.data.readers.arrow import refuse_missing
from raymeta.data.readers.values import labels, numbers
from raymeta.errors import DataError, shown
from raymeta.storage.paths import AnyPath
from raymeta.tasks.table_settings import TableTasks

Times: TypeAlias = pd.DatetimeIndex | np.ndarray


@dataclass(frozen=True)
class Known:
    """A table of what is known of the steps to come; `place` is what messages call it.

    It has the columns of the series, of the times if the experiment names one, and those of
    `tasks.known`.  Rows of other series, and of other times, are not read; without times there must
    be no other rows.
    """

    table: pa.Table
    place: AnyPath

    @staticmethod
    def columns(tasks: TableTasks) -> tuple[str, ...]:
        """The columns that it must have."""
        return tuple(name for name in (tasks.sequence, tasks.time, *tasks.known) if name)

    def of(self, tasks: TableTasks, ahead: Mapping[str, Ahead]) -> dict[str, np.ndarray]:
        """The numbers of each series at the steps to come, `[H, len(tasks.known)]`.

        Args:
            tasks: what the network was trained on.
            ahead: the steps to come of each series.

        Raises:
            DataError: naming series, step and column of the first number that is missing.
        """
        refuse_missing(self.place, self.table.schema.names, self.columns(tasks))
        own, names = labels(self.place, self.table, tasks.sequence)
        values = np.stack(
            [numbers(self.place, self.table, name, may_miss=True) for name in tasks.known], axis=1
        )
        clock = None if tasks.time is None else clock_of(self.table[tasks.time])
        rows = {name: np.flatnonzero(own == code) for code, name in enumerate(names)}
        found = {}
        for series, steps in ahead.items():
            mine = rows.get(series, np.zeros(0, np.int64))
            times = None if clock is None else clock.iloc[mine]
            self._refuse_doubtful(tasks, series, times, len(mine))
            chosen = steps.rows(mine, times)
            for step, row in enumerate(chosen, start=1):
                bare = None if row is None else np.isnan(values[row])
                if bare is not None and not bare.any():
                    continue
                column = tasks.known[0 if bare is None else int(bare.argmax())]
                what = "there is no row for it" if bare is None else "the value is missing"
                raise DataError(
                    f"{self.place}, column {column}, series {shown(series)}, step {step} of "
                    f"{tasks.horizon}{steps.at(step)}: {what}, but the network must know it in "
                    "advance (tasks.known); give it, or leave the series out"
                )
            found[series] = values[chosen]
        return found

    def _refuse_doubtful(
        self, tasks: TableTasks, series: str, clock: pd.Series | None, num_rows: int
    ) -> None:
        """Refuses rows of a series of which it is open to which step they belong."""
        if clock is None and num_rows > tasks.horizon:
            raise DataError(
                f"{self.place}, series {shown(series)}: has {num_rows} rows, but the experiment "
                f"names no column of times (tasks.time): give the {tasks.horizon} steps to come "
                "alone, in their order"
            )
        if clock is not None and (twice := clock[clock.duplicated()]).size:
            raise DataError(
                f"{self.place}, column {tasks.time}, series {shown(series)}: has the time "
                f"{twice.iloc[0]} twice; remove one of the rows"
            )


@dataclass(frozen=True)
class Ahead:
    """The steps to come of a series.

    `times` are theirs, None where the history's are uneven or there are none; `last` is the last
    time of the history, None without times.
    """

    horizon: int
    times: Times | None = None
    last: Any = None

    def at(self, step: int) -> str:
        """The time of a step, counted from 1, for a message; empty without times."""
        return "" if self.times is None else f" ({self.times[step - 1]})"

    def rows(self, rows: np.ndarray, clock: pd.Series | None) -> list[Any]:
        """The row of each step among `rows` with these times; None where there is none."""
        if clock is None:  # in the order of the table
            found = list(rows[: self.horizon])
        elif self.times is None:
            later = np.flatnonzero(_is_after(clock, self.last))
            order = later[np.argsort(clock.to_numpy()[later], kind="stable")]
            found = list(rows[order[: self.horizon]])
        else:
            found = [_at(rows, clock, time) for time in self.times]
        return found + [None] * (self.horizon - len(found))

    def calendar(self, tasks: TableTasks, series: str) -> np.ndarray:
        """The calendar's columns of the steps, `[H, 2 P]`.

        Raises:
            DataError: the times to come are not known.
        """
        if not isinstance(self.times, pd.DatetimeIndex):
            raise DataError(
                f"series {shown(series)}: the calendar of its steps to come is not known "
                f"(tasks.calendar), since the dates in {tasks.time} are not evenly spaced; fill "
                "its gaps in"
            )
        return calendar_columns(pa.array(self.times), tasks.calendar)


def _is_after(clock: pd.Series, last: Any) -> np.ndarray:
    try:
        return np.asarray(clock > last)
    except TypeError:  # times of another kind, such as with and without a zone
        return np.zeros(len(clock), dtype=bool)


def _at(rows: np.ndarray, clock: pd.Series, time: Any) -> Any:
    """The last row at a time; None where there is none."""
    if isinstance(time, pd.Timestamp):
        is_there = np.asarray(clock == time)
    elif pd.api.types.is_numeric_dtype(clock):
        is_there = np.isclose(clock.to_numpy(), time, rtol=1e-9, atol=0)
    else:
        return None
    found = rows[is_there]
    return found[-1] if len(found) else None


def steps_ahead(tasks: TableTasks, table: pa.Table, names: Sequence[str]) -> dict[str, Ahead]:
    """The steps to come of the series that a table of histories calls `names`."""
    if tasks.time is None:
        return {name: Ahead(tasks.horizon) for name in names}
    frame = pd.DataFrame(
        {
            "series": np.array(table[tasks.sequence].cast(pa.string()).to_pylist()),
            "time": clock_of(table[tasks.time]),
        }
    )
    known = {str(name): times for name, times in frame.groupby("series", sort=False)["time"]}
    found = {}
    for name in names:
        times = known[name].sort_values()
        found[name] = Ahead(tasks.horizon, times_to_come(times, tasks.horizon), times.iloc[-1])
    return found


def as_column(times: Times) -> pa.Array:
    """Times to come as a column of a table: days without a time of day as dates."""
    if not isinstance(times, pd.DatetimeIndex):
        return pa.array(times)
    is_date = times.tz is None and (times == times.normalize()).all()
    return pa.array(times.date if is_date else times)


def clock_of(column: pa.ChunkedArray) -> Any:
    """A column of times as pandas orders it: dates, or numbers."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = pd.Series(column.to_pylist())
        numbers = pd.to_numeric(texts, errors="coerce")
        if numbers.notna().all():
            return numbers
        return pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=False)
    if pa.types.is_date(column.type):
        return pd.to_datetime(pd.Series(column.to_pylist()))
    return column.to_pandas()


def times_to_come(times: pd.Series, horizon: int) -> Times | None:
    """The next `horizon` times of a series; None where its steps are uneven."""
    if pd.api.types.is_datetime64_any_dtype(times):
        index = pd.DatetimeIndex(times)
        if len(index) < 3 or index.hasnans:
            return None
        with warnings.catch_warnings():  # it announces another type, which serves as well
            warnings.simplefilter("ignore")
            step = pd.infer_freq(index)
        if step is None:
            return None
        return pd.date_range(index[-1], periods=horizon + 1, freq=step)[1:]
    if not pd.api.types.is_numeric_dtype(times) or len(times) < 2:
        return None
    values = times.to_numpy()
    steps = np.diff(values)
    if not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return None
    coming: np.ndarray = values[-1] + steps[0] * np.arange(1, horizon + 1)
    return coming
