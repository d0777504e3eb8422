"""The live view of trials and of the refit, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from raymeta.console.progress import ProgressView
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.progress import EventKind, TrialEvent

POINT = {"maml.inner_lr": 0.1}
LONGER = {**POINT, "training.meta_steps": 20, "training.seed": 1}


def event(trial: str, kind: EventKind, point: dict[str, float], step: int) -> TrialEvent:
    return TrialEvent(trial, kind, point, {"meta_steps": step, "val_accuracy": 0.01 * step})


def view(folder: Path) -> tuple[ProgressView, io.StringIO]:
    """Makes the view of a search of one trial of 10 meta-steps, then its refit of 20."""
    printed = io.StringIO()
    found = ProgressView(Console(file=printed, width=200))
    experiment = load_experiment(
        "pen-maml",
        [
            "training.meta_steps=10",
            "search.num_trials=1",
            "search.space={maml.inner_lr: {low: 0.1, high: 1}}",
        ],
    )
    found.started(Run(folder), experiment)
    found.trial(event("a", "started", POINT, 0))
    found.trial(event("a", "completed", POINT, 10))
    found.trial(event("b", "started", LONGER, 0))
    found.trial(event("c", "completed", LONGER, 10))
    found.trial(event("b", "completed", LONGER, 20))
    return found, printed


def test_a_training_of_the_refit_is_named_so_and_has_its_own_budget(tmp_path: Path) -> None:
    _, printed = view(tmp_path)
    said = [line.partition("] ")[2] for line in printed.getvalue().splitlines()[1:]]
    assert said[1].startswith("trial 1 done at step 10")
    assert said[2].startswith("refit 1 started  inner_lr=0.1  meta_steps=20  seed=1")
    assert said[3].startswith("refit 2 stopped at step 10")
    assert said[4].startswith("refit 1 done at step 20")


def test_the_table_counts_the_refit_apart_and_shows_the_searchs_best(tmp_path: Path) -> None:
    found, printed = view(tmp_path)
    Console(file=printed, width=200).print(found._render())
    header, _, *rows = printed.getvalue().splitlines()[6:]
    assert "1/1 trials  ·  refit: 2/2 trainings" in header
    assert "best val_accuracy 0.100 (trial 1)" in header
    assert [" ".join(row.split()[:2]) for row in rows] == ["1 done", "refit 1", "refit 2"]
