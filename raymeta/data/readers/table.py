"""Long tables in CSV or Parquet: one row a time step, one column a feature, read by Arrow.

Shape legend: R rows, T time steps, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds

from raymeta.data.files import shown
from raymeta.data.sequences import Sequences
from raymeta.errors import DataError
from raymeta.storage.paths import AnyPath, RemotePath


@dataclass(frozen=True)
class TableReader:
    """Reads the columns that it names; see `raymeta.tasks.settings.TableTasks`."""

    sequence: str
    target: str | None  # None: the sequences have no class
    features: tuple[str, ...]
    time: str | None = None
    groups: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        named = [self.sequence, self.target, self.time, *self.groups, *self.features]
        return tuple(name for name in named if name is not None)

    def __call__(self, path: AnyPath) -> Sequences:
        """Reads one file.

        Returns:
            The sequences in the order of their first rows, their steps ordered by time.  The axes
            of `groups` are the columns of the sequence and of the groups.

        Raises:
            DataError: naming the file, and column and row where there is one; rows count from 1,
                without the header.
        """
        return self.sequences(self._table(path), path)

    def sequences(self, table: pa.Table, path: AnyPath) -> Sequences:
        """The sequences of a table that was read before; `path` is what messages call it.

        Raises:
            DataError: as for a file.
        """
        self.check_columns(table.schema.names, path)
        if table.num_rows == 0:
            raise DataError(f"{path}: has no rows")
        columns = [_numbers(path, table, name) for name in self.features]
        x = np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0))
        target = () if self.target is None else (self.target,)
        labels = {
            name: _labels(path, table, name) for name in (self.sequence, *target, *self.groups)
        }
        names = labels[self.sequence]
        first: dict[str, int] = {}
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            first.setdefault(name, row)
            rows.setdefault(name, []).append(row)
        for name in (*target, *self.groups):
            for row, value in enumerate(labels[name]):
                expected = labels[name][first[names[row]]]
                if value != expected:
                    raise DataError(
                        f"{path}, row {row + 1}, column {name}: must be the same in all rows of "
                        f"sequence {shown(names[row])}, but is {shown(value)} after "
                        f"{shown(expected)}; give every sequence an id of its own"
                    )
        order = self._order(path, table, rows)
        return Sequences(
            x=tuple(x[order[name]] for name in first),
            classes=tuple(labels[name][row] for name in target for row in first.values()),
            groups={
                axis: tuple(labels[axis][row] for row in first.values())
                for axis in (self.sequence, *self.groups)
            },
            ids=tuple(f"{path.name}, sequence {shown(name)}" for name in first),
        )

    def _table(self, path: AnyPath) -> pa.Table:
        """The columns as Arrow reads them; those of a CSV file as text, which is checked here."""
        is_text = not path.name.endswith(".parquet")
        remote = isinstance(path, RemotePath)
        try:
            dataset = ds.dataset(
                path.path if isinstance(path, RemotePath) else str(path),
                format=_csv(dict.fromkeys(self.columns, pa.string())) if is_text else "parquet",
                filesystem=path.filesystem if isinstance(path, RemotePath) else None,
            )
            self.check_columns(dataset.schema.names, path)
            return dataset.to_table(columns=list(self.columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            kind = "CSV" if is_text else "Parquet"
            where = " (from the storage)" if remote else ""
            raise DataError(f"{path}: cannot be read as {kind}{where}: {error!s:.400}") from error

    def check_columns(self, names: Sequence[str], path: AnyPath) -> None:
        """Refuses a table that has not each of the columns once.

        Raises:
            DataError: naming the first one.
        """
        known = Counter(names)
        for name in self.columns:
            if known[name] != 1:
                raise _no_column(path, name, known)

    def _order(
        self, path: AnyPath, table: pa.Table, rows: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        """The rows of each sequence, in the order of time."""
        if self.time is None:
            for name, own in rows.items():
                if own[-1] - own[0] + 1 != len(own):
                    after = next(a for a, b in pairwise(own) if b != a + 1)
                    raise DataError(
                        f"{path}, row {after + 2}: the rows of sequence {shown(name)} are not "
                        "together; sort them, name a column of times as tasks.time, or give every "
                        "sequence an id of its own"
                    )
            return rows
        times = _times(path, table, self.time)
        ordered = {}
        for name, own in rows.items():
            order = [own[place] for place in np.argsort(times[own], kind="stable")]
            for one, other in pairwise(order):
                if times[one] == times[other]:
                    raise DataError(
                        f"{path}, row {other + 1}, column {self.time}: sequence {shown(name)} has "
                        f"the time of row {one + 1} again; remove one of them, or give every "
                        "sequence an id of its own"
                    )
            ordered[name] = order
        return ordered


def _csv(column_types: dict[str, pa.DataType]) -> ds.CsvFileFormat:
    options = pyarrow.csv.ConvertOptions(column_types=column_types, strings_can_be_null=False)
    return ds.CsvFileFormat(convert_options=options)


def _no_column(path: AnyPath, name: str, known: Counter[str]) -> DataError:
    if known[name]:
        return DataError(f"{path}: has {known[name]} columns called {name!r}; rename all but one")
    close = get_close_matches(name, known, n=1)
    listed = ", ".join(f"{column!r:.40}" for column in list(known)[:10])
    hint = f"; did you mean {close[0]!r:.60}?" if close else f"; it has {listed}"
    return DataError(f"{path}: has no column {name!r:.100}{hint}")


def _labels(path: AnyPath, table: pa.Table, name: str) -> list[str]:
    """A column as text, none of it missing."""
    column = table[name]
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        raise DataError(
            f"{path}, column {name}: must hold text or whole numbers, but holds {column.type}"
        )
    values: list[Any] = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(
                f"{path}, row {row + 1}, column {name}: the value is missing; fill it in, or "
                "remove the row"
            )
    return [str(value) for value in values]


def _numbers(path: AnyPath, table: pa.Table, name: str) -> np.ndarray:
    """A column as finite numbers, float64 `[R]`."""
    column = table[name].combine_chunks()
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
        raise DataError(f"{path}, column {name}: must hold numbers, but holds {column.type}")
    bad = partial(_not_a_number, path, name, column)
    if column.null_count:
        raise bad(pc.index(pc.is_null(column), True).as_py())
    try:
        values = np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False))
    except (pa.ArrowException, ValueError):
        raise bad(_first_that_fails(column, pa.float64())) from None
    finite = np.isfinite(values)
    if not finite.all():
        raise bad(int(np.argmin(finite)))
    return values


def _times(path: AnyPath, table: pa.Table, name: str) -> np.ndarray:
    """A column as something that can be ordered `[R]`: numbers, or dates in ISO 8601 form."""
    column = table[name].combine_chunks()
    if pa.types.is_temporal(column.type) and not column.null_count:
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type) and not column.null_count:
        try:
            dates = pc.cast(column, pa.timestamp("ns"))
            return np.asarray(dates.cast(pa.int64()).to_numpy(zero_copy_only=False))
        except (pa.ArrowException, ValueError):
            pass  # numbers, or the message that says they are none
    return _numbers(path, table, name)


def _first_that_fails(column: pa.Array, wanted: pa.DataType) -> int:
    """The first row that cannot be converted, by halving: a table may have millions."""
    start, end = 0, len(column)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            pc.cast(column[start:middle], wanted)
            start = middle
        except (pa.ArrowException, ValueError):
            end = middle
    return start


def _not_a_number(path: AnyPath, name: str, column: pa.Array, row: int) -> DataError:
    value = column[row].as_py()
    what = "the value is missing" if value in (None, "") else f"{shown(value)} is no finite number"
    return DataError(
        f"{path}, row {row + 1}, column {name}: {what}; mend it, remove the row, or leave the "
        "column out of tasks.features"
    )
