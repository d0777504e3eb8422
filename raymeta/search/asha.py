"""Early stopping: ASHA (Li et al. 2020) that never stops the control."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.search.progress import own_id
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point


def scheduler_of(
    experiment: Experiment, given: Point, records: Mapping[str, TrialRecord]
) -> TrialScheduler:
    """The scheduler that `search.early_stopping` asks for.

    Args:
        experiment: of the search.
        given: the experiment file's own point.
        records: trials of earlier sessions, with which new ones are compared.
    """
    search, budget = experiment.search, experiment.training.meta_steps
    if search.early_stopping == "none" or search.grace_steps >= budget:
        return FIFOScheduler()
    asha = Asha(
        given,
        time_attr=STEP_METRIC,
        metric=experiment.metric,
        mode=experiment.mode,
        grace_period=search.grace_steps,
        max_t=budget,
        reduction_factor=search.reduction_factor,
    )
    asha.replay(records)
    return asha


class Asha(AsyncHyperBandScheduler):
    """ASHA that never stops the experiment file's own point.

    That point is the control: the tuned configuration is compared with it at equal budget.  A trial
    that goes on in another session keeps its name, and so its place in the rungs.
    """

    def __init__(self, given: Point, **settings: Any) -> None:
        super().__init__(**settings)
        self._given = given

    def replay(self, records: Mapping[str, TrialRecord]) -> None:
        """Fills the rungs with what trials of earlier sessions reported."""
        for trial_id, record in records.items():
            for step, mean, _ in record.curve:
                self._brackets[0].on_result(
                    SimpleNamespace(trial_id=trial_id), step, self._metric_op * mean
                )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Registers a trial."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """ASHA's decision, or CONTINUE for the control."""
        decision: str = super().on_trial_result(tune_controller, _named(trial), result)
        given = all(trial.config.get(key) == value for key, value in self._given.items())
        unfinished = result[STEP_METRIC] < self._max_t
        return TrialScheduler.CONTINUE if given and unfinished else decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Records a trial's last result."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forgets a trial that will not run."""
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Trial) -> SimpleNamespace:
    """Wraps a trial to give it its name in the run; ASHA reads nothing else."""
    return SimpleNamespace(trial_id=own_id(trial))
