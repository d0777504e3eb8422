"""Reads long tables: one row per time step, one column per feature.

Shape legend: R rows, T time steps, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymeta.data.calendar import calendar_columns
from raymeta.data.ragged import Ragged
from raymeta.data.readers.arrow import read_columns, refuse_missing
from raymeta.data.readers.values import categories, dates, labels, numbers, times
from raymeta.data.sequences import Sequences, level_code
from raymeta.errors import DataError, shown
from raymeta.storage.paths import AnyPath


@dataclass(frozen=True)
class TableReader:
    """Reads the configured columns; see `raymeta.tasks.table_settings.TableTasks`."""

    sequence: str
    target: str | None  # None: the sequences have no class
    features: tuple[str, ...]
    time: str | None = None
    groups: tuple[str, ...] = ()
    may_miss: bool = False
    calendar: tuple[str, ...] = ()  # of the column `time`, two columns each behind the features
    categories: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        named = [self.sequence, self.target, self.time, *self.groups]
        named += [*self.features, *self.categories]
        return tuple(name for name in named if name is not None)

    def __call__(self, path: AnyPath) -> Sequences:
        """Reads one file.

        Returns:
            The sequences in the order of their first rows, their steps ordered by time.  The axes
            of `groups` are the columns of the sequence and of the groups.  A missing number is NaN.
            Behind the features stand the calendar's columns, and then the codes of the categories.

        Raises:
            DataError: naming the file, and column and row where there is one.
        """
        return self.sequences(read_columns(path, self.columns), path)

    def sequences(self, table: pa.Table, path: AnyPath) -> Sequences:
        """Groups a table's rows into sequences; `path` names the table in messages.

        Raises:
            DataError: as for a file.
        """
        refuse_missing(path, table.schema.names, self.columns)
        if table.num_rows == 0:
            raise DataError(f"{path}: has no rows")
        end = len(self.features) + 2 * len(self.calendar)
        x = np.empty((table.num_rows, end + len(self.categories)))
        for place, name in enumerate(self.features):
            x[:, place] = numbers(path, table, name, may_miss=self.may_miss)
        if self.calendar:
            assert self.time is not None, "a calendar is of the column of times"
            stamps = dates(path, table, self.time)
            x[:, len(self.features) : end] = calendar_columns(stamps, self.calendar)
        levels: dict[float, str] = {}
        for place, name in enumerate(self.categories, start=-len(self.categories)):
            numbered, texts = categories(path, table, name)
            codes = np.array([*map(level_code, texts), np.nan])  # the last is of a missing value
            x[:, place] = codes[numbered]
            levels |= zip(codes.tolist(), texts, strict=False)
        own, names = labels(path, table, self.sequence)  # numbered as they begin
        first = np.full(len(names), len(own))
        np.minimum.at(first, own, np.arange(len(own)))
        facts: dict[str, tuple[str, ...]] = {}
        target = () if self.target is None else (self.target,)
        for name in (*target, *self.groups):
            codes, values = labels(path, table, name)
            differs = codes != codes[first[own]]
            if differs.any():
                row = int(np.argmax(differs))
                raise DataError(
                    f"{path}, row {row + 1}, column {name}: must be the same in all rows of "
                    f"sequence {shown(names[own[row]])}, but is {shown(values[codes[row]])} after "
                    f"{shown(values[codes[first[own[row]]]])}; give every sequence an id of its own"
                )
            facts[name] = tuple(values[code] for code in codes[first])
        lengths, clock, are_dates = np.bincount(own), None, None
        if self.time is None:
            self._refuse_parted(path, own, names)
        else:
            at, unit = times(path, table, self.time)
            are_dates = unit != 1  # numbers keep their own unit
            order = self._order(path, own, names, at)
            # Within a sequence: whole numbers of nanoseconds since 1970 are too long for a float.
            clock = (at - at[order][np.cumsum(lengths) - lengths][own]) * unit
            if (np.diff(order) != 1).any():
                x, clock = x[order], clock[order]
        return Sequences(
            x=Ragged.contiguous(x, lengths),
            classes=() if self.target is None else facts[self.target],
            groups={
                axis: tuple(names) if axis == self.sequence else facts[axis]
                for axis in (self.sequence, *self.groups)
            },
            ids=tuple(f"{path.name}, sequence {shown(name)}" for name in names),
            times=() if clock is None else Ragged.contiguous(clock, lengths),
            levels=levels,
            are_dates=are_dates,
        )

    @staticmethod
    def _refuse_parted(path: AnyPath, own: np.ndarray, names: list[str]) -> None:
        """Refuses sequences whose rows are not contiguous if there is no column of times."""
        goes_back = np.flatnonzero(np.diff(own) < 0)
        if len(goes_back):
            row = int(goes_back[0]) + 1
            raise DataError(
                f"{path}, row {row + 1}: the rows of sequence {shown(names[own[row]])} are not "
                "together; sort them, name a column of times as tasks.time, or give every sequence "
                "an id of its own"
            )

    def _order(
        self, path: AnyPath, own: np.ndarray, names: list[str], at: np.ndarray
    ) -> np.ndarray:
        """Sorts the rows by sequence, then by time."""
        order = np.lexsort((at, own))
        same = (np.diff(own[order]) == 0) & (at[order][1:] == at[order][:-1])
        if same.any():
            place = int(np.argmax(same))
            one, other = order[place], order[place + 1]
            raise DataError(
                f"{path}, row {other + 1}, column {self.time}: sequence {shown(names[own[one]])} "
                f"has the time of row {one + 1} again; remove one of them, or give every sequence "
                "an id of its own"
            )
        return order
