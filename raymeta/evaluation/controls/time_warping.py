"""Control for sequences of numbers: the nearest neighbour by dynamic time warping (DTW).

DTW aligns two sequences at the least sum of squared distances between aligned steps (Sakoe & Chiba
1978); a band bounds how far aligned steps may lie apart.  With one neighbour it is the usual
baseline of time-series classification, and needs no training.

Shape legend: E episodes, N support examples, M query examples, P pairs, T time steps, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Examples, Split, TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement

BANDS = (0.1, 0.25, 1.0)  # fractions of the longer sequence; 1: no bound
# Cells of all alignment tables of a meta-test: about ten seconds on one core.  Longer sequences are
# averaged over blocks of steps until they fit.
MAX_CELLS = 5e8
CHUNK_CELLS = 4e6  # cells of the tables filled at once; bounds memory


class TimeWarping(Control):
    """A query gets the class of the support example at the least DTW distance."""

    name = "dtw"
    label = "nearest neighbour by DTW"
    problems = frozenset({"classification"})
    inputs = frozenset({"features"})

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the band on meta-validation; scores the meta-test with it."""
        tasks, num_choice = contest.as_recorded, contract.NUM_CHOICE_EPISODES
        block = block_size(tasks, contest.num_episodes)
        found = [dtw_scores(tasks, "val", num_choice, band, block).mean() for band in BANDS]
        # Among equal scores take the widest band: it depends least on how sequences are cut.
        best = max(range(len(BANDS)), key=lambda number: (float(found[number]), BANDS[number]))
        scores = dtw_scores(tasks, "test", contest.num_episodes, BANDS[best], block)
        detail = "whole window" if BANDS[best] == 1 else f"band {BANDS[best]:.0%}"
        if block > 1:
            detail += f", means of {block} steps"
        return Judgement(scores, detail=detail)


def block_size(tasks: TaskDistribution, num_episodes: int) -> int:
    """The number of time steps to average into one to keep the meta-test within `MAX_CELLS`."""
    episode = tasks.episode("test", 0)
    longest = max(episode.support_x.shape[1], episode.query_x.shape[1])
    pairs = num_episodes * len(episode.support_y) * len(episode.query_y)
    return max(1, math.ceil(longest / max(8.0, math.sqrt(MAX_CELLS / pairs))))


def dtw_scores(
    tasks: TaskDistribution, split: Split, num_episodes: int, band: float, block: int = 1
) -> Tensor:
    """Scores the nearest neighbour by DTW on each query: 1 if right, float64 `[E, M]`."""
    first = tasks.episode(split, 0)
    longest = max(first.support_x.shape[1], first.query_x.shape[1]) / block
    cells = len(first.support_y) * len(first.query_y) * longest**2
    size = max(1, int(CHUNK_CELLS / cells))
    parts = []
    for start in range(0, num_episodes, size):
        episodes = tasks.episodes(split, range(start, min(start + size, num_episodes)))
        nearest = _distances(episodes, band, block).argmin(dim=-1)
        labels = episodes.support.y.gather(1, nearest)
        parts.append((labels == episodes.query.y).double())
    return torch.cat(parts)


def _distances(episodes: Episodes, band: float, block: int) -> Tensor:
    """DTW distances between query and support examples, `[E, M, N]`."""
    support_x, support_lengths = block_means(episodes.support, block)
    query_x, query_lengths = block_means(episodes.query, block)
    num_episodes, num_support, support_steps, _ = support_x.shape
    num_query, query_steps = query_x.shape[1:3]
    costs = torch.cdist(query_x.flatten(1, 2), support_x.flatten(1, 2)).square()
    shape = (num_episodes, num_query, query_steps, num_support, support_steps)
    costs = costs.view(shape).transpose(2, 3).flatten(0, 2)  # [P, T, T]
    pairs = (num_episodes, num_query, num_support)
    return dtw(
        costs,
        query_lengths.unsqueeze(2).expand(pairs).flatten(),
        support_lengths.unsqueeze(1).expand(pairs).flatten(),
        band,
    ).view(pairs)


def block_means(examples: Examples, block: int) -> tuple[Tensor, Tensor]:
    """Means over blocks of `block` valid time steps, `[E, N, T / block, D]`, and their number."""
    x, lengths = examples.x.float(), examples.lengths
    num_steps = x.shape[2]
    if lengths is None:
        lengths = torch.full(x.shape[:2], num_steps)
    if block == 1:
        return x, lengths
    valid = (torch.arange(num_steps) < lengths.unsqueeze(-1)).unsqueeze(-1)  # [E, N, T, 1]
    sums, counts = (
        torch.nn.functional.pad(value, (0, 0, 0, -num_steps % block))
        .view(*value.shape[:2], -1, block, value.shape[-1])
        .sum(dim=3)
        for value in (x * valid, valid)
    )
    return sums / counts.clamp(min=1), (lengths + block - 1) // block


def dtw(costs: Tensor, rows: Tensor, columns: Tensor, band: float) -> Tensor:
    """Finds the least sum of costs along a warping path from the first cell to the last.

    Args:
        costs: of aligning step i of one sequence with step j of the other, `[P, T, T']`.
        rows: valid steps of the first sequence of each pair, `[P]`.
        columns: valid steps of the second.
        band: how far apart two aligned steps may lie, as a fraction of their sequences; at least
            one step of the shorter sequence, so that there always is a path.

    Returns:
        `[P]`.
    """
    num_pairs, num_rows, num_columns = costs.shape
    row_step, column_step = (1 / (size - 1).clamp(min=1) for size in (rows, columns))  # [P]
    radius = torch.maximum(row_step, column_step).clamp(min=band) + 1e-6  # for rounding
    found = costs.new_full((num_pairs,), math.inf)
    # Anti-diagonal k of the table of path costs: cells (i, k - i), by i; index 0 is a border.
    border = costs.new_full((num_pairs, num_rows + 1), math.inf)
    last, last_but_one = border, border
    for k in range(num_rows + num_columns - 1):
        i = torch.arange(max(0, k - num_columns + 1), min(num_rows - 1, k) + 1)
        cells = costs[:, i, k - i]
        if k > 0:
            left, above, corner = last[:, i + 1], last[:, i], last_but_one[:, i]
            cells = cells + torch.minimum(torch.minimum(left, above), corner)
        if band < 1:
            apart = (i * row_step.unsqueeze(1) - (k - i) * column_step.unsqueeze(1)).abs()
            cells = cells.masked_fill(apart > radius.unsqueeze(1), math.inf)
        current = border.clone()
        current[:, i + 1] = cells
        ends = rows + columns - 2 == k
        found[ends] = current[ends, rows[ends]]
        last, last_but_one = current, last
    return found
