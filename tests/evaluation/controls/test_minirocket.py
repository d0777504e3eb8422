"""MiniRocket's features against loops over their definition."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls import minirocket
from raymeta.evaluation.controls.class_means import class_mean_scores
from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.evaluation.controls.minirocket import MiniRocketRidge, fitted_dilations, transform

LENGTHS = (3, 20, 31, 40)


@pytest.fixture(scope="module")
def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 40, 3, generator=generator)
    for row, length in enumerate(LENGTHS):
        x[row, length:] = 0.0
    return x, torch.tensor(LENGTHS)


@pytest.fixture
def contest_of_tasks(
    untrained: Callable[..., Network],
) -> Callable[[TaskDistribution, int], Contest]:
    """Makes a contest on these tasks; the control ignores its network."""
    own = untrained("pen-maml")

    def make(tasks: TaskDistribution, num_episodes: int) -> Contest:
        scores = torch.zeros(num_episodes, 4, 1, dtype=torch.float64)
        return Contest(dataclasses.replace(own, tasks=tasks), scores, {})

    return make


def test_features_are_shares_of_steps_above_thresholds(sequences):
    x, lengths = sequences
    dilations = fitted_dilations(x, lengths)
    found = transform(dilations, x, lengths)
    assert found.shape == (4, 9996)
    triples = list(itertools.combinations(range(9), 3))
    start = 0
    for one in dilations:
        num_thresholds = one.thresholds.shape[1]
        for kernel in range(0, 84, 7):
            sees = [d for d in range(3) if one.weights[kernel, d].any()]
            assert sees
            for row, length in enumerate(LENGTHS):
                values = []
                for step in range(length):
                    places = [step + one.dilation * (tap - 4) for tap in range(9)]
                    is_whole = places[0] >= 0 and places[-1] < length
                    value = sum(
                        (2.0 if tap in triples[kernel] else -1.0) * float(x[row, place, sees].sum())
                        for tap, place in enumerate(places)
                        if 0 <= place < length
                    )
                    values.append((is_whole, value))
                whole = [value for is_whole, value in values if is_whole]
                if one.is_padded[kernel] or not whole:
                    whole = [value for _, value in values]
                for number in range(0, num_thresholds, 5):
                    threshold = float(one.thresholds[kernel, number])
                    if min(abs(value - threshold) for value in whole) < 1e-4:
                        continue  # a threshold may be the very output of a step
                    share = np.mean([value > threshold for value in whole])
                    column = start + kernel * num_thresholds + number
                    assert float(found[row, column]) == pytest.approx(share, abs=1e-6)
        start += 84 * num_thresholds
    assert start == 9996


def test_dilations_grow_until_a_kernel_spans_the_sequence():
    for longest in (2, 9, 40, 300):
        found = minirocket._num_thresholds(longest, 84)
        dilations = [dilation for dilation, _ in found]
        assert dilations[0] == 1
        assert dilations == sorted(set(dilations))
        assert dilations == [1] or 8 * dilations[-1] < longest <= 32 * dilations[-1]
        assert sum(count for _, count in found) == 9996 // 84


def test_thresholds_are_quantiles_of_the_outputs(sequences):
    x, lengths = sequences
    shares = transform(fitted_dilations(x, lengths), x, lengths)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(shares.std(dim=0).mean()) > 0.05


def test_features_do_not_depend_on_how_many_sequences_are_transformed_at_once(
    sequences, monkeypatch
):
    dilations = fitted_dilations(*sequences)
    at_once = transform(dilations, *sequences)
    monkeypatch.setattr(minirocket, "CHUNK_VALUES", 1.0)
    assert torch.equal(transform(dilations, *sequences), at_once)


def waves(num_steps: int = 60, poison: float | None = None) -> TaskDistribution:
    """A slow wave against a fast one at any phase: means over time do not separate them."""

    def draw(rng: np.random.Generator, label: int) -> np.ndarray:
        time = np.arange(num_steps) * (0.4, 0.9)[label]
        return np.sin(time + rng.uniform(0, 2 * np.pi)).astype(np.float32)[:, None]

    def sample(_split: Split, rng: np.random.Generator) -> Episode:
        support_y, query_y = np.array([0, 1]), np.array([0, 0, 1, 1])
        support_x = np.stack([draw(rng, label) for label in support_y])
        query_x = np.stack([draw(rng, label) for label in query_y])
        if poison is None:
            return Episode(support_x, support_y, query_x, query_y)
        for x in (support_x, query_x):
            x[:, 50:] = poison
        ends = np.full(2, 50), np.full(4, 50)
        return Episode(support_x, support_y, query_x, query_y, *ends)

    return TaskDistribution(
        name="waves",
        input_spec=InputSpec("classification", 2, num_features=1),
        seed=0,
        sample_episode=sample,
        class_mean_features=lambda examples: examples.x.flatten(2),
    )


@pytest.mark.slow
def test_frequencies_are_distinguished_at_any_phase(contest_of_tasks):
    scores = MiniRocketRidge().judge(contest_of_tasks(waves(), 50)).scores
    assert scores.mean() > 0.95
    assert class_mean_scores(waves(), "test", 50).mean() < 0.75


@pytest.mark.slow
def test_steps_past_the_end_of_a_sequence_are_never_read():
    grams = []
    for poison in (0.0, 1e3):
        tasks = waves(poison=poison)
        grams.append(minirocket._Features.of(tasks).kernels(tasks, "test", 5).gram)
    assert torch.equal(*grams)


def test_long_sequences_are_averaged_until_they_fit(contest_of_tasks, monkeypatch):
    monkeypatch.setattr(minirocket, "MAX_STEPS", 30)
    judgement = MiniRocketRidge().judge(contest_of_tasks(waves(), 20))
    assert judgement.detail.endswith("means of 2 steps")
    assert judgement.scores.isfinite().all()


def test_pen_is_recognised_better_than_by_class_means(untrained, contest_of):
    contest = contest_of(untrained("pen-maml"), num_episodes=100)
    means = class_mean_scores(contest.own.tasks, "test", 100)
    assert MiniRocketRidge().judge(contest).scores.mean() > means.mean()
