"""Early stopping spares the control."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from raymeta.search.asha import Asha, scheduler_of
from raymeta.search.records import TrialRecord
from raymeta.search.space import file_point
from tests.search.helpers import SPACE, local_ray, tiny_experiment


@pytest.mark.ray
def test_asha_lets_the_given_point_train_to_its_end_and_stops_others(tmp_path: Path) -> None:
    def scores(config: dict[str, Any]) -> None:
        for step in range(1, 7):
            tune.report({"score": config["x"], "meta_steps": step})

    with local_ray(num_cpus=4):
        results = tune.Tuner(
            scores,
            param_space={"x": tune.grid_search([0.8, 0.9, 0.1, 0.2])},
            tune_config=tune.TuneConfig(
                scheduler=Asha(
                    {"x": 0.1},
                    time_attr="meta_steps",
                    metric="score",
                    mode="max",
                    grace_period=2,
                    max_t=6,
                    reduction_factor=2,
                ),
                max_concurrent_trials=1,
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()
    steps = {r.config["x"]: r.metrics["meta_steps"] for r in results if r.config and r.metrics}
    assert steps == {0.8: 6, 0.9: 6, 0.1: 6, 0.2: 2}


def test_the_scheduler_of_a_search_spares_the_files_own_point() -> None:
    experiment = tiny_experiment(*SPACE, "search.early_stopping=asha", "search.grace_steps=2")
    scheduler = scheduler_of(experiment, file_point(experiment), {})
    assert isinstance(scheduler, Asha)
    assert scheduler._given == file_point(experiment)
    assert scheduler._max_t == experiment.training.meta_steps


@pytest.mark.parametrize("override", ["search.early_stopping=none", "search.grace_steps=6"])
def test_nothing_is_stopped_early_unless_asked_and_possible(override: str) -> None:
    experiment = tiny_experiment(*SPACE, "search.early_stopping=asha", override)
    assert isinstance(scheduler_of(experiment, {}, {}), FIFOScheduler)


def test_a_resumed_search_compares_new_trials_with_those_of_earlier_sessions() -> None:
    overrides = ["search.early_stopping=asha", "search.grace_steps=2", "search.reduction_factor=2"]
    experiment = tiny_experiment(*SPACE, *overrides)
    earlier = {str(v): TrialRecord({}, "sobol", "completed", [(2, v, None)]) for v in (0.4, 0.5)}
    trial = SimpleNamespace(trial_id="new", config={})

    def decision(records: dict[str, TrialRecord], value: float) -> str:
        scheduler = scheduler_of(experiment, {"x": 0}, records)
        scheduler.on_trial_add(None, trial)
        return str(scheduler.on_trial_result(None, trial, {"meta_steps": 2, "val_accuracy": value}))

    assert decision(earlier, 0.3) == "STOP"
    assert decision(earlier, 0.6) == decision({}, 0.3) == "CONTINUE"


def test_a_trial_that_goes_on_is_compared_once() -> None:
    overrides = ["search.early_stopping=asha", "search.grace_steps=2", "search.reduction_factor=2"]
    experiment = tiny_experiment(*SPACE, *overrides)
    records = {"old": TrialRecord({}, "sobol", "running", [(2, 0.1, None), (3, 0.2, None)])}
    records["other"] = TrialRecord({}, "sobol", "completed", [(2, 0.9, None)])
    scheduler = scheduler_of(experiment, {"x": 0}, records)
    trial = SimpleNamespace(trial_id="tunes", config={"continued": {"trial_id": "old"}})
    scheduler.on_trial_add(None, trial)
    result = {"meta_steps": 3, "val_accuracy": 0.2}
    assert scheduler.on_trial_result(None, trial, result) == "CONTINUE"
