"""Whole searches: reused workers, lost workers, divergence, warm starts, two objectives."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.report.trial_plots import front_figure
from raymeta.run_folder import Run
from raymeta.search.explanation import explain_search
from raymeta.search.progress import TrialEvent
from raymeta.search.results import best_trial, checkpoints, default_trial, read_trials
from raymeta.search.trial_log import logged_trials
from raymeta.search.warm_start import earlier_trials
from raymeta.training.checkpoint import CHECKPOINT_NAME
from tests.search.helpers import (
    assert_same_bits,
    local_ray,
    new_trial,
    search,
    tiny_experiment,
    worker_pids,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_of_four_cpus() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


class Journal:
    """Records the trials' starts and results, and the worker processes that exist."""

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
        """Returns the step of every report."""
        return [steps for _, kind, steps in self.events if kind == "result"]


@pytest.mark.slow
def test_a_trial_that_lost_a_worker_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment("resources.num_workers=2", "training.meta_steps=9")
    run, journal = Run.create(tmp_path, experiment), Journal(kill_at=6)
    (trial,) = search(experiment, run, journal)

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
    (last, *_) = checkpoints(run, trial.trial_id)
    assert_same_bits(load_file(str(last)), load_file(tmp_path / CHECKPOINT_NAME))


@pytest.mark.slow
def test_diverging_trials_are_abandoned_and_the_search_goes_on_with_the_same_workers(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment(
        "resources={num_workers: 2, cpus_per_worker: 2, max_failures: 0}",  # one trial at once
        "training.max_skipped=0",
        "search.num_trials=4",
        "search.num_sobol=2",
        "search.space.maml.inner_lr={choices: [0.1, 1.0e+300]}",
        "search.space.model.cell={choices: [gru, rnn]}",
    )
    run, journal = Run.create(tmp_path, experiment), Journal()
    trials = search(experiment, run, journal)

    points = [(t.record.point["maml.inner_lr"], t.record.point["model.cell"]) for t in trials]
    assert points[0] == (0.1, "gru")
    assert set(points) == {(0.1, "gru"), (0.1, "rnn"), (1e300, "gru"), (1e300, "rnn")}
    for trial in trials:
        if trial.record.point["maml.inner_lr"] == 0.1:
            assert (trial.record.status, trial.steps) == ("completed", 6)
            assert trial.error is None
        else:
            assert trial.record.status == "abandoned"
            assert math.isnan(trial.value)
            assert trial.error is not None
            assert "non-finite gradient" in trial.error
    assert len(set(journal.workers)) == 1, "workers were started anew"
    assert len(journal.workers[0]) == 2
    assert read_trials(run) == {trial.trial_id: trial.record for trial in trials}
    written = run.read_json("trials.json")
    assert [t["status"] for t in written] == [t.record.status for t in trials]
    assert best_trial(experiment, trials).record.status == "completed"
    assert default_trial(experiment, trials) is trials[0]


@pytest.mark.slow
def test_a_search_with_conditional_keys_learns_from_an_earlier_one(tmp_path: Path) -> None:
    first = tiny_experiment(
        "search.num_trials=4",
        "search.num_sobol=2",
        "search.space.model.cell={choices: [rnn, gru]}",
    )
    earlier = Run.create(tmp_path, first)
    known = search(first, earlier)
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
    trials = search(second, Run.create(tmp_path, second))
    assert {trial.record.status for trial in trials} == {"completed"}
    for trial in trials:
        point = trial.record.point
        assert ("model.hidden_size" in point) == (point["model.cell"] == "lstm")
        assert ("maml.first_order" in point) == (point["maml.adapt"] == "all")
    assert [trial.record.source for trial in trials][:2] == ["given", "bo"]  # no Sobol points


@pytest.mark.slow
def test_a_search_ends_by_its_time_and_its_run_tells_so(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        "search.num_trials=50",
        "search.budget_s=0.001",
        "resources.max_concurrent_trials=1",
        "search.space.maml.inner_lr={low: 0.01, high: 1, log: true}",
    )
    run = Run.create(tmp_path, experiment)
    trials = search(experiment, run)
    assert [trial.record.status for trial in trials] == ["completed"]
    began_s = trials[0].record.began_s
    assert began_s is not None
    assert trials[0].record.latest_s > began_s
    assert logged_trials(run).ended_by == "budget_s: 0.001 s were spent"
    assert search(experiment, run) == trials  # resumed before it was written up


@pytest.mark.slow
def test_a_search_for_two_objectives_keeps_both_and_is_explained(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        "search.num_trials=6",
        "search.num_sobol=3",
        "resources.max_concurrent_trials=1",  # so that the model knows results in time
        "search.against=num_parameters",
        "search.space.model.hidden_size={low: 4, high: 12}",
        "search.space.maml.inner_lr={low: 0.01, high: 1, log: true}",
    )
    run = Run.create(tmp_path, experiment)
    trials = search(experiment, run)
    assert {trial.record.status for trial in trials} == {"completed"}
    size = {t.record.point["model.hidden_size"]: t.record.others["num_parameters"] for t in trials}
    assert [curve[-1][1] for _, curve in sorted(size.items())] == sorted(
        curve[-1][1] for curve in size.values()
    )
    assert len(size) > 1
    explain_search(experiment, run)
    assert set(run.importance) == set(experiment.search.space)
    front = front_figure(logged_trials(run).records, experiment)
    assert front is not None
    assert any(trace.name == "Pareto front" for trace in front.data)
    shares = pd.read_csv(run.search_dir / "importance-num_parameters.csv")
    assert shares.set_index("parameter_name").sensitivity.abs().idxmax() == "model.hidden_size"
    assert [r.others for r in earlier_trials(_warm(experiment, run), tmp_path)] == [
        trial.record.others for trial in trials
    ]


def _warm(experiment: Experiment, run: Run) -> Experiment:
    return with_values(experiment, {"search.warm_start": str(run.path)})
