"""Reads the columns of an undescribed table as numbers, times or labels.

Shape legend: R rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymeta.data.readers.arrow import read_columns
from raymeta.data.readers.values import labels, numbers, times
from raymeta.errors import DataError
from raymeta.storage.paths import AnyPath


@dataclass(frozen=True)
class Column:
    """A column read as each kind; None for a kind that does not fit.

    `numbers` `[R]` (NaN where one is missing), `times` `[R]` that order rows, and `codes` `[R]`
    that number its `labels`.
    """

    numbers: np.ndarray | None = None
    times: np.ndarray | None = None
    codes: np.ndarray | None = None
    labels: tuple[str, ...] = ()

    @property
    def num_missing(self) -> int:
        """The missing numbers in a column of numbers."""
        return 0 if self.numbers is None else int(np.isnan(self.numbers).sum())

    def is_constant_in(self, owner: np.ndarray) -> bool:
        """Whether rows of the same `owner` `[R]` (numbered from 0) have the same value."""
        values = self.numbers if self.codes is None else self.codes
        if values is None:
            return False
        first = np.full(owner.max() + 1, len(owner))
        np.minimum.at(first, owner, np.arange(len(owner)))
        return bool(np.array_equal(values, values[first[owner]], equal_nan=self.codes is None))


def read_table(
    files: Sequence[AnyPath],
    columns: Sequence[str] | None = None,
    but: Collection[str] = (),
) -> dict[str, Column]:
    """Reads columns by name, or all `but` some; the files' rows are concatenated.

    Raises:
        DataError: a file is broken, or has other columns than the first one.
    """
    parts: list[dict[str, Column]] = []
    for path in files:
        parts.append(columns_of(path, read_columns(path, columns, but=but)))
        if parts[-1].keys() != parts[0].keys():
            differ = sorted(parts[-1].keys() ^ parts[0].keys())
            raise DataError(
                f"{path}: must have the columns of {files[0].name}, but differs in "
                f"{differ[0]!r:.100}; give both the same columns, or name the files to read"
            )
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def columns_of(path: AnyPath, table: pa.Table) -> dict[str, Column]:
    """All columns of a table by name; `path` names it in messages."""
    return {name: _column(path, table, name) for name in table.column_names}


def _column(path: AnyPath, table: object, name: str) -> Column:
    found: np.ndarray | None = None
    at: np.ndarray | None = None
    codes: np.ndarray | None = None
    names: list[str] = []
    with suppress(DataError):
        found = numbers(path, table, name, may_miss=True)
    if found is None or not np.isnan(found).any():
        with suppress(DataError):
            at, _ = times(path, table, name)
    if found is None or np.array_equal(found, np.round(found)):
        with suppress(DataError):
            codes, names = labels(path, table, name)
    return Column(found, at, codes, tuple(names))


def _joined(parts: Sequence[Column]) -> Column:
    """Joins one column of several files; it keeps only kinds that fit in every file."""
    number: dict[str, int] = {}
    codes = []
    for part in parts:
        if part.codes is not None:
            of = np.array([number.setdefault(label, len(number)) for label in part.labels])
            codes.append(of[part.codes])

    def whole(values: list[np.ndarray | None]) -> np.ndarray | None:
        known = [value for value in values if value is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    return Column(
        whole([part.numbers for part in parts]),
        whole([part.times for part in parts]),
        np.concatenate(codes) if len(codes) == len(parts) else None,
        tuple(number) if len(codes) == len(parts) else (),
    )
