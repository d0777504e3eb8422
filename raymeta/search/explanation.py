"""Explains a search from the records of its run."""

from __future__ import annotations

import logging

from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.settings import SearchSettings
from raymeta.search.space import search_space
from raymeta.search.trial_log import logged_trials


def explain_search(experiment: Experiment, run: Run) -> None:
    """Writes the explanation of a search to its run folder.

    Raises:
        SearchError: too few trials have ended, or the model cannot be fitted to them.
        RunError: the run folder cannot be written.
    """
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
    trials = logged_trials(run)
    explain(search_space(experiment), settings, trials.records).write(run.search_dir)
