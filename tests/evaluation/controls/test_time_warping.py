"""DTW against a plain loop over its table, and on sequences that only warping can tell apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls import time_warping
from raymeta.evaluation.controls.class_means import class_mean_scores
from raymeta.evaluation.controls.time_warping import block_size, dtw, dtw_scores


def reference(costs: np.ndarray, band: float) -> float:
    """DTW by its definition, cell by cell."""
    rows, columns = costs.shape
    radius = max(band, *(1 / max(size - 1, 1) for size in costs.shape)) + 1e-6
    table = np.full((rows + 1, columns + 1), math.inf)
    table[0, 0] = 0.0
    for i in range(rows):
        for j in range(columns):
            if band < 1 and abs(i / max(rows - 1, 1) - j / max(columns - 1, 1)) > radius:
                continue
            before = min(table[i, j], table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = costs[i, j] + before
    return float(table[rows, columns])


@pytest.mark.parametrize("band", [0.0, 0.1, 0.3, 1.0])
def test_distance_is_the_cheapest_path_of_every_pair_of_lengths(band):
    generator = torch.Generator().manual_seed(0)
    sizes = [(n, m) for n in range(1, 8) for m in range(1, 10)]
    costs = torch.rand(len(sizes), 7, 9, generator=generator)
    rows, columns = (torch.tensor(size) for size in zip(*sizes, strict=True))
    found = dtw(costs, rows, columns, band)
    expected = [
        reference(cost[:n, :m].numpy(), band) for cost, (n, m) in zip(costs, sizes, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.isfinite().all()


def bumps(num_steps: int = 20, lengths: tuple[int, int] | None = None) -> TaskDistribution:
    """One bump against two, anywhere in time; one support and two query examples a class."""

    def draw(rng: np.random.Generator, label: int) -> np.ndarray:
        x = np.zeros((num_steps, 1), dtype=np.float32)
        places = rng.choice(np.arange(1, num_steps // 3), 1 + label, replace=False)
        x[3 * places] = 1.0
        return x

    def sample(_split: Split, rng: np.random.Generator) -> Episode:
        return Episode(
            support_x=np.stack([draw(rng, label) for label in (0, 1)]),
            support_y=np.array([0, 1]),
            query_x=np.stack([draw(rng, label) for label in (0, 0, 1, 1)]),
            query_y=np.array([0, 0, 1, 1]),
            support_lengths=None if lengths is None else np.full(2, lengths[0]),
            query_lengths=None if lengths is None else np.full(4, lengths[1]),
        )

    return TaskDistribution(
        name="bumps",
        input_spec=InputSpec("classification", 2, num_features=1),
        seed=0,
        sample_episode=sample,
        class_mean_features=lambda examples: examples.x.flatten(2),
    )


def test_warping_finds_shapes_wherever_they_are_in_time():
    assert dtw_scores(bumps(), "test", 50, band=1.0).mean() == 1.0
    assert class_mean_scores(bumps(), "test", 50).mean() < 0.8


def test_a_band_forbids_to_warp_far():
    assert dtw_scores(bumps(), "test", 50, band=0.0).mean() < 0.9


@pytest.mark.parametrize("band", [0.1, 1.0])
def test_padding_is_never_compared(band):
    padded = bumps(num_steps=20, lengths=(20, 20))
    assert torch.equal(
        dtw_scores(padded, "test", 20, band), dtw_scores(bumps(num_steps=20), "test", 20, band)
    )

    def poisoned(split: Split, rng: np.random.Generator) -> Episode:
        episode = bumps(num_steps=20, lengths=(12, 15)).sample_episode(split, rng)
        episode.support_x[:, 12:] = rng.normal(size=(2, 8, 1))
        episode.query_x[:, 15:] = rng.normal(size=(4, 5, 1))
        return episode

    clean = bumps(num_steps=20, lengths=(12, 15))
    other = TaskDistribution("bumps", clean.input_spec, 0, poisoned)
    for block in (1, 2):
        distances = [
            time_warping._distances(tasks.episodes("test", range(4)), band, block)
            for tasks in (clean, other)
        ]
        torch.testing.assert_close(*distances)


def test_long_sequences_are_averaged_until_they_fit():
    long = bumps(num_steps=3000)
    block = block_size(long, num_episodes=600)
    assert 600 * 8 * (3000 / block) ** 2 <= time_warping.MAX_CELLS
    assert block_size(bumps(num_steps=20), num_episodes=600) == 1
    assert dtw_scores(long, "test", 3, 1.0, block).isfinite().all()


def test_scores_do_not_depend_on_how_many_pairs_are_aligned_at_once(monkeypatch):
    at_once = dtw_scores(bumps(), "test", 20, 0.25)
    monkeypatch.setattr(time_warping, "CHUNK_CELLS", 1.0)
    assert torch.equal(dtw_scores(bumps(), "test", 20, 0.25), at_once)


@pytest.mark.slow
def test_pen_is_recognised_as_well_as_a_separate_program_found(untrained, contest_of):
    # A loop over aeon-like squared distances gave 0.819 on the 600 episodes of the default deal.
    own = untrained("pen-maml", "evaluation.adaptation_steps=1", "model.hidden_size=1")
    scores = dtw_scores(own.tasks, "test", 600, band=1.0)
    assert scores.mean().item() == pytest.approx(0.819, abs=0.02)
