"""Distances of support sets, and the threshold above which they are unlike the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raymeta.episodes import Examples
from raymeta.evaluation.familiarity import (
    ALPHA,
    Familiarity,
    Reference,
    description_size,
    descriptions,
    familiarity_from_json,
)
from raymeta.experiment.file import load_experiment
from raymeta.meta.embedding import support_of
from raymeta.tasks.load import load_tasks
from raymeta.training.recipe import Recipe, build_recipe, initial_meta_params


def reference_of(distances: list[float]) -> Reference:
    return Reference(np.zeros(2), np.eye(2), np.sort(np.array(distances)))


def test_the_distance_is_the_mean_square_in_whitened_numbers() -> None:
    known = Reference(np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 3.0]]), np.ones(1))
    # (1, 1) and (0, 0) from the centre become (3, 3) and (0, 0).
    assert known.distance(np.array([[2.0, 3.0], [1.0, 2.0]])) == pytest.approx(18 / 4)
    far = known.distance(np.array([[np.inf, 0.0]]))
    assert np.isfinite(far)
    assert far > 1e300


def test_the_p_value_is_the_rank_among_the_tasks_of_meta_validation() -> None:
    known = reference_of([float(n) for n in range(1, 200)])  # 199 distances
    at: dict[float, Familiarity] = {
        distance: known.familiarity(np.full((3, 2), np.sqrt(distance)))
        for distance in (0.5, 100.0, 197.5, 198.5, 1000.0)
    }
    assert at[0.5].p_value == 1.0
    assert at[100.0].p_value == pytest.approx(101 / 200)
    assert at[1000.0].p_value == pytest.approx(1 / 200)
    assert [one.is_unlike_training for one in at.values()] == [False, False, False, True, True]
    for one in at.values():  # the same said twice
        assert one.threshold == 198.0
        assert one.is_unlike_training == (one.distance > one.threshold)
    assert "do not look like" in at[1000.0].warning
    assert "at most 198" in at[1000.0].warning
    assert familiarity_from_json(at[100.0].to_json()) == at[100.0]
    with pytest.raises(ValueError, match="damaged"):
        familiarity_from_json({"distance": 1.0, "threshold": 1.0, "p_value": 0.0})


def test_of_ordinary_tasks_no_more_than_the_stated_share_is_called_unlike() -> None:
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(300):
        known = reference_of(rng.gamma(2, size=200).tolist())
        new = rng.gamma(2, size=100)
        found = [known.familiarity(np.full((1, 2), np.sqrt(d))).is_unlike_training for d in new]
        flagged.append(np.mean(found))
    error = 3 * np.std(flagged) / np.sqrt(len(flagged))
    assert ALPHA - 0.005 - error < np.mean(flagged) <= ALPHA + error


def parts(*overrides: str) -> tuple[Any, Recipe, dict[str, torch.Tensor]]:
    experiment = load_experiment(
        "vowels", ["model.hidden_size=4", "training.precision=float64", *overrides]
    )
    tasks = load_tasks(experiment)
    recipe = build_recipe(experiment, tasks)
    return tasks, recipe, initial_meta_params(recipe, torch.device("cpu"))


def described(recipe: Recipe, params: Any, support: Examples) -> np.ndarray:
    steps = 0 if support_of_learner(recipe) else 1
    adapted = recipe.learner.adapted_params(recipe.spec, recipe.problem, params, support, steps)
    return descriptions(recipe, params, support, adapted)


def support_of_learner(recipe: Recipe) -> bool:
    return recipe.learner.name == "prototypes"


@pytest.mark.parametrize("learner", ["prototypes", "maml"])
def test_an_example_is_described_by_itself_alone_whatever_pads_it(learner: str) -> None:
    tasks, recipe, params = parts(f"learner={learner}")
    episodes = tasks.episodes("val", range(3)).to(torch.device("cpu"), torch.float64)
    support = episodes.support
    found = described(recipe, params, support)
    assert found.shape == (3, 2, description_size(recipe.spec, "classification"))
    assert support.lengths is not None
    size = int(support.lengths[1, 0])
    x = support.x[1, 0, :size].numpy()
    features = recipe.spec.output_size
    assert found[1, 0, features] == pytest.approx(np.log(size))
    np.testing.assert_allclose(found[1, 0, features + 1 : features + 13], x.mean(axis=0))
    np.testing.assert_allclose(
        found[1, 0, features + 13 : features + 25], np.log(x.std(axis=0) + 1e-3)
    )
    pace = np.abs(np.diff(x, axis=0)).mean(axis=0)
    np.testing.assert_allclose(found[1, 0, features + 25 :], np.log(pace + 1e-3))
    outside = torch.arange(support.x.shape[2]) >= support.lengths.unsqueeze(-1)
    padded = support.x.masked_fill(outside.unsqueeze(-1), torch.nan)
    np.testing.assert_allclose(described(recipe, params, replace(support, x=padded)), found)


def test_embedding_learners_give_their_features_a_second_time() -> None:
    tasks, recipe, params = parts("learner=prototypes")
    support = tasks.episodes("val", range(1)).to(torch.device("cpu"), torch.float64).support
    adapted = recipe.learner.adapted_params(recipe.spec, recipe.problem, params, support, 0)
    known = support_of(adapted)
    assert known is not None
    found = descriptions(recipe, params, support, adapted)
    np.testing.assert_array_equal(found[..., : recipe.spec.output_size], known[0])
