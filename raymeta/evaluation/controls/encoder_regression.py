"""Control for text that a pretrained encoder reads: logistic regression on its pooled vectors.

It learns from all meta-training examples and does not adapt: the first thing to try with a sentence
encoder on a new domain of a known question.

Shape legend: E episodes, M queries, N examples, F features, W ways.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raymeta.episodes import Examples, Split, TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.evaluation.controls.word_regression import NUM_TRAINING_EPISODES, fit_logistic

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)  # inverse of the L2 penalty; vectors have length 1

Pool = Callable[[Examples], Tensor]


class EncoderRegression(Control):
    """The mean of an example's token vectors, classified by a linear model."""

    name = "pooled"
    label = "logistic regression on pooled vectors"
    problems = frozenset({"classification"})
    inputs = frozenset({"vectors"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether labels mean the same in meta-training and meta-test, and examples are vectors."""
        return (
            super().serves(tasks) and tasks.fixed_labels and tasks.class_mean_features is not None
        )

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the penalty on meta-validation; scores the meta-test with it."""
        tasks = contest.own.tasks
        pool = tasks.class_mean_features
        assert pool is not None, "`serves` was asked"
        inputs, labels = _training_examples(tasks, pool)
        validation = _queries(tasks, pool, "val", contract.NUM_CHOICE_EPISODES)
        best: tuple[float, float, Tensor] | None = None
        for strength in STRENGTHS:
            weights = fit_logistic(inputs, labels, tasks.input_spec.num_outputs, strength)
            value = float(_accuracy(*validation, weights).mean())
            if best is None or value > best[0]:
                best = value, strength, weights
        assert best is not None, "there are strengths to choose from"
        _, strength, weights = best
        query = _queries(tasks, pool, "test", contest.num_episodes)
        return Judgement(_accuracy(*query, weights), detail=f"C {strength:g}")


def _training_examples(tasks: TaskDistribution, pool: Pool) -> tuple[Tensor, Tensor]:
    """Collects pooled vectors `[N, F]` and labels `[N]` of distinct meta-training examples."""
    joint = tasks.for_joint_training()
    found: dict[int | bytes, tuple[Tensor, int]] = {}
    for index in range(NUM_TRAINING_EPISODES):
        episode = joint.episode("train", index)
        episodes = joint.episodes("train", [index])
        for examples, ids in (
            (episodes.support, episode.support_ids),
            (episodes.query, episode.query_ids),
        ):
            vectors = pool(examples)[0]
            # An example without an id is identified by its vector.
            names = [v.numpy().tobytes() for v in vectors] if ids is None else ids.tolist()
            for name, vector, label in zip(names, vectors, examples.y[0].tolist(), strict=True):
                found.setdefault(name, (vector, label))
    vectors = torch.stack([vector for vector, _ in found.values()])
    return vectors, torch.tensor([label for _, label in found.values()])


def _queries(
    tasks: TaskDistribution, pool: Pool, split: Split, num_episodes: int
) -> tuple[Tensor, Tensor]:
    """Collects the queries' pooled vectors `[E, M, F]` and labels `[E, M]`.

    One episode at a time: the token vectors of all would take gigabytes.
    """
    pooled, labels = [], []
    for index in range(num_episodes):
        query = tasks.episodes(split, [index]).query
        pooled.append(pool(query))
        labels.append(query.y)
    return torch.cat(pooled), torch.cat(labels)


def _accuracy(inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Scores each query: 1 if right, float64 `[E, M]`."""
    outputs = inputs @ weights[:-1] + weights[-1]
    return (outputs.argmax(dim=-1) == labels).double()
