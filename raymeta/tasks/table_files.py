"""Reads the files of a user's table for any kind of tasks."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import pyarrow as pa

from raymeta.data.files import read_each, stamps, unread_files
from raymeta.data.readers.columns import Column, columns_of, read_table
from raymeta.data.readers.python import PythonReader
from raymeta.data.readers.table import TableReader
from raymeta.data.sequences import Sequences, joined
from raymeta.errors import DataError
from raymeta.storage.paths import path_at
from raymeta.tasks.python_settings import PythonTasks
from raymeta.tasks.table_sections import NumberTarget
from raymeta.tasks.table_settings import TableTasks

# Suffixes of unsupported tables, about which users are warned.
_OTHER_TABLES = (".gz", ".bz2", ".zst", ".zip", ".xlsx", ".xls", ".json", ".txt", ".pq")


def read_sequences(settings: TableTasks) -> tuple[Sequences, list[str]]:
    """Reads all sequences of the table, and warns of files that are not read.

    If the target is a column of numbers, a step holds the target and then the features, and there
    are no classes.

    Raises:
        DataError: a file is broken, or a sequence is too long or in two files.
    """
    files = settings.data_files()
    folder = path_at(settings.data_dir)
    if not files:
        named = f"named {', '.join(settings.files)!r:.100} " if settings.files else "of a table "
        raise DataError(
            f"{settings.data_dir}: no file {named}found; set tasks.data_dir and tasks.files"
        )
    is_forecast = settings.kind == "forecast"
    # The target is the first column of numbers, or it is made of the times.
    has_column = is_forecast or isinstance(settings.target, NumberTarget)
    target = [settings.target_name] if has_column else []
    features = [*target, *settings.features, *settings.known]
    reader = TableReader(
        sequence=settings.sequence,
        target=None if is_forecast or settings.has_numbers else settings.target_name,
        features=tuple(features),
        time=settings.time,
        groups=tuple(settings.groups),
        may_miss=settings.missing != "refuse",
        calendar=tuple(settings.calendar),
        categories=tuple(settings.categories),
    )
    if isinstance(settings, PythonTasks):
        files = [settings.module_file]
        read = [reader.sequences(returned_table(settings), settings.module_file)]
    else:
        read = read_each(reader, files)
    for path, sequences in zip(files, read, strict=True):
        longest = int(sequences.lengths.argmax())
        is_whole = not is_forecast and settings.window is None
        if len(sequences.x[longest]) > settings.max_steps and is_whole:
            raise DataError(
                f"{path}: {sequences.ids[longest]} has {len(sequences.x[longest])} rows, but "
                f"tasks.max_steps is {settings.max_steps}; raise it, or cut the sequence up "
                "(kind: groups: with tasks.window)"
            )
    found = joined(read)
    file_of: dict[str, str] = {}
    for name, place in zip(found.groups[settings.sequence], found.ids, strict=True):
        if name in file_of:
            raise DataError(
                f"{settings.data_dir}: the id of {place} occurs in another file too "
                f"({file_of[name]}); give every sequence an id of its own"
            )
        file_of[name] = place
    is_named = bool(settings.files) or isinstance(settings, PythonTasks)
    return found, [] if is_named else unread_files(folder, files, _OTHER_TABLES)


def read_columns_of(
    settings: TableTasks, columns: Sequence[str] | None = None, but: Collection[str] = ()
) -> dict[str, Column]:
    """Reads columns of the table by name, or all `but` some, those without a role included.

    Raises:
        DataError: a file is broken.
    """
    if not isinstance(settings, PythonTasks):
        return read_table(settings.data_files(), columns, but)
    table = returned_table(settings)
    names = table.column_names if columns is None else columns
    return columns_of(settings.module_file, table.select([n for n in names if n not in but]))


def returned_table(settings: PythonTasks) -> pa.Table:
    """The table that the user's function returns; it is called once while the files stay.

    Raises:
        DataError: its code is not allowed to run, or breaks, or returns no table.
    """
    module, name = settings.module_file, settings.function.partition(":")[2]
    others = stamps([file for file in settings.data_files() if file != module])
    (table,) = read_each(PythonReader(name, json.dumps(settings.options), others), [module])
    return table
