"""Temperatures, calibration errors and prediction sets against their definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raymeta
from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.errors import DataError, RunError
from raymeta.evaluation.calibration import (
    CALIBRATION_FILE,
    NO_CALIBRATION,
    Calibration,
    calibrate,
    calibration_error,
    certainty_of_classes,
)
from raymeta.evaluation.controls.contract import Network
from raymeta.experiment.file import load_experiment
from raymeta.tasks.load import load_tasks
from raymeta.training.recipe import initial_meta_params, recipe_for_inputs

SMALL = ("model.hidden_size=6", "model.bidirectional=false", "search.space={}")


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


NUM_WAYS = 5


@dataclass(frozen=True)
class Persons:
    """Draws episodes of persons, each noisy in his own way; a few persons, or always a new one."""

    most: int | None = None

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        person = int(rng.integers(2**62 if self.most is None else self.most))
        own = np.random.default_rng([person, len(split)])
        noise, centres = own.gamma(1.0), own.normal(size=(NUM_WAYS, 1, 2))
        y = np.arange(NUM_WAYS).repeat(4)
        x = (centres[y] + noise * rng.normal(size=(len(y), 1, 2))).astype(np.float32)
        is_query = np.arange(len(y)) % 4 > 1
        return Episode(
            support_x=x[~is_query],
            support_y=y[~is_query],
            query_x=x[is_query],
            query_y=y[is_query],
            query_units={"person": np.full(is_query.sum(), person)},
        )


def network_of(seed: int, most: int | None = None) -> Network:
    spec = InputSpec("classification", NUM_WAYS, num_features=2)
    experiment = load_experiment("pen", ["learner=prototypes", "model.stacked_steps=1", *SMALL])
    recipe = recipe_for_inputs(experiment, spec)
    tasks = TaskDistribution("persons", spec, seed, Persons(most))
    return Network(tasks, recipe, initial_meta_params(recipe, torch.device("cpu")))


@pytest.mark.slow
def test_sets_cover_the_classes_of_many_new_persons() -> None:
    found, sizes, num_worlds = [], [], 20
    for seed in range(num_worlds):
        network = network_of(seed)
        _, sets = certainty_of_classes([network], calibrate([network]), 200)
        found.append(sets.found.mean)
        sizes.append(sets.size)
        assert sets.val_units == {"person": 200}
        assert sets.found.half_width is not None
    # 4,000 persons beside those of twenty calibrations, whose quantiles differ by 0.02 or so.
    error = 3 * np.std(found, ddof=1) / math.sqrt(num_worlds)
    assert error < 0.025
    assert 0.9 - error < np.mean(found) < 0.9 + 1 / 100 + error
    assert 1 < np.mean(sizes) < NUM_WAYS


def test_episodes_of_two_persons_are_told_as_such() -> None:
    network = network_of(0, most=2)
    _, sets = certainty_of_classes([network], calibrate([network]), 20)
    assert sets.num_tasks == 100
    assert sets.val_units == {"person": 2}


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_calibrated_and_its_sets_cover_held_out_tasks(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {
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
        num = 300 if split == "val" else overrides["evaluation.num_episodes"]
        episodes = tasks.episodes(split, range(start, start + num))
        answers = []
        for network in model.networks:  # of the refit, whose mean answers
            *_, logits = recipe.learner.query_outputs(
                recipe.spec, recipe.problem, network, episodes.support, episodes.query, 0
            )
            answers.append((logits.double() / found.temperature).softmax(dim=-1))
        proba = torch.stack(answers).mean(dim=0)
        right = proba.gather(-1, episodes.query.y.unsqueeze(-1))
        covered[split] = (1 - right <= most).double().mean().item()
    assert covered["val"] == pytest.approx(0.9, abs=0.04)
    # Two writers and ten characters are another distribution: nothing is promised there, but told.
    sets = report.meta_test.sets
    assert sets is not None
    assert sets.found.mean == pytest.approx(covered["test"], abs=0.01)
    assert (sets.wanted, sets.num_tasks, sets.num_classes) == (0.9, 100, 5)
    assert sets.val_units["writer"] == report.meta_test.units["writer"]
    assert 1 <= sets.size <= 5
    (file := Path(str(report.run.path)) / CALIBRATION_FILE).unlink()
    assert raymeta.load(report.run.path).calibration == NO_CALIBRATION
    file.write_text("{}")
    with pytest.raises(RunError, match=r"damaged; `raymeta evaluate .*` makes it anew"):
        raymeta.load(report.run.path)
