"""Kernel ridge regression against the normal equations of its weights, and on sine waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls import kernel_ridge
from raymeta.evaluation.controls.kernel_ridge import KernelRidge, ridge_answers
from raymeta.evaluation.controls.support_mean import SupportMean


def test_answers_are_those_of_ridge_regression_on_the_features_themselves():
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(3, 7, 2, generator=generator, dtype=torch.float64)
    found = ridge_answers(support @ support.mT, query @ support.mT, targets, penalty=0.3)
    for x, new, y, answers in zip(
        support.numpy(), query.numpy(), targets.numpy(), found, strict=True
    ):
        weights = np.linalg.solve(x.T @ x + 0.3 * np.eye(4), x.T @ (y - y.mean(0)))
        np.testing.assert_allclose(answers.numpy(), y.mean(0) + new @ weights, atol=1e-12)


def test_sine_waves_are_predicted_from_a_few_points(untrained, contest_of):
    contest = contest_of(untrained("sinusoid"), num_episodes=100)
    judgement = KernelRidge().judge(contest)
    assert judgement.scores.mean() < 0.2 * SupportMean().judge(contest).scores.mean()
    assert judgement.detail.startswith("width ")


def ragged(poison: float, scale: float = 1.0) -> TaskDistribution:
    """Targets are sums over the valid steps; padding holds `poison`."""

    def sample(_split: Split, rng: np.random.Generator) -> Episode:
        lengths = rng.integers(2, 6, 12)
        x = rng.normal(size=(12, 5, 2)).astype(np.float32)
        inside = np.arange(5) < lengths[:, None]
        y = (x * inside[..., None]).sum(axis=(1, 2))[:, None]
        x[~inside] = poison
        x *= scale
        return Episode(x[:8], y[:8], x[8:], y[8:], lengths[:8], lengths[8:])

    return TaskDistribution("ragged", InputSpec("regression", 1, num_features=2), 0, sample)


def test_steps_past_the_end_of_a_sequence_are_never_compared():
    found = [
        kernel_ridge._answers(ragged(poison).episodes("test", range(3)), 2.0, 0.1)
        for poison in (0.0, 77.0)
    ]
    torch.testing.assert_close(*found)


def test_the_kernel_is_as_wide_as_the_inputs_need():
    medians = [kernel_ridge._median_distance(ragged(0.0, scale)) for scale in (1.0, 100.0)]
    assert medians[1] == pytest.approx(100 * medians[0], rel=1e-5)
