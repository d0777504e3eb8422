"""Whole searches: trials on reused workers, lost workers, divergence, early stopping, resources."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import tune
from safetensors.torch import load_file

from raymeta.errors import ResourceError, RunError, SearchError
from raymeta.experiment import Experiment, Resources
from raymeta.experiment_file import load_experiment, with_values
from raymeta.placement import NODES_VARIABLE, WORKERS_VARIABLE, Nodes, to_json
from raymeta.runs import Run
from raymeta.search import tuner
from raymeta.search.records import Curve, Status, TrialRecord
from raymeta.search.space import file_point
from raymeta.search.tuner import (
    TrialEvent,
    TrialSummary,
    _Asha,
    _new_tuner,
    best_trial,
    concurrency,
    default_trial,
    earlier_trials,
    explain_search,
    read_trials,
    run_search,
    start_ray,
)
from raymeta.training import CHECKPOINT_NAME
from tests.search.helpers import (
    SPACE,
    assert_same_bits,
    local_ray,
    new_trial,
    tiny_experiment,
    worker_pids,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_of_four_cpus() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


class Journal:
    """Notes what trials do, and the worker processes that there are."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.events: list[tuple[str, str, int]] = []  # trial, kind, meta-steps
        self.workers: list[frozenset[int]] = []
        self._kill_at = kill_at

    def __call__(self, event: TrialEvent) -> None:
        steps = event.result.get("meta_steps", 0)
        self.events.append((event.trial_id, event.kind, steps))
        if event.kind != "result":
            return
        self.workers.append(frozenset(worker_pids()))
        if steps == self._kill_at:
            self._kill_at = None
            os.kill(max(worker_pids()), signal.SIGKILL)

    def steps(self) -> list[int]:
        """The step of every report."""
        return [steps for _, kind, steps in self.events if kind == "result"]


@pytest.mark.slow
def test_a_trial_that_lost_a_worker_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment("resources.num_workers=2", "training.meta_steps=9")
    run, journal = Run.create(tmp_path, experiment), Journal(kill_at=6)
    (trial,) = run_search(experiment, run, observer=journal)

    assert trial.record.status == "completed"
    assert [step for step, _, _ in trial.record.curve] == [3, 6, 9]
    assert [kind for _, kind, _ in journal.events].count("started") == 2
    assert journal.workers[0].isdisjoint(journal.workers[-1])  # a new group of workers
    before, after = journal.steps()[:2], journal.steps()[2:]
    assert before == [3, 6]
    assert after in ([6, 9], [9])  # whichever of the two was saved last; not from the start
    with new_trial(experiment) as undisturbed:
        for _ in range(3):
            undisturbed.train()
        undisturbed.save_checkpoint(str(tmp_path))
    assert trial.checkpoint is not None
    assert_same_bits(load_file(trial.checkpoint), load_file(tmp_path / CHECKPOINT_NAME))


def test_a_search_killed_before_its_first_save_was_whole_begins_anew(tmp_path: Path) -> None:
    experiment = tiny_experiment(*SPACE, "search.num_trials=3", "search.num_sobol=3")
    run = Run.create(tmp_path, experiment)
    run_search(with_values(experiment, {"search.num_trials": 1}), run, observer=lambda _: None)
    (count,) = Path(str(run.tune_dir)).glob("search_gen_state-*")
    count.unlink()
    trials = run_search(experiment, run, observer=lambda _: None, resume=True)
    assert [trial.record.status for trial in trials] == ["completed"] * 3
    assert len(read_trials(run)) == 3


@pytest.mark.slow
def test_diverging_trials_are_abandoned_and_the_search_goes_on_with_the_same_workers(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment(
        "resources={num_workers: 2, max_failures: 0}",
        "training.max_skipped=0",
        "search.num_trials=4",
        "search.num_sobol=2",
        "search.space.maml.inner_lr={choices: [0.1, 1.0e+300]}",
        "search.space.model.cell={choices: [gru, rnn]}",
    )
    run, journal = Run.create(tmp_path, experiment), Journal()
    trials = run_search(experiment, run, observer=journal)

    points = [(t.record.point["maml.inner_lr"], t.record.point["model.cell"]) for t in trials]
    assert points[0] == (0.1, "gru")
    assert set(points) == {(0.1, "gru"), (0.1, "rnn"), (1e300, "gru"), (1e300, "rnn")}
    for trial in trials:
        if trial.record.point["maml.inner_lr"] == 0.1:
            assert (trial.record.status, trial.steps) == ("completed", 6)
        else:
            assert trial.record.status == "abandoned"
            assert math.isnan(trial.value)
        assert trial.error is None
    assert len(set(journal.workers)) == 1, "workers were started anew"
    assert len(journal.workers[0]) == 2
    assert read_trials(run) == {trial.trial_id: trial.record for trial in trials}
    written = run.read_json("trials.json")
    assert [t["status"] for t in written] == [t.record.status for t in trials]
    assert best_trial(experiment, trials).record.status == "completed"
    assert default_trial(experiment, trials) is trials[0]


def test_asha_lets_the_given_point_train_to_its_end_and_stops_others(tmp_path: Path) -> None:
    def scores(config: dict[str, Any]) -> None:
        for step in range(1, 7):
            tune.report({"score": config["x"], "meta_steps": step})

    results = tune.Tuner(
        scores,
        param_space={"x": tune.grid_search([0.8, 0.9, 0.1, 0.2])},
        tune_config=tune.TuneConfig(
            scheduler=_Asha(
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


def test_a_search_spares_the_files_own_point(tmp_path: Path) -> None:
    experiment = tiny_experiment(*SPACE, "search.early_stopping=asha", "search.grace_steps=2")
    tuner = _new_tuner(experiment, Run.create(tmp_path, experiment), Sleeper, lambda _: None)
    assert tuner._local_tuner is not None
    scheduler = tuner._local_tuner._tune_config.scheduler
    assert isinstance(scheduler, _Asha)
    assert scheduler._given == file_point(experiment)
    assert scheduler._max_t == experiment.training.meta_steps


class Sleeper(tune.Trainable):
    """Never run."""


def test_a_trial_larger_than_the_cluster_is_refused_by_its_keys() -> None:
    with pytest.raises(ResourceError, match=r"needs 5 CPUs \(resources.num_workers = 5"):
        start_ray(Resources(num_workers=5), verbose=False)


def test_a_trial_fits_a_cluster_that_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = [Nodes("gpu", {"CPU": 4, "GPU": 1}, 5)]
    monkeypatch.setenv(NODES_VARIABLE, to_json(growth))
    start_ray(Resources(num_workers=5, gpus_per_worker=1), verbose=False)
    with pytest.raises(ResourceError, match="hold 5"):
        start_ray(Resources(num_workers=6, gpus_per_worker=1), verbose=False)


def test_nodes_that_are_to_join_are_waited_for_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    start_ray(Resources(), verbose=False, say=said.append)
    assert said == []
    monkeypatch.setattr(tuner, "JOIN_S", 2)
    monkeypatch.setenv(WORKERS_VARIABLE, "2")
    began = time.monotonic()
    start_ray(Resources(), verbose=False, say=said.append)
    (once,) = said
    assert once.startswith("1 of 2 nodes have joined; waiting 2 s at most")
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize(("asked", "trials"), [(3, 3), (None, 4)])
def test_as_many_trials_run_at_once_as_are_asked_for_or_fit(
    asked: int | None, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODES_VARIABLE, to_json([Nodes("box", {"CPU": 8})]))
    resources = Resources(num_workers=2, max_concurrent_trials=asked)
    assert concurrency(resources) == trials


def summary(status: Status, value: float, error: str | None = None) -> TrialSummary:
    record = TrialRecord({"x": value}, "bo", status, [(6, value, 0.1)])
    return TrialSummary(str(value), record, Path(CHECKPOINT_NAME), error)


def test_the_best_trial_has_used_the_full_budget() -> None:
    trials = [summary("completed", 0.5), summary("completed", 0.7), summary("early_stopped", 0.9)]
    assert best_trial(tiny_experiment(), trials) is trials[1]


def test_a_search_without_a_finished_trial_names_the_first_error() -> None:
    trials = [summary("failed", 0.5, "Traceback\n  …\nOSError: disk full\n")]
    with pytest.raises(SearchError, match=r"none of 1 trials .* first error: OSError: disk full"):
        best_trial(tiny_experiment(), trials)


@pytest.mark.slow
def test_a_search_with_conditional_keys_learns_from_an_earlier_one(tmp_path: Path) -> None:
    first = tiny_experiment(
        "search.num_trials=4",
        "search.num_sobol=2",
        "search.space.model.cell={choices: [rnn, gru]}",
    )
    earlier = Run.create(tmp_path, first)
    known = run_search(first, earlier, observer=Journal())
    assert {trial.record.status for trial in known} == {"completed"}

    second = tiny_experiment(
        f"search.warm_start={earlier.path.name}",
        "search.num_trials=4",
        "search.num_sobol=2",
        "model.hidden_size=8",
        "search.space.model.cell={choices: [rnn, gru, lstm]}",
        "search.space.model.hidden_size={low: 4, high: 12, when: {model.cell: [lstm]}}",
        "search.space.maml.adapt={choices: [all, head]}",
        "search.space.maml.first_order={choices: [false, true], when: {maml.adapt: all}}",
    )
    records = earlier_trials(second, tmp_path)
    assert [record.source for record in records] == ["earlier"] * len(known)
    # What was not searched then had the value of that file, and counts where it exists here.
    assert {tuple(record.point) for record in records} == {
        ("model.cell", "maml.adapt", "maml.first_order")
    }
    trials = run_search(second, Run.create(tmp_path, second), observer=Journal())
    assert {trial.record.status for trial in trials} == {"completed"}
    for trial in trials:
        point = trial.record.point
        assert ("model.hidden_size" in point) == (point["model.cell"] == "lstm")
        assert ("maml.first_order" in point) == (point["maml.adapt"] == "all")
    assert [trial.record.source for trial in trials][:2] == ["given", "bo"]  # no Sobol points


@pytest.mark.slow
def test_a_search_for_two_objectives_keeps_both_and_is_explained(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        "search.num_trials=6",
        "search.num_sobol=3",
        "search.against=num_parameters",
        "search.space.model.hidden_size={low: 4, high: 12}",
        "search.space.maml.inner_lr={low: 0.01, high: 1, log: true}",
    )
    run = Run.create(tmp_path, experiment)
    trials = run_search(experiment, run, observer=Journal())
    assert {trial.record.status for trial in trials} == {"completed"}
    assert "bo" in {trial.record.source for trial in trials}
    size = {t.record.point["model.hidden_size"]: t.record.others["num_parameters"] for t in trials}
    assert [curve[-1][1] for _, curve in sorted(size.items())] == sorted(
        curve[-1][1] for curve in size.values()
    )
    assert len(size) > 1
    explain_search(experiment, run)
    assert set(run.importance) == set(experiment.search.space)
    assert (run.search_dir / "front-val_accuracy-num_parameters.csv").is_file()
    shares = pd.read_csv(run.search_dir / "importance-num_parameters.csv")
    assert shares.set_index("parameter_name").sensitivity.abs().idxmax() == "model.hidden_size"
    assert [r.others for r in earlier_trials(_warm(experiment, run), tmp_path)] == [
        trial.record.others for trial in trials
    ]


def _warm(experiment: Experiment, run: Run) -> Experiment:
    return with_values(experiment, {"search.warm_start": str(run.path)})


def test_an_earlier_trial_counts_at_the_budget_of_this_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_experiment("search.space.maml.inner_lr={low: 0.01, high: 1}")
    run = Run.create(tmp_path, before)
    curve: Curve = [(3, 0.3, 0.1), (6, 0.5, 0.1), (9, 0.6, 0.1)]
    ends: dict[str, Status] = {"a": "completed", "b": "early_stopped", "c": "failed"}
    monkeypatch.setattr(
        tuner,
        "read_trials",
        lambda _: {
            name: TrialRecord({"maml.inner_lr": 0.1}, "bo", status, curve[: 3 - (name == "b")])
            for name, status in ends.items()
        },
    )

    def at_budget(steps: int) -> list[tuple[str, int]]:
        space = "search.space.maml.inner_lr={low: 0.01, high: 1}"
        warm = f"search.warm_start={run.path}"
        experiment = tiny_experiment(space, warm, f"training.meta_steps={steps}")
        return [(r.status, len(r.curve)) for r in earlier_trials(experiment, tmp_path)]

    assert at_budget(6) == [("completed", 2), ("completed", 2)]
    assert at_budget(9) == [("completed", 3), ("early_stopped", 2)]
    assert at_budget(12) == [("early_stopped", 3), ("early_stopped", 2)]
    sinusoid = load_experiment("sinusoid", ["search.space={}", f"search.warm_start={run.path}"])
    with pytest.raises(RunError, match="was judged by val_accuracy"):
        earlier_trials(sinusoid, tmp_path)
