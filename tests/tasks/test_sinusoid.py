"""Sine waves: ranges of the paper, exact targets, fresh points in the query set."""

from __future__ import annotations

import numpy as np
import pytest

from raymeta.episodes import SPLITS, Split, TaskDistribution
from raymeta.tasks.settings import SinusoidTasks
from raymeta.tasks.sinusoid import load_sinusoid

NUM_EPISODES = 400

every_split = pytest.mark.parametrize("split", SPLITS)


def sinusoid(*, num_shots: int, num_queries: int, seed: int = 0) -> TaskDistribution:
    settings = SinusoidTasks(source="sinusoid", num_shots=num_shots, num_queries=num_queries)
    return load_sinusoid(settings, seed=seed)


def points(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets `[E, N]` of many episodes, support first."""
    episodes = sinusoid(num_shots=10, num_queries=5).episodes(split, range(NUM_EPISODES))
    x = np.concatenate([episodes.support.x.numpy(), episodes.query.x.numpy()], axis=1)
    y = np.concatenate([episodes.support.y.numpy(), episodes.query.y.numpy()], axis=1)
    assert x.shape == (NUM_EPISODES, 15, 1, 1)
    return x[..., 0, 0].astype(np.float64), y[..., 0].astype(np.float64)


@every_split
def test_targets_lie_on_one_wave_per_episode_with_the_papers_amplitude_and_phase(
    split: Split,
) -> None:
    amplitudes, phases = [], []
    for x, y in zip(*points(split), strict=True):
        # a sin(x - p) = (a cos p) sin x - (a sin p) cos x, linear in its two coefficients.
        basis = np.stack([np.sin(x), -np.cos(x)], axis=1)
        (cosine, sine), *_ = np.linalg.lstsq(basis, y)
        amplitude, phase = np.hypot(cosine, sine), np.arctan2(sine, cosine)
        np.testing.assert_allclose(y, amplitude * np.sin(x - phase), atol=1e-5)
        amplitudes.append(amplitude)
        phases.append(phase)
    for found, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, np.pi)):
        width = high - low
        assert low - 1e-3 <= min(found) < low + 0.03 * width
        assert high - 0.03 * width < max(found) <= high + 1e-3
        # The standard error of a uniform mean is width / sqrt(12 E).
        assert np.mean(found) == pytest.approx((low + high) / 2, abs=width / np.sqrt(NUM_EPISODES))


@every_split
def test_inputs_are_uniform_from_minus_five_to_five(split: Split) -> None:
    x, _ = points(split)
    assert -5.0 <= x.min() < -4.95
    assert 4.95 < x.max() <= 5.0
    assert x.mean() == pytest.approx(0.0, abs=0.15)


@every_split
def test_support_and_query_share_no_point(split: Split) -> None:
    tasks = sinusoid(num_shots=10, num_queries=10, seed=1)
    for index in range(50):
        episode = tasks.episode(split, index)
        assert episode.support_ids is not None
        assert episode.query_ids is not None
        assert not np.isin(episode.query_x, episode.support_x).any()
        assert not np.isin(episode.query_ids, episode.support_ids).any()


def test_episodes_have_the_asked_numbers_of_points() -> None:
    episode = sinusoid(num_shots=3, num_queries=7).episode("train", 0)
    assert (episode.support_x.shape, episode.support_y.shape) == ((3, 1, 1), (3, 1))
    assert (episode.query_x.shape, episode.query_y.shape) == ((7, 1, 1), (7, 1))
