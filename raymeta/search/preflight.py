"""Runs all checks before a search and keeps their results."""

from __future__ import annotations

from dataclasses import dataclass

from raymeta.episodes import TaskDistribution
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.search.records import TrialRecord
from raymeta.search.sources import Sources, read_sources
from raymeta.search.space import Point, file_point
from raymeta.search.trackers import check_trackers
from raymeta.search.warm_start import earlier_trials
from raymeta.storage.paths import AnyPath
from raymeta.tasks.load import load_tasks


@dataclass(frozen=True)
class Prepared:
    """A checked experiment with everything that its search needs.

    `point` is the experiment file's own point of the space, `earlier` the trials of an earlier run
    to learn from, `tasks` those of the file, `sources` the trials of runs whose models are a prior.
    """

    experiment: Experiment
    point: Point
    earlier: list[TrialRecord]
    tasks: TaskDistribution
    sources: Sources


def prepare(
    experiment: Experiment,
    root: AnyPath,
    *,
    earlier: list[TrialRecord] | None = None,
    sources: Sources | None = None,
) -> Prepared:
    """Checks an experiment and loads what it needs.

    Args:
        experiment: to run.
        root: the folder of run folders, where the runs to learn from are looked for.
        earlier: the trials of that run, if they are known.
        sources: those of the runs that `search.learn_from` names, if they are known.

    Raises:
        ExperimentError: the file's own values lie outside the search space, or a tracker's package
            is not installed.
        RunError: the run to learn from does not exist, or optimised another metric.
        DataError: the data are broken, or cannot serve the episodes of the file or of an end of a
            searched range.
    """
    check_trackers(experiment)
    point = file_point(experiment)
    if earlier is None:
        earlier = earlier_trials(experiment, root)
    if sources is None:
        sources = read_sources(experiment, root)
    tasks = load_tasks(experiment)
    for key, dimension in experiment.search.space.items():
        if key.startswith("tasks."):
            whole = experiment.is_integer(key)
            for value in dimension.ends:
                end = int(value) if whole and isinstance(value, float) else value
                load_tasks(with_values(experiment, {key: end}))
    return Prepared(experiment, point, earlier, tasks, sources)
