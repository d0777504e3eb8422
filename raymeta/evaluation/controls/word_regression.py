"""Control for text whose labels mean the same in every task: logistic regression on TF-IDF words.

It learns from all meta-training examples and does not adapt: the first thing to try on a new domain
of a known question.

Shape legend: E episodes, N examples, T tokens, V words, W ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Examples, TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement

STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # inverse of the L2 penalty, as in scikit-learn
NUM_TRAINING_EPISODES = 300
MAX_WORDS = 5000
PADDING = 0
MAX_ITERATIONS = 100  # of L-BFGS
TOLERANCE = 1e-2  # of the gradient of a sum over all examples


class WordRegression(Control):
    """A linear classifier on TF-IDF word counts."""

    name = "words"
    label = "logistic regression on TF-IDF words"
    problems = frozenset({"classification"})
    inputs = frozenset({"tokens"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether a label means the same in meta-training and meta-test."""
        return super().serves(tasks) and tasks.fixed_labels

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the penalty on meta-validation; scores the meta-test with it."""
        tasks = contest.own.tasks
        tokens, labels = _training_examples(tasks)
        words = Words.of(tokens)
        inputs = words.tf_idf(tokens)
        validation = tasks.episodes("val", range(contract.NUM_CHOICE_EPISODES)).query
        best: tuple[float, float, Tensor] | None = None
        for strength in STRENGTHS:
            weights = fit_logistic(inputs, labels, tasks.input_spec.num_outputs, strength)
            value = float(_accuracy(validation, words, weights).mean())
            if best is None or value > best[0]:
                best = value, strength, weights
        assert best is not None, "there are strengths to choose from"
        _, strength, weights = best
        query = tasks.episodes("test", range(contest.num_episodes)).query
        return Judgement(_accuracy(query, words, weights), detail=f"C {strength:g}")


def _training_examples(tasks: TaskDistribution) -> tuple[Tensor, Tensor]:
    """Collects token ids `[N, T]` and labels `[N]` of distinct meta-training examples."""
    joint = tasks.for_joint_training()
    tokens: list[Tensor] = []
    labels: list[int] = []
    seen = set[int | bytes]()
    for index in range(NUM_TRAINING_EPISODES):
        episode = joint.episode("train", index)
        for x, y, ids in (
            (episode.support_x, episode.support_y, episode.support_ids),
            (episode.query_x, episode.query_y, episode.query_ids),
        ):
            # A sentence without an id is identified by its tokens.
            names = [row.tobytes() for row in x] if ids is None else ids.tolist()
            for row, name in enumerate(names):
                if name not in seen:
                    seen.add(name)
                    tokens.append(torch.from_numpy(x[row]))
                    labels.append(int(y[row]))
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PADDING)
    return padded, torch.tensor(labels)


@dataclass(frozen=True)
class Words:
    """The most frequent words of the training examples: their token ids and rarities, `[V]`."""

    ids: Tensor
    rarities: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Words:
        """Chooses the words of training examples `[N, T]`.

        The rarity is the inverse document frequency, smoothed as in scikit-learn.
        """
        once = np.concatenate([np.unique(row[row != PADDING]) for row in tokens.numpy()])
        ids, counts = map(torch.from_numpy, np.unique(once, return_counts=True))
        kept = counts.argsort(descending=True, stable=True)[:MAX_WORDS].sort().values
        rarities = ((1 + len(tokens)) / (1 + counts[kept])).log() + 1
        return cls(ids[kept], rarities)

    def tf_idf(self, tokens: Tensor) -> Tensor:
        """The weighted word counts of examples `[N, T]`, each of length 1, float32 `[N, V]`."""
        found = torch.searchsorted(self.ids, tokens).clamp(max=len(self.ids) - 1)
        is_known = (self.ids[found] == tokens).float()
        counts = torch.zeros(len(tokens), len(self.ids)).scatter_add_(1, found, is_known)
        return torch.nn.functional.normalize(counts * self.rarities, dim=-1)


def fit_logistic(inputs: Tensor, labels: Tensor, num_classes: int, strength: float) -> Tensor:
    """The weights `[V + 1, W]` (the last row: biases) that minimise log-loss + |weights|² / 2C.

    The sum of log-losses over the examples, as in scikit-learn; biases are not penalised.
    """
    weights = torch.zeros(inputs.shape[1] + 1, num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs = inputs @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")
        loss = loss + weights[:-1].square().sum() / (2 * strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _accuracy(query: Examples, words: Words, weights: Tensor) -> Tensor:
    """Scores each query: 1 if right, float64 `[E, M]`."""
    scores = []
    # One episode at a time: the counts of all would be E * M * V numbers.
    for tokens, labels in zip(query.x, query.y, strict=True):
        outputs = words.tf_idf(tokens) @ weights[:-1] + weights[-1]
        scores.append((outputs.argmax(dim=-1) == labels).double())
    return torch.stack(scores)
