"""Guesses the settings of numbers: a table whose target is one number for each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raymeta.data.readers.columns import Column
from raymeta.errors import DataError
from raymeta.tasks.regression import load_regression
from raymeta.tasks.roles import SEQUENCES, Roles
from raymeta.tasks.table_settings import TableTasks

_HELD_OUT = 0.2  # of groups or sequences, for validation and for the test each
_MAX_LABELS = 20  # different whole numbers
_MAX_EXAMPLES = 10  # what a first experiment asks for on each side, where the data have it
_WINDOW = 128  # rows of a window of long sequences


def looks_like_regression(
    columns: Mapping[str, Column], target: str | None, sequence: str | None
) -> bool:
    """Whether the user named a target that is one number for each sequence.

    A few whole numbers are labels.

    Args:
        columns: of the table.
        target: the column that the user named.
        sequence: the column of the sequences that the user named.
    """
    column = columns.get(target or "")
    if column is None or column.numbers is None:
        return False
    is_label = column.codes is not None and len(column.labels) <= _MAX_LABELS
    return not is_label and _sequence(columns, str(target), sequence) is not None


def _sequence(columns: Mapping[str, Column], target: str, sequence: str | None) -> str | None:
    """The column whose label names a sequence: several rows each, with one target."""
    lower = {name.lower(): name for name in columns}
    named = [sequence] if sequence else [lower[alias] for alias in SEQUENCES if alias in lower]
    for name in named:
        column = columns.get(name)
        if column is None or column.codes is None or name == target:
            continue
        repeats = len(column.codes) > len(column.labels) > 1
        if repeats and columns[target].is_constant_in(column.codes):
            return name
    return None


def guess_regression(
    roles: Roles,
    found: dict[str, Any],
    *,
    target: str,
    task: list[str],
    sequence: str | None,
    time: str | None,
) -> TableTasks:
    """The settings of a number for each sequence that the table can serve.

    Args:
        roles: of the table's columns; findings are added to them.
        found: where the table is: `source`, `data_dir`, `files`.
        target: the column of the number.
        task: as for `raymeta.tasks.guess.guess_tasks`, like the following.
        sequence: as there.
        time: as there.

    Raises:
        DataError: the table cannot serve any episode, or a role stays open.
    """
    roles.given(target, "--target")
    roles.say("target", f"{target}: a number that is the same in all rows of a sequence")
    own = _sequence(roles.columns, target, sequence)
    assert own is not None, "it looks like a regression"
    roles.given(own, "--sequence")
    roles.say("sequence", f"{own}: {len(roles.columns[own].labels)} sequences")
    if missing := roles.columns[target].num_missing:
        raise DataError(
            f"{roles.location}: column {target} has {missing} missing numbers; fill them in, or "
            "leave such sequences out"
        )
    clock = roles.time(time, own)
    groups = roles.groups(task, own)
    categories = roles.categories(own)
    features = roles.features(own, may_be_none=bool(categories))
    units = min(len(roles.columns[name].labels) for name in groups or [own])
    held = max(1, min(round(_HELD_OUT * units), (units - 1) // 2))
    found = found | {
        "kind": "groups",
        "sequence": own,
        "target": {"number": target},
        "time": clock,
        "categories": categories,
        "features": features,
        "groups": groups,
        "support": "first" if groups else "random",
        "val_groups": held,
        "test_groups": held,
    }
    found |= roles.gaps(features, own, clock)
    longest = int(np.bincount(roles.codes(own)).max())
    if longest > TableTasks.model_fields["max_steps"].default:
        found |= {"window": _WINDOW}
        roles.say("window", f"up to {longest} rows a sequence: cut into windows of {_WINDOW}")
    return _sized(found, roles)


def _sized(found: dict[str, Any], roles: Roles) -> TableTasks:
    """The settings with as many examples as the data have, at most those of a first look."""
    refused: DataError | None = None
    for count in range(_MAX_EXAMPLES, 0, -1):
        settings = TableTasks.model_validate(found | {"num_shots": count, "num_queries": count})
        try:
            tasks = load_regression(settings, seed=0)
        except DataError as error:
            refused = refused or error
            continue
        where = f"one {settings.groups[0]}" if settings.groups else "sequences of the split"
        roles.say(
            "tasks",
            f"a task is {where}: {count} examples with their {settings.target_name} to adapt to, "
            f"{count} of other sequences to be judged on; {tasks.note.split(';')[0]}",
        )
        return settings
    raise DataError(f"{roles.location}: serves no episode, with one example a side even: {refused}")
