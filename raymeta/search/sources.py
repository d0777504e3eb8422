"""Reads trials of finished runs for `search.learn_from`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymeta.errors import RunError
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.results import read_trials
from raymeta.search.settings import FEWEST_OF_SOURCE
from raymeta.search.space import Point, Space, search_space
from raymeta.storage.paths import AnyPath


@dataclass(frozen=True)
class Sources:
    """The usable trials of each run in `search.learn_from`, as points of this space.

    `notes` says which trials of each run are used, which are not, and why.
    """

    trials: tuple[tuple[TrialRecord, ...], ...] = ()
    notes: tuple[str, ...] = ()


def read_sources(experiment: Experiment, root: AnyPath) -> Sources:
    """The trials of the runs that `search.learn_from` names.

    Only keys that this experiment searches are used. A key that a run did not search takes the
    value of that run's file; if that lies outside this search space, so does the trial. Values of
    any budget are used unchanged: a model of ranks needs no more.

    Raises:
        RunError: there is no such run, it optimised another metric, it has no key in common with
            this search, or too few of its trials are in this search space.
    """
    space = search_space(experiment)
    trials, notes = [], []
    for name in experiment.search.learn_from:
        run = Run.open(name, root)
        found, note = _trials_of(run, experiment, space)
        trials.append(found)
        notes.append(note)
    return Sources(tuple(trials), tuple(notes))


def _trials_of(
    run: Run, experiment: Experiment, space: Space
) -> tuple[tuple[TrialRecord, ...], str]:
    before = run.experiment()
    if before.objectives[0] != experiment.objectives[0]:
        raise RunError(
            f"search.learn_from: {run.path} was judged by {before.objectives[0][0]}, this "
            f"experiment is by {experiment.objectives[0][0]}; leave it out"
        )
    names = [parameter.name for parameter in space.parameters]
    shared = [name for name in names if name in before.search.space]
    if not shared:
        raise RunError(
            f"search.learn_from: {run.path} searched none of the keys of this search "
            f"({', '.join(names)}); leave it out"
        )
    records = [r for r in read_trials(run).values() if r.curve]
    usable = [r for r in records if r.status in ("completed", "early_stopped")]
    moved = [(r, _point_here(r.point, before, space)) for r in usable]
    found = tuple(
        TrialRecord(point, "earlier", record.status, record.curve)
        for record, point in moved
        if space.contains(point)
    )
    finished = sum(record.status == "completed" for record in found)
    if finished < FEWEST_OF_SOURCE:
        raise RunError(
            f"search.learn_from: of {run.path}, {finished} trials came to their end within this "
            f"search space, but at least {FEWEST_OF_SOURCE} are needed; widen search.space, or "
            "leave the run out"
        )
    note = f"learns from {len(found)} trials of {run.path}"
    if len(found) < len(usable):
        note += f"; {len(usable) - len(found)} more lie outside this search space"
    others = [name for name in before.search.space if name not in names]
    if others:
        note += f"; that search also varied {', '.join(others)}, which this one does not"
    fixed = [f"{name} = {before.value(name)}" for name in names if name not in shared]
    if fixed:
        note += f"; it did not vary {', '.join(fixed)}"
    return found, note


def _point_here(point: Mapping[str, object], before: Experiment, space: Space) -> Point:
    """Converts a trial's values to a point of this space, keeping only its keys."""
    values = {p.name: point.get(p.name, before.value(p.name)) for p in space.parameters}
    names = space.names_in(values)
    return {name: value for name, value in values.items() if name in names}
