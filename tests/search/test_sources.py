"""Trials of finished runs, as `search.learn_from` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymeta.errors import ExperimentError, RunError
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.sources import read_sources
from raymeta.search.space import search_space
from raymeta.search.trial_log import TrialLog, logged_trials
from tests.search.helpers import tiny_experiment

RATE = "search.space.maml.inner_lr={low: 0.01, high: 1}"
SIZE = "search.space.model.hidden_size={low: 4, high: 16}"
OUTER = "search.space.training.outer_lr={low: 0.0001, high: 0.1, log: true}"


def finished_run(folder: Path, *space: str, rates: tuple[float, ...]) -> Run:
    run = Run.create(folder, tiny_experiment(*space))
    log = TrialLog(run)
    log.begin([])
    for number, rate in enumerate(rates):
        point = {"maml.inner_lr": rate} | ({"model.hidden_size": 8} if SIZE in space else {})
        log.set(f"t{number}", TrialRecord(point, "bo", "completed", [(6, rate, 0.1)]))
    log.set("failed", TrialRecord({"maml.inner_lr": 0.5}, "bo", "failed"))
    return run


def test_only_shared_keys_count_and_the_others_are_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, RATE, SIZE, rates=(0.02, 0.1, 0.2, 0.4, 0.9))
    narrow = "search.space.maml.inner_lr={low: 0.01, high: 0.5}"
    experiment = tiny_experiment(narrow, OUTER, f"search.learn_from=[{run.path}]")
    found = read_sources(experiment, tmp_path)
    (trials,), (note,) = found.trials, found.notes
    assert [record.point["maml.inner_lr"] for record in trials] == [0.02, 0.1, 0.2, 0.4]
    assert all(search_space(experiment).contains(record.point) for record in trials)
    own = run.experiment().training.outer_lr
    assert {record.point["training.outer_lr"] for record in trials} == {own}
    assert "learns from 4 trials" in note
    assert "1 more lie outside this search space" in note
    assert "also varied model.hidden_size" in note
    assert f"it did not vary training.outer_lr = {own}" in note


def test_a_run_that_cannot_help_is_refused(tmp_path: Path) -> None:
    few = finished_run(tmp_path, RATE, rates=(0.1, 0.2))
    with pytest.raises(RunError, match=r"2 trials came to their end.*at least 4 are needed"):
        read_sources(tiny_experiment(RATE, f"search.learn_from=[{few.path}]"), tmp_path)
    with pytest.raises(RunError, match="searched none of the keys of this search"):
        read_sources(tiny_experiment(OUTER, f"search.learn_from=[{few.path}]"), tmp_path)
    other = load_experiment("sinusoid", ["search.space={}", f"search.learn_from=[{few.path}]"])
    with pytest.raises(RunError, match="was judged by val_accuracy"):
        read_sources(other, tmp_path)
    with pytest.raises(RunError, match="nowhere"):
        read_sources(tiny_experiment(RATE, "search.learn_from=[nowhere]"), tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.method=random", "`method` must be bo"),
        ("search.model=saas", "`model` must be auto or gp"),
        ("search.against=num_parameters", "`against` must be null"),
        ("search.warm_start=a", "`warm_start` must be null"),
        ("search.learn_from=[a, a]", "each run once"),
    ],
)
def test_a_search_that_cannot_learn_is_refused(override: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        tiny_experiment(RATE, "search.learn_from=[a]", override)


def test_a_resumed_search_learns_from_the_same_trials(tmp_path: Path) -> None:
    before = finished_run(tmp_path, RATE, rates=(0.1, 0.2, 0.3, 0.4))
    experiment = tiny_experiment(RATE, f"search.learn_from=[{before.path}]")
    sources = read_sources(experiment, tmp_path)
    run = Run.create(tmp_path, experiment, "next")
    TrialLog(run).begin([], sources.trials)
    assert logged_trials(run).sources == sources.trials
