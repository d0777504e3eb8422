"""Combines a searcher's metrics and modes with the Tuner's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from raymeta.errors import SearchError
from raymeta.search.settings import Mode, SearchSettings

Objectives = tuple[tuple[str, Mode], ...]


def metric_names(metric: str | Sequence[str] | None) -> list[str]:
    """The metrics as a list; empty for None.

    Raises:
        SearchError: it is neither a name nor a list of names.
    """
    names = [] if metric is None else [metric] if isinstance(metric, str) else metric
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise SearchError(f"metric must be a name or a list of names, but got {metric!r}")
    return list(names)


def objectives_of(metrics: Sequence[str], modes: Mode | Sequence[Mode]) -> Objectives:
    """Pairs each metric with its mode.

    Raises:
        SearchError: a mode is neither `min` nor `max`, or there are more or fewer of them.
    """
    listed = modes if isinstance(modes, list | tuple) else [modes] * len(metrics)
    if len(listed) != len(metrics) or not all(mode in ("min", "max") for mode in listed):
        raise SearchError(
            f"mode must be 'min' or 'max', one for all metrics or one for each, but got {modes!r} "
            f"for {', '.join(metrics)}"
        )
    return tuple(zip(metrics, listed, strict=True))


def refuse_other_objective(objectives: Objectives, metric: str | None, mode: str | None) -> None:
    """Refuses a metric or mode of the Tuner's that is not the searcher's.

    Raises:
        SearchError: they differ.
    """
    own = dict(objectives)
    if metric is not None and own and metric not in own:
        raise SearchError(
            f"the Tuner's metric is {metric}, but the searcher optimises {', '.join(own)}; give "
            "the metric in one place"
        )
    judged = metric if metric is not None else next(iter(own), None)
    if mode is not None and judged in own and own[judged] != mode:
        raise SearchError(
            f"the Tuner's mode for {judged} is {mode}, but the searcher's is {own[judged]}; give "
            "the mode in one place"
        )


def settings_from(settings: SearchSettings | None, keywords: Mapping[str, Any]) -> SearchSettings:
    """The settings, from an object or from keywords.

    Raises:
        SearchError: both are given, or a keyword is not a setting.
    """
    names = [f.name for f in fields(SearchSettings) if f.name != "objectives"]
    for name in keywords:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
            raise SearchError(f"AxSearcher has no setting {name}{hint}")
    if settings is None:
        listed: dict[str, Any] = dict(keywords)
        if isinstance(bounds := listed.get("outcome_constraints"), list):
            listed["outcome_constraints"] = tuple(bounds)
        return SearchSettings(**listed)
    if keywords:
        raise SearchError(
            f"give {', '.join(keywords)} within `settings`, or all settings as keywords, not both"
        )
    return settings


def told(objectives: Objectives) -> str:
    """Formats the objectives for a message."""
    return " and ".join(f"{mode} {metric}" for metric, mode in objectives)
