"""Guesses settings of forecasts for tables whose target is a number that varies in a series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raymeta.data.readers.columns import Column
from raymeta.errors import DataError
from raymeta.tasks.cutter import Cutter
from raymeta.tasks.forecast import deal_forecast
from raymeta.tasks.roles import SEQUENCES, TARGETS, TIMES, Roles
from raymeta.tasks.table_settings import TableTasks

_HELD_OUT = 0.2  # share of groups or series for each of validation and test
_MAX_LABELS = 20  # different whole numbers
_MAX_CONTEXT = 48
_MAX_HORIZON = 12
_NS_A_DAY = 86_400_000_000_000
# The median step of a column of dates in days, from and to; its name, and the steps of a season.
_SEASONS = (
    (0.04, 0.05, "hours", 24),
    (0.9, 1.1, "days", 7),
    (6.5, 7.5, "weeks", 52),
    (28.0, 31.0, "months", 12),
    (90.0, 92.0, "quarters", 4),
)


def looks_like_forecast(
    columns: Mapping[str, Column], target: str | None, sequence: str | None, time: str | None
) -> bool:
    """Whether the target is a number that varies within named series.

    A few whole numbers are labels.

    Args:
        columns: of the table.
        target: the column that the user named; None: one that is called so.
        sequence: the column of the series that the user named.
        time: the column of the times that the user named.
    """
    lower = {name.lower(): name for name in columns}
    name = target or next((lower[alias] for alias in TARGETS if alias in lower), None)
    if name is None or name not in columns or columns[name].numbers is None:
        return False
    is_label = columns[name].codes is not None and len(columns[name].labels) <= _MAX_LABELS
    if is_label or not (time or any(alias in lower for alias in TIMES)):
        return False
    return _series(columns, name, sequence) is not None


def _series(columns: Mapping[str, Column], target: str, sequence: str | None) -> str | None:
    """Finds the column that names series: labels with several rows and varying targets."""
    lower = {name.lower(): name for name in columns}
    named = [sequence] if sequence else [lower[alias] for alias in SEQUENCES if alias in lower]
    for name in named:
        column = columns.get(name)
        if column is None or column.codes is None or name == target:
            continue
        repeats = len(column.codes) >= 3 * len(column.labels)
        if repeats and not columns[target].is_constant_in(column.codes):
            return name
    return None


def guess_forecast(
    roles: Roles,
    found: dict[str, Any],
    *,
    target: str | None,
    task: list[str],
    sequence: str | None,
    time: str | None,
) -> TableTasks:
    """Guesses settings of forecasts that the table can serve.

    Args:
        roles: of the table's columns; findings are added to them.
        found: where the table is: `source`, `data_dir`, `files`.
        target: as for `raymeta.tasks.guess.guess_tasks`, like the following.
        task: as there.
        sequence: as there.
        time: as there.

    Raises:
        DataError: the table cannot serve any episode, or a role stays open.
    """
    own = target or roles.named(TARGETS)[0]
    roles.given(own, "--target")
    roles.say("target", f"{own}: numbers that change within a series: to be forecast")
    series = _series(roles.columns, own, sequence)
    assert series is not None, "it looks like a forecast"
    if series not in task:
        roles.given(series, "--sequence")
        roles.say("sequence", f"{series}: {len(roles.columns[series].labels)} series, a task each")
    clock = roles.time(time, series)
    groups = roles.groups([name for name in task if name != series], series)
    roles.taken.add(series)
    if not groups:
        roles.say(
            "groups",
            "none: if series are sums, parts or copies of others, name the column that they share "
            "with --task",
            "note",
        )
    if roles.columns[own].num_missing:
        raise DataError(
            f"{roles.location}: column {own} has {roles.columns[own].num_missing} missing numbers; "
            "fill them in, or leave such series out: filling in by itself would look into the "
            "future"
        )
    categories = roles.categories(series)
    features = [] if len(set(roles.columns) - roles.taken) == 0 else _features(roles, series)
    season = _season(roles, series, clock)
    lengths = np.bincount(roles.codes(series))
    found = found | {
        "kind": "forecast",
        "sequence": series,
        "target": own,
        "time": clock,
        "categories": categories,
        "features": features,
        "groups": groups,
        "num_shots": 1,
        "num_queries": 1,
        "season": season,
    }
    units = min([len(roles.columns[name].labels) for name in groups or [series]])
    held = max(1, min(round(_HELD_OUT * units), (units - 1) // 2))
    found |= {"val_groups": held, "test_groups": held}
    # The context of a typical series must leave room for several cuts.
    typical = int(np.median(lengths))
    horizon = max(1, min(season if season > 1 else _MAX_HORIZON, typical // 4))
    context = max(season, min(_MAX_CONTEXT, 2 * season if season > 1 else _MAX_CONTEXT))
    context = max(season, min(context, typical - 2 * horizon - 1))
    settings = TableTasks.model_validate(
        found | {"horizon": horizon, "context": context, "small_classes": "leave_out"}
    )
    dealt, cutter = deal_forecast(settings), Cutter.of(settings)
    if not dealt.left_out:
        settings = settings.model_copy(update={"small_classes": "refuse"})
    empty = [split for split, chosen in dealt.chosen.items() if not len(chosen)]
    if empty:
        raise DataError(
            f"{roles.location}: the meta-{empty[0]} split holds no series of "
            f"{cutter.past + cutter.future} rows; more or longer series are needed"
        )
    counts = ", ".join(f"{len(own)} {split}" for split, own in dealt.chosen.items())
    roles.say(
        "tasks",
        f"a task is one {series}: {horizon} steps are forecast after {cutter.past} steps; series: "
        f"{counts}",
    )
    return settings


def _features(roles: Roles, series: str) -> list[str]:
    """Finds further columns of numbers without gaps; there may be none."""
    try:
        found = roles.features(series)
    except DataError:
        return []
    gaps = [name for name in found if roles.columns[name].num_missing]
    for name in gaps:
        roles.say(name, "not used: numbers are missing; fill them in to use it", "warning")
    return [name for name in found if name not in gaps]


def _season(roles: Roles, series: str, clock: str | None) -> int:
    """Guesses the season's length from the spacing of dates."""
    at = None if clock is None else roles.columns[clock].times
    numbers = None if clock is None else roles.columns[clock].numbers
    if at is not None and numbers is None:
        own = roles.codes(series)
        order = np.lexsort((at, own))
        steps = np.diff(at[order])[np.diff(own[order]) == 0]
        days = float(np.median(steps)) / _NS_A_DAY if len(steps) else 0.0
        for least, most, name, season in _SEASONS:
            if least <= days <= most and np.median(np.bincount(own)) >= 4 * season:
                roles.say("season", f"{season} steps: the rows are {name} apart")
                return season
    roles.say(
        "season", "1 step: nothing tells a season; set tasks.season if there is one", "warning"
    )
    return 1
