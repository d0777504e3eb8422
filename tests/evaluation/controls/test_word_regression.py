from __future__ import annotations

import numpy as np
import pytest
import torch

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.evaluation.controls.word_regression import WordRegression, Words, fit_logistic

GOOD, BAD = 2, 3
VOCABULARY = 12


def opinions(*, fixed_labels: bool = True, named: bool = True) -> TaskDistribution:
    """Sentences with one informative word among noise; 5 support and 5 query examples a class."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        x = rng.integers(4, VOCABULARY, size=(10, 6))
        x[:, 4:] = 0  # padding
        x[np.arange(10), rng.integers(4, size=10)] = np.repeat([BAD, GOOD], 5)
        return x

    def sample(_split: Split, rng: np.random.Generator) -> Episode:
        labels = np.repeat([0, 1], 5)
        ids = rng.integers(10**9, size=(2, 10))
        names = {"support_ids": ids[0], "query_ids": ids[1]} if named else {}
        return Episode(draw(rng), labels, draw(rng), labels, **names)

    return TaskDistribution(
        name="opinions",
        input_spec=InputSpec("classification", 2, vocabulary_size=VOCABULARY),
        seed=0,
        sample_episode=sample,
        fixed_labels=fixed_labels,
    )


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_words_that_tell_the_classes_apart_are_learned(untrained, named):
    tasks = opinions(named=named)
    own = Network(tasks, untrained("sentiment").recipe, {})
    judgement = WordRegression().judge(Contest(own, torch.zeros(20, 10, 4), {}))
    assert judgement.scores.tolist() == [[1.0] * 10] * 20


def test_labels_must_mean_the_same_in_every_task():
    assert WordRegression().serves(opinions())
    assert not WordRegression().serves(opinions(fixed_labels=False))


def test_rare_words_weigh_more_and_padding_nothing():
    tokens = torch.tensor([[5, 5, 7, 0], [5, 0, 0, 0], [5, 6, 0, 0]])
    words = Words.of(tokens)
    assert words.ids.tolist() == [5, 6, 7]
    common, rare = np.log(4 / 4) + 1, np.log(4 / 2) + 1
    expected = np.array([2 * common, 0, rare])
    found = words.tf_idf(tokens)[0].numpy()
    assert found == pytest.approx(expected / np.linalg.norm(expected))
    unknown = words.tf_idf(torch.tensor([[9, 0, 1, 0]]))
    assert unknown.tolist() == [[0.0, 0.0, 0.0]]


def test_the_fit_is_a_minimum_of_the_penalised_loss():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    labels = torch.randint(2, (40,), generator=generator)
    weights = fit_logistic(inputs, labels, 2, strength=2.0).requires_grad_()
    outputs = inputs @ weights[:-1] + weights[-1]
    loss = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss + weights[:-1].square().sum() / 4, weights)
    assert gradient.abs().max().item() < 1e-2
