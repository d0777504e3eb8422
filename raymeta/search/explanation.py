"""Explains a search from the records of its run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from raymeta.errors import SearchError
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord, measured, within
from raymeta.search.settings import SearchSettings
from raymeta.search.space import search_space
from raymeta.search.trial_log import logged_trials

FEWEST_TRIALS = 4  # below, the model knows next to nothing


def explain_search(experiment: Experiment, run: Run) -> None:
    """Writes the explanation of a search to its run folder.

    Raises:
        SearchError: too few trials have ended, or the model cannot be fitted to them.
        RunError: the run folder cannot be written.
    """
    trials = logged_trials(run)
    check_enough(trials.records)  # before Ax is imported
    logging.disable(logging.INFO)  # Ax logs on import
    try:
        from raymeta.search.explain import explain  # noqa: PLC0415  (Ax takes seconds to import)
    finally:
        logging.disable(logging.NOTSET)
    search = experiment.search
    settings = SearchSettings(
        objectives=experiment.objectives,
        model=search.model,
        curves=search.curves,
        seed=experiment.seed,
    )
    space = search_space(experiment)
    records = within(space, measured(trials.records, settings.metrics))
    check_enough(records)
    explain(space, settings, records).write(run.search_dir)


def check_enough(records: Mapping[str, TrialRecord]) -> None:
    """Refuses a search of too few trials.

    Raises:
        SearchError: too few came to their end.
    """
    finished = sum(record.status == "completed" for record in records.values())
    if finished < FEWEST_TRIALS:
        raise SearchError(
            f"{finished} of {len(records)} trials came to their end; to say what matters, the "
            f"model needs at least {FEWEST_TRIALS}"
        )
