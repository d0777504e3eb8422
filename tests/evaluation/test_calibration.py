"""Temperatures, calibration errors and prediction sets against their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import raymeta
from raymeta.episodes import Split
from raymeta.errors import DataError, RunError
from raymeta.evaluation.calibration import (
    CALIBRATION_FILE,
    NO_CALIBRATION,
    Calibration,
    calibration_error,
)
from raymeta.tasks.load import load_tasks


def test_the_calibration_error_is_that_of_its_definition() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.35, 0.65]])
    # Bins of 1/15: two of confidence 0.9 (accuracy 1/2), one of 0.7 (1), one of 0.65 (0).
    found = calibration_error(probabilities, torch.tensor([0, 1, 1, 0]))
    assert found == pytest.approx((2 * 0.4 + 0.3 + 0.65) / 4)
    certain = torch.eye(3)
    assert calibration_error(certain, torch.arange(3)) == 0


def test_the_threshold_is_the_quantile_with_a_share_at_infinity() -> None:
    calibration = Calibration(1.0, ((0.1, 0.4), (0.2, 0.3), (0.5, 0.6), (0.0, 0.9)))
    # Nine tenths of four fifths in eight steps of one tenth each.
    assert calibration.threshold(0.3) == 0.2
    assert calibration.threshold(0.8) == 0.9
    assert calibration.threshold(0.81) == math.inf
    with pytest.raises(DataError, match="coverage must be > 0 and < 1, but got 1"):
        calibration.threshold(1)
    with pytest.raises(DataError, match="was not calibrated"):
        NO_CALIBRATION.threshold(0.9)


@pytest.mark.parametrize("coverage", [0.6, 0.9])
def test_new_tasks_are_covered_though_queries_of_a_task_are_alike(coverage: float) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        hardness = rng.uniform(size=(21, 1)) ** 2
        misfits = np.clip(hardness + 0.05 * rng.normal(size=(21, 8)), 0, 1)
        known = Calibration(1.0, tuple(map(tuple, misfits[:20].tolist())))
        found.append((misfits[20] <= known.threshold(coverage)).mean())
    error = 3 * np.std(found) / math.sqrt(len(found))
    assert np.mean(found) > coverage - error
    assert np.mean(found) < coverage + 1 / 20 + error  # no more than it must be


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_calibrated_and_its_sets_cover_held_out_tasks(tmp_path: Path) -> None:
    overrides = {
        "learner": "prototypes",
        "model.hidden_size": 16,
        "training.meta_steps": 60,
        "training.val_episodes": 20,
        "training.pretrain_steps": 0,
        "resources.num_workers": 1,
        "evaluation.num_episodes": 20,
        "search.space": {},
    }
    report = raymeta.train("pen", overrides=overrides, runs_dir=tmp_path)
    found = report.meta_test.reliability
    assert found is not None
    assert found.error < found.error_without + 0.02
    model = raymeta.load(report.run.path)
    assert model.calibration.temperature == found.temperature
    assert len(model.calibration.misfits or ()) == 100
    assert model.reference is not None  # of the likeness to meta-training
    # Held-out tasks: further episodes of meta-validation, and the meta-test's, of new writers.
    tasks = load_tasks(report.best)
    recipe = model.trained.recipe
    most = model.calibration.threshold(0.9)
    covered = {}
    starts: list[tuple[Split, int]] = [("val", 200), ("test", 0)]
    for split, start in starts:
        episodes = tasks.episodes(split, range(start, start + 300))
        *_, logits = recipe.learner.query_outputs(
            recipe.spec, recipe.problem, model.networks[0], episodes.support, episodes.query, 0
        )
        proba = (logits.double() / found.temperature).softmax(dim=-1)
        right = proba.gather(-1, episodes.query.y.unsqueeze(-1))
        covered[split] = (1 - right <= most).double().mean().item()
    assert covered["val"] == pytest.approx(0.9, abs=0.04)
    assert covered["test"] > 0.75  # two writers, ten characters: not the same distribution
    (file := Path(str(report.run.path)) / CALIBRATION_FILE).unlink()
    assert raymeta.load(report.run.path).calibration == NO_CALIBRATION
    file.write_text("{}")
    with pytest.raises(RunError, match=r"damaged; `raymeta evaluate .*` makes it anew"):
        raymeta.load(report.run.path)
