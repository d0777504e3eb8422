"""Adaptation curves: scores after every adaptation step, over all ranks of a group."""

from __future__ import annotations

import torch
from torch import Tensor

from raymeta.episodes import Split, TaskDistribution
from raymeta.nn.networks import Params
from raymeta.training.distributed import Group
from raymeta.training.recipe import Recipe

EVALUATION_CHUNK = 64  # episodes adapted at once; bounds memory, never changes a score


def adaptation_curves(
    tasks: TaskDistribution,
    recipe: Recipe,
    meta_params: Params,
    split: Split,
    *,
    num_episodes: int,
    num_steps: int,
    group: Group | None = None,
) -> Tensor:
    """Scores every query of the first episodes of `split` after 0 … S steps.

    Returns:
        Float64 `[E, M, S + 1]`, M queries an episode; the same on every rank, whatever their
        number.
    """
    group = group or Group()
    reference = next(iter(meta_params.values()))
    mine = group.shard(range(num_episodes))
    num_queries = len(tasks.episode(split, 0).query_y)
    empty = torch.empty(0, num_queries, num_steps + 1, dtype=torch.float64)
    rows = [empty.to(reference.device)]
    for start in range(0, len(mine), EVALUATION_CHUNK):
        chunk = mine[start : start + EVALUATION_CHUNK]
        episodes = tasks.episodes(split, chunk).to(reference.device, reference.dtype)
        scores = recipe.learner.adaptation_scores(
            recipe.spec, recipe.problem, meta_params, episodes, num_steps
        )
        rows.append(scores.double())
    return group.gather_rows(torch.cat(rows), num_episodes).cpu()
