from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls.class_means import class_mean_scores


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
    assert class_mean_scores(moved, "val", 3).tolist() == [[1.0] * 6] * 3
