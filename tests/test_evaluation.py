from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raymeta import evaluation, pretraining
from raymeta.evaluation import (
    Z_95,
    FineTuning,
    MetaTest,
    Row,
    Score,
    choose_fine_tuning,
    class_mean_scores,
    meta_test,
    train_joint_control,
)
from raymeta.experiment_file import load_experiment
from raymeta.meta.maml import Maml
from raymeta.tasks import InputSpec, Split, TaskDistribution, load_tasks
from raymeta.tasks.episodes import Episode
from raymeta.training import (
    Recipe,
    adaptation_curves,
    build_recipe,
    build_trainer,
    initial_meta_params,
)

CPU = torch.device("cpu")
TINY = [
    "model.hidden_size=8",
    "training.meta_steps=3",
    "training.meta_batch_size=2",
    "training.val_episodes=4",
]


@pytest.fixture(autouse=True)
def few_choice_episodes(monkeypatch):
    monkeypatch.setattr(evaluation, "NUM_CHOICE_EPISODES", 10)


def problem(name: str, *overrides: str) -> tuple[TaskDistribution, Recipe]:
    experiment = load_experiment(name, [*TINY, "search.space={}", *overrides])
    tasks = load_tasks(experiment)
    return tasks, build_recipe(experiment, tasks)


def scored(mean: float, half_width: float, name: str = "row") -> Row:
    return Row(name, name, Score(mean, half_width), 5, (Score(0.2, 0.01), Score(mean, half_width)))


def result(*rows: Row, higher_is_better: bool = True) -> MetaTest:
    return MetaTest("accuracy", higher_is_better, 600, "", rows)


def test_score_is_the_mean_with_its_normal_95_percent_interval():
    values = torch.tensor([0.2, 0.4, 0.9, 0.5])
    score = Score.of(values)
    standard_error = np.std(values.numpy(), ddof=1) / math.sqrt(4)
    assert score.mean == pytest.approx(0.5)
    assert score.half_width == pytest.approx(Z_95 * standard_error, rel=1e-6)


def test_interval_covers_the_true_mean_in_95_of_100_samples():
    samples = torch.randn(4000, 200, generator=torch.Generator().manual_seed(0))
    covered = [abs(score.mean) <= score.half_width for score in map(Score.of, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("mine", "theirs", "higher_is_better", "beaten"),
    [
        ((0.8, 0.01), (0.7, 0.01), True, True),
        ((0.8, 0.06), (0.7, 0.05), True, False),  # the intervals overlap
        ((0.7, 0.01), (0.8, 0.01), True, False),
        ((0.7, 0.01), (0.8, 0.01), False, True),
    ],
)
def test_control_is_beaten_only_beyond_both_intervals(mine, theirs, higher_is_better, beaten):
    tuned, control = scored(*mine), scored(*theirs)
    assert result(tuned, control, higher_is_better=higher_is_better).beats(control) is beaten


def test_meta_test_survives_the_way_through_json():
    original = result(scored(0.8, 0.01, "tuned"), scored(0.7, 0.02, "random"))
    assert MetaTest.from_json(original.to_json()) == original


def points(
    centres: list[list[float]], support_noise: float, query_noise: float
) -> TaskDistribution:
    """Classes that are points in the plane, one step long; 2 support and 3 query examples each."""
    ways = len(centres)

    def sample(_split: Split, rng: np.random.Generator) -> Episode:
        def draw(num: int, noise: float) -> np.ndarray:
            centre = np.repeat(np.array(centres), num, axis=0)
            return (centre + noise * rng.normal(size=centre.shape)).astype(np.float32)[:, None]

        return Episode(
            support_x=draw(2, support_noise),
            support_y=np.repeat(np.arange(ways), 2),
            query_x=draw(3, query_noise),
            query_y=np.repeat(np.arange(ways), 3),
        )

    return TaskDistribution(
        name="points",
        input_spec=InputSpec("classification", ways, num_features=2),
        seed=0,
        sample_episode=sample,
        class_mean_features=lambda examples: examples.x.flatten(2),
    )


def test_class_means_are_right_where_classes_are_far_apart_and_at_chance_where_they_are_one():
    apart = points([[0, 0], [9, 0], [0, 9]], support_noise=1.0, query_noise=1.0)
    assert class_mean_scores(apart, "test", 50).mean() > 0.99
    same = points([[0, 0], [0, 0], [0, 0]], support_noise=1.0, query_noise=1.0)
    assert class_mean_scores(same, "test", 400).mean() == pytest.approx(1 / 3, abs=0.05)


def test_class_means_average_the_support_set():
    # One support example of class 0 lies beyond class 1; only the mean of both is on its side.
    tasks = points([[0.0, 0.0], [2.0, 0.0]], support_noise=0.0, query_noise=0.0)

    def sample(split: Split, rng: np.random.Generator) -> Episode:
        episode = points([[0.0, 0.0], [2.0, 0.0]], 0.0, 0.0).sample_episode(split, rng)
        episode.support_x[:2, 0, 0] = [-3.0, 2.5]
        return episode

    moved = replace(tasks, sample_episode=sample)
    assert class_mean_scores(moved, "val", 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["pen", "sinusoid"])
def test_fine_tuning_is_the_best_choice_on_meta_validation(name):
    tasks, recipe = problem(name)
    joint = train_joint_control(tasks, recipe, CPU)
    chosen = choose_fine_tuning(tasks, recipe, joint, max_steps=3)
    assert isinstance(chosen, FineTuning)
    better = min if name == "sinusoid" else max
    for rate in (0.1, 1.0):
        tried = replace(recipe, maml=Maml(adaptation_steps=3, inner_lr=rate))
        curve = adaptation_curves(
            tasks, tried, chosen.params, "val", num_episodes=10, num_steps=3
        ).mean(dim=0)
        best = better(curve[curve.isfinite()].tolist())
        assert better(chosen.value, best) == pytest.approx(chosen.value)


def test_joint_control_takes_as_many_steps_as_pretraining_and_meta_training_together(monkeypatch):
    tasks, recipe = problem("pen", "training.pretrain_steps=4")
    taken: list[int] = []

    def spy(*args: object, num_steps: int, **kwargs: object) -> object:
        taken.append(num_steps)
        return original(*args, num_steps=num_steps, **kwargs)  # type: ignore[arg-type]

    original = pretraining.train_joint
    monkeypatch.setattr(evaluation, "train_joint", spy)
    train_joint_control(tasks, recipe, CPU)
    assert set(taken) == {7}


@pytest.mark.parametrize("name", ["pen", "sinusoid", "sentiment"])
def test_meta_test_has_every_control_and_one_set_of_episodes(name):
    tasks, recipe = problem(name, "evaluation.adaptation_steps=3")
    trainer = build_trainer(
        load_experiment(name, [*TINY, "search.space={}", "evaluation.adaptation_steps=3"])
    )
    trainer.train(3)
    joint = train_joint_control(tasks, recipe, CPU)
    judged = meta_test(
        tasks,
        recipe,
        trainer.meta_params,
        joint,
        label="tuned",
        default=(tasks, recipe, initial_meta_params(recipe, CPU)),
        num_episodes=5,
    )
    names = [row.name for row in judged.rows]
    expected = ["tuned", "unadapted", "default", "random", "joint", "class_mean"]
    assert names == (expected if name != "sinusoid" else expected[:-1])
    rows = {row.name: row for row in judged.rows}
    own = adaptation_curves(tasks, recipe, trainer.meta_params, "test", num_episodes=5, num_steps=3)
    assert [p.mean for p in rows["tuned"].curve] == pytest.approx(own.mean(dim=0).tolist())
    assert rows["tuned"].score == rows["tuned"].curve[3]
    assert rows["unadapted"].score == rows["tuned"].curve[0]
    assert rows["default"].score == rows["random"].score  # both are the untrained network here
    # How far ahead, from the differences between scores of the same episodes; more is better.
    sign = -1 if name == "sinusoid" else 1
    differences = sign * (own[:, 3] - own[:, 0])
    assert rows["unadapted"].ahead == Score.of(differences)
    assert rows["tuned"].ahead is None
    for row in judged.rows[1:]:
        assert row.ahead is not None
        assert row.ahead.mean == pytest.approx(sign * (judged.rows[0].score.mean - row.score.mean))
    assert MetaTest.from_json(json.loads(json.dumps(judged.to_json()))) == judged
