"""Determines the search space from a searcher's arguments, the Tuner's, or a saved search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from raymeta.errors import SearchError, shown
from raymeta.experiment.parameter import Parameter
from raymeta.search.objectives import told
from raymeta.search.records import TrialRecord
from raymeta.search.settings import FEWEST_OF_SOURCE, SearchSettings
from raymeta.search.space import Point, Space
from raymeta.search.tune_space import TuneSpace, tune_space


def given_points(points: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Copies the points to try first.

    Raises:
        SearchError: they are not a list of dictionaries.
    """
    listed = [points] if isinstance(points, str | Mapping) else list(points or ())
    if isinstance(points, Mapping) or not all(isinstance(point, Mapping) for point in listed):
        wrong = next((point for point in listed if not isinstance(point, Mapping)), points)
        raise SearchError(
            "points_to_evaluate must be a list of dictionaries, one for each point, but got "
            f"{shown(wrong)}"
        )
    return [dict(point) for point in listed]


def points_in(space: TuneSpace, given: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Converts the points to try first to points of the space.

    Raises:
        SearchError: one of them is not in the space.
    """
    points = []
    for number, config in enumerate(given):
        try:
            points.append(space.point(config))
        except SearchError as error:
            raise SearchError(f"points_to_evaluate[{number}]: {error}") from error
    return points


def as_tune_space(
    space: Space | Sequence[Parameter] | Mapping[str, Any], constraints: Sequence[str]
) -> TuneSpace:
    """Converts a searcher's own space from any accepted form.

    Raises:
        SearchError: it has none of these forms.
    """
    if isinstance(space, Mapping):
        return tune_space(space, constraints)
    if isinstance(space, Space):
        return TuneSpace(space)
    if not isinstance(space, list | tuple) or not all(isinstance(p, Parameter) for p in space):
        raise SearchError(
            "space must be a Space, a list of parameters or a param_space of Ray Tune, but got "
            f"{shown(space)}"
        )
    return TuneSpace(Space(tuple(space), tuple(constraints)))


def same_space(before: TuneSpace | None, offered: TuneSpace) -> TuneSpace:
    """Returns the Tuner's `param_space` without constants, which Tune itself adds to each trial.

    Args:
        before: the space of an earlier fit, if there was one.
        offered: the Tuner's.

    Raises:
        SearchError: they differ.
    """
    space = offered.without_constants()
    if before is not None and (before.space, before.fixed) != (space.space, space.fixed):
        raise SearchError(
            "this searcher has searched another param_space, whose trials it keeps; make a new "
            "AxSearcher for a new param_space"
        )
    return space


def refuse_overlap(own: TuneSpace, offered: TuneSpace) -> None:
    """Refuses a `param_space` that nobody would search or that contradicts the searcher's.

    Raises:
        SearchError: it holds domains, or names that the searcher's own space has.
    """
    searched = [parameter.name for parameter in offered.space.parameters]
    if searched or offered.fixed:
        raise SearchError(
            f"param_space holds domains ({', '.join([*searched, *offered.fixed])}), but the "
            "searcher has a search space of its own; give all domains to one of them"
        )
    names = {parameter.name for parameter in own.space.parameters}
    names |= {*own.fixed, *own.constants}
    if both := sorted(names & set(offered.constants)):
        raise SearchError(
            f"param_space holds {', '.join(both)}, which the searcher's own space holds, too; "
            "leave it out of one of them"
        )


def complete_space(
    space: TuneSpace | None, settings: SearchSettings, *, has_objects: bool, has_points: bool
) -> Space:
    """Returns the space if a search can begin in it.

    Args:
        space: the search space, if it is known.
        settings: of the search.
        has_objects: Tune has passed its `param_space` with the objects in it.
        has_points: there are trials or points to try, which need no parameters.

    Raises:
        SearchError: something is missing.
    """
    if space is None or not settings.objectives:
        raise SearchError(
            "AxSearcher needs a search space, a metric and a mode, from its own arguments or "
            "from the Tuner's param_space and TuneConfig"
        )
    if space.objects and not has_objects:
        raise SearchError(
            f"Tune does not save the objects in param_space ({', '.join(space.objects)});"
            " give them again: Tuner.restore(path, trainable, param_space=...)"
        )
    if not space.space.parameters and not has_points:
        raise SearchError(
            "the search space holds nothing to search; give it at least one domain, such as "
            "tune.uniform(0, 1)"
        )
    return space.space


def usable_sources(
    sources: Sequence[Sequence[TrialRecord]], space: Space, settings: SearchSettings
) -> list[list[TrialRecord]]:
    """Selects the trials of earlier searches that lie in the space.

    Raises:
        SearchError: too few of them do, or the search has no model that could learn from them.
    """
    if sources and (settings.method, settings.is_single) != ("bo", True):
        raise SearchError(
            "sources need method 'bo' and one objective, but there are method "
            f"{settings.method!r} and {len(settings.objectives)}; leave the sources out"
        )
    if sources and (settings.model not in ("auto", "gp") or settings.outcome_constraints):
        raise SearchError(
            "sources need model 'gp' or 'auto' and no outcome constraints, but there are model "
            f"{settings.model!r} and {list(settings.outcome_constraints)}; leave the sources out"
        )
    found = [[r for r in trials if r.curve and space.contains(r.point)] for trials in sources]
    for number, trials in enumerate(found):
        finished = sum(record.status == "completed" for record in trials)
        if finished < FEWEST_OF_SOURCE:
            raise SearchError(
                f"sources[{number}] must have at least {FEWEST_OF_SOURCE} trials that came to "
                f"their end within the search space, but got {finished}; leave it out"
            )
    return found


def restored_settings(
    path: Path, saved: SearchSettings, own: SearchSettings, chosen: AbstractSet[str]
) -> SearchSettings:
    """Merges a saved search's settings with those given to this searcher.

    Args:
        path: of the saved search.
        saved: its settings.
        own: the settings of this searcher; missing objectives are taken from `saved`.
        chosen: the names of the settings given to this searcher.

    Raises:
        SearchError: the saved search was for other objectives.
    """
    taken = {f.name for f in fields(saved)} - {"objectives", *chosen}
    settings = replace(own, **{name: getattr(saved, name) for name in taken})
    if not own.objectives:
        return replace(settings, objectives=saved.objectives)
    if own.objectives != saved.objectives:
        raise SearchError(
            f"{path} belongs to a search for {told(saved.objectives)}, but this searcher optimises "
            f"{told(own.objectives)}; restore it with what it began with"
        )
    return settings
