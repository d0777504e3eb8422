"""Reads the files of a user's table for any kind of tasks."""

from __future__ import annotations

from raymeta.data.files import read_each, unread_files
from raymeta.data.readers.table import TableReader
from raymeta.data.sequences import Sequences, joined
from raymeta.errors import DataError
from raymeta.storage.paths import path_at
from raymeta.tasks.table_settings import NumberTarget, TableTasks

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
    )
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
    return found, [] if settings.files else unread_files(folder, files, _OTHER_TABLES)
