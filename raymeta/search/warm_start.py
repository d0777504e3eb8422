"""Reads trials of an earlier run for a search to learn from."""

from __future__ import annotations

from raymeta.errors import RunError
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.records import Status, TrialRecord
from raymeta.search.results import read_trials
from raymeta.search.space import search_space
from raymeta.storage.paths import AnyPath


def earlier_trials(experiment: Experiment, root: AnyPath) -> list[TrialRecord]:
    """Reads the trials of the run in `search.warm_start`, cut to this experiment's budget.

    A key that the earlier run did not search takes the value of that run's file.  A longer trial
    counts with its value at this budget; a shorter one counts as stopped early.

    Raises:
        RunError: there is no such run, or it optimised another metric.
    """
    if experiment.search.warm_start is None:
        return []
    run = Run.open(experiment.search.warm_start, root)
    before = run.experiment()
    judged, asked = (
        " and ".join(metric for metric, _ in e.objectives) for e in (before, experiment)
    )
    if before.objectives[: len(experiment.objectives)] != experiment.objectives:
        raise RunError(
            f"search.warm_start: {run.path} was judged by {judged}, this experiment is by {asked}"
        )
    space, budget = search_space(experiment), experiment.training.meta_steps
    records = []
    for record in read_trials(run).values():
        curve = [point for point in record.curve if point[0] <= budget]
        if record.status not in ("completed", "early_stopped") or not curve:
            continue
        values = {p.name: record.point.get(p.name, before.value(p.name)) for p in space.parameters}
        names = space.names_in(values)
        ended: Status = "completed" if curve[-1][0] == budget else "early_stopped"
        point = {name: value for name, value in values.items() if name in names}
        others = {name: [p for p in c if p[0] <= budget] for name, c in record.others.items()}
        records.append(TrialRecord(point, "earlier", ended, curve, others))
    return records
