"""Another search learns from the trials of an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymeta.errors import RunError
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search import warm_start
from raymeta.search.records import Curve, Status, TrialRecord
from raymeta.search.warm_start import earlier_trials
from tests.search.helpers import tiny_experiment


def test_an_earlier_trial_counts_at_the_budget_of_this_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_experiment("search.space.maml.inner_lr={low: 0.01, high: 1}")
    run = Run.create(tmp_path, before)
    curve: Curve = [(3, 0.3, 0.1), (6, 0.5, 0.1), (9, 0.6, 0.1)]
    ends: dict[str, Status] = {"a": "completed", "b": "early_stopped", "c": "failed"}
    monkeypatch.setattr(
        warm_start,
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
