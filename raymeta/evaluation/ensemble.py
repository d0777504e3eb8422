"""An ensemble of several trainings of one configuration.

Their class probabilities, or their outputs for regression, are averaged (Lakshminarayanan et al.
2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", section 2.4).

Shape legend: R trainings, E episodes, M queries, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Split
from raymeta.evaluation.controls.contract import Network
from raymeta.training.curves import EVALUATION_CHUNK


def ensemble_curves(networks: Sequence[Network], num_episodes: int, num_steps: int) -> Tensor:
    """Scores the R networks' mean answers to the queries of the first meta-test episodes.

    Returns:
        Float64 `[E, M, S + 1]`, after 0 … S adaptation steps of each network.
    """
    problem = networks[0].recipe.problem
    rows = []
    for episodes, answers in query_answers(networks, num_episodes, num_steps):
        scores = [
            problem.query_scores(problem.mean_outputs(torch.stack(outputs)), episodes.query.y)
            for outputs in zip(*answers, strict=True)
        ]
        rows.append(torch.stack(scores, dim=2).double().cpu())
    return torch.cat(rows)


def query_answers(
    networks: Sequence[Network], num_episodes: int, num_steps: int, split: Split = "test"
) -> Iterator[tuple[Episodes, list[list[Tensor]]]]:
    """Iterates over a split's first episodes in batches, with each network's answers.

    Yields:
        The episodes, and of every network `[E, M, O]` after 0 … S adaptation steps.
    """
    first = networks[0]
    reference = next(iter(first.params.values()))
    problem = first.recipe.problem
    for start in range(0, num_episodes, EVALUATION_CHUNK):
        indices = range(start, min(start + EVALUATION_CHUNK, num_episodes))
        episodes = first.tasks.episodes(split, indices).to(reference.device, reference.dtype)
        answers = [
            list(
                network.recipe.learner.query_outputs(
                    network.recipe.spec,
                    problem,
                    {name: value.detach() for name, value in network.params.items()},
                    episodes.support,
                    episodes.query,
                    num_steps,
                )
            )
            for network in networks
        ]
        yield episodes, answers
