"""Guesses a table's settings: the roles of its columns, and episodes that it can serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from raymeta.data.files import TABLE_SUFFIXES, table_files
from raymeta.data.readers.columns import Column, read_table
from raymeta.errors import DataError
from raymeta.finding import Finding
from raymeta.storage.paths import path_at
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.guess_forecast import guess_forecast, looks_like_forecast
from raymeta.tasks.guess_regression import guess_regression, looks_like_regression
from raymeta.tasks.roles import Roles
from raymeta.tasks.table import deal_table
from raymeta.tasks.table_settings import TableTasks
from raymeta.tasks.text_guess import guess_texts, text_column

_MAX_WAYS, _MAX_QUERIES = 5, 3  # what a first experiment asks for, where the data have it
_HELD_OUT = 0.2  # share of classes and groups for each of validation and test


@dataclass
class Guess:
    """Guessed settings with findings, classes and groups."""

    settings: Any  # TableTasks, or TextTasks for a table of texts
    findings: list[Finding] = field(default_factory=list)


def guess_tasks(
    location: str,
    *,
    target: str | None = None,
    task: Iterable[str] = (),
    sequence: str | None = None,
    time: str | None = None,
) -> Guess:
    """Guesses the settings of a table's tasks.

    Args:
        location: a file, a folder, or a pattern such as `recordings/*.csv`.
        target: the column of the class or the number of a sequence, or of the numbers to be
            forecast, if it is known; as are
            the following.
        task: the columns whose groups are tasks, or stay together; of texts, their domain.
        sequence: the column of the sequence that a row belongs to.
        time: the column that orders a sequence's rows.

    Raises:
        DataError: a file is broken, the table cannot serve any episode, or a role stays open.
    """
    folder, names = _place(location)
    files = table_files(path_at(folder), names)
    if not files:
        raise DataError(f"{location}: no table file found there")
    columns = read_table(files)
    roles = Roles(columns, location)
    text = text_column(columns)
    if text is not None and sequence is None and time is None:
        place = {"data_dir": folder, "files": names}
        texts = guess_texts(roles, text, target=target, task=list(task), files=place)
        return Guess(texts, roles.findings)
    if looks_like_forecast(columns, target, sequence, time):
        place = {"source": "table", "data_dir": folder, "files": names}
        forecast = guess_forecast(
            roles, place, target=target, task=list(task), sequence=sequence, time=time
        )
        return Guess(forecast, roles.findings)
    if target is not None and looks_like_regression(columns, target, sequence):
        place = {"source": "table", "data_dir": folder, "files": names}
        numbers = guess_regression(
            roles, place, target=target, task=list(task), sequence=sequence, time=time
        )
        return Guess(numbers, roles.findings)
    label = roles.target(target)
    own = roles.sequence(sequence, label)
    clock = roles.time(time, own)
    groups = roles.groups(list(task), own)
    categories = roles.categories(own)
    features = roles.features(own, may_be_none=bool(categories))
    found: dict[str, Any] = {
        "source": "table",
        "data_dir": folder,
        "files": names,
        "sequence": own,
        "target": label,
        "time": clock,
        "categories": categories,
        "features": features,
        "groups": groups,
    }
    found |= roles.gaps(features, own, clock)
    lengths = np.bincount(roles.codes(own))
    if lengths.max() > TableTasks.model_fields["max_steps"].default:
        found["max_steps"] = int(lengths.max())
        roles.say(
            "steps", f"up to {lengths.max()} rows a sequence: training will be slow", "warning"
        )
    settings = _sized(found, columns, prefers_groups=bool(list(task)), roles=roles)
    return Guess(settings, roles.findings)


def _place(location: str) -> tuple[str, list[str]]:
    """Splits a path, folder or pattern into a folder and file names."""
    if "://" in location:
        folder, _, name = location.rpartition("/")
        return (folder, [name]) if name.lower().endswith(TABLE_SUFFIXES) else (location, [])
    if Path(location).is_dir():
        return location, []
    path = PurePosixPath(location)
    wild = next((n for n, part in enumerate(path.parts) if set(part) & set("*?[")), None)
    at = len(path.parts) - 1 if wild is None else wild
    if wild is None and not Path(location).is_file():
        raise DataError(f"{location}: there is no such file or folder")
    return str(PurePosixPath(*path.parts[:at])), ["/".join(path.parts[at:])]


def _sized(
    found: dict[str, Any], columns: Mapping[str, Column], *, prefers_groups: bool, roles: Roles
) -> TableTasks:
    """Fits the kind of tasks, ways, shots, queries and held-out units to the data."""
    num_classes = len(columns[found["target"]].labels)
    held = {"val_groups": 1, "test_groups": 1}
    if found["groups"]:
        fewest = min(len(columns[name].labels) for name in found["groups"])
        if fewest < 3:
            raise DataError(
                f"column {found['groups']} has {fewest} groups, but three at least are needed: one "
                "for each split; leave it out of --task, or add data"
            )
        held = dict.fromkeys(held, max(1, min(round(_HELD_OUT * fewest), (fewest - 1) // 2)))
    tried: list[Dealt] = []
    kinds = ["groups", "classes"] if prefers_groups or num_classes < 6 else ["classes", "groups"]
    for kind in kinds:
        if kind == "groups" and not found["groups"]:
            continue
        ways_tried = range(min(_MAX_WAYS, num_classes // 3), 1, -1)
        for ways in [num_classes] if kind == "groups" else ways_tried:
            held_classes = max(ways, round(_HELD_OUT * num_classes))
            if kind == "classes" and num_classes - 2 * held_classes < ways:
                held_classes = ways
            sized = found | held | {"kind": kind, "num_ways": ways, "num_shots": 1}
            if kind == "classes":
                sized |= {"val_classes": held_classes, "test_classes": held_classes}
            for queries in range(_MAX_QUERIES, 0, -1):
                for small in ("refuse", "leave_out"):
                    settings = TableTasks.model_validate(
                        sized | {"num_queries": queries, "small_classes": small}
                    )
                    try:
                        dealt = deal_table(settings)
                    except DataError:
                        if small == "leave_out":
                            continue  # too few groups are left
                        raise
                    tried.append(dealt)
                    if dealt.fitting(ways, 1 + queries) == (ways, 1 + queries):
                        roles.say("tasks", _told(settings, dealt))
                        return settings
    raise DataError(
        f"{roles.location}: too few sequences for any episode: {num_classes} classes with "
        f"{min(map(len, [d.chosen['test'] for d in tried]), default=0)} sequences or more in the "
        "test; two classes at least are needed in each split, with two sequences each; name a "
        "column of groups with --task, or add data"
    )


def _told(settings: TableTasks, dealt: Dealt) -> str:
    counts = ", ".join(f"{len(own)} {split}" for split, own in dealt.chosen.items())
    ways, target = settings.num_ways, settings.target_name
    what = (
        f"{ways} new classes of {target}"
        if settings.kind == "classes"
        else f"one {settings.groups[0]} with all {ways} classes of {target}"
    )
    small = "; small ones are left out" if settings.small_classes == "leave_out" else ""
    return (
        f"a task is {what}; {settings.num_shots} support and {settings.num_queries} query examples "
        f"a class; sequences: {counts}{small}"
    )
