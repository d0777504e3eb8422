"""Control for numbers: ridge regression on a few summary features of each sequence.

It learns from the support set alone, but for its penalty: what an engineer tries first.

Shape legend: E episodes, N support examples, M query examples, T time steps, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymeta.episodes import Examples, Split, TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.evaluation.controls.kernel_ridge import ridge_answers

PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)  # on the weights of standardised features


class SummaryRidge(Control):
    """Mean, deviation, last value and slope of every feature; a linear function of them."""

    name = "summary_ridge"
    label = "ridge regression on summary features"
    problems = frozenset({"regression"})
    inputs = frozenset({"features"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether examples are sequences; single points have nothing to summarise."""
        return super().serves(tasks) and tasks.target_scale is not None

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the penalty on meta-validation; scores the meta-test with it."""
        tasks, problem = contest.as_recorded, contest.own.recipe.problem

        def answered(split: Split, num_episodes: int, penalty: float) -> tuple[Tensor, Tensor]:
            """Answers, and the score of each."""
            episodes = tasks.episodes(split, range(num_episodes))
            outputs = answers(episodes.support, episodes.query, penalty)
            return outputs, problem.query_scores(outputs, episodes.query.y.double())

        penalty = max(
            PENALTIES,
            key=lambda value: (
                problem.sign * float(answered("val", contract.NUM_CHOICE_EPISODES, value)[1].mean())
            ),
        )
        outputs, scores = answered("test", contest.num_episodes, penalty)
        return Judgement(scores, detail=f"penalty {penalty:g}", outputs=outputs)


def answers(support: Examples, query: Examples, penalty: float) -> Tensor:
    """The answers `[E, M, O]` of ridge regression on the summaries of the support set."""
    known, asked = summaries(support), summaries(query)
    mean, deviation = known.mean(dim=1, keepdim=True), known.std(dim=1, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    gram, cross = known @ known.transpose(1, 2), asked @ known.transpose(1, 2)
    return ridge_answers(gram, cross, support.y.double(), penalty)


def summaries(examples: Examples) -> Tensor:
    """Mean, deviation, last value and slope of each feature over valid steps, `[E, N, 4 * D]`."""
    x = examples.x.double()
    steps = torch.arange(x.shape[2], dtype=x.dtype)
    lengths = examples.lengths
    if lengths is None:
        lengths = torch.full(x.shape[:2], x.shape[2])
    valid = (steps < lengths.unsqueeze(-1)).to(x.dtype).unsqueeze(-1)  # [E, N, T, 1]
    count = lengths.to(x.dtype).unsqueeze(-1)
    mean = (x * valid).sum(dim=2) / count
    centred = (x - mean.unsqueeze(2)) * valid
    deviation = (centred.square().sum(dim=2) / count).sqrt()
    last = x.gather(2, (lengths - 1)[..., None, None].expand(*x.shape[:2], 1, x.shape[3]))
    clock = (steps - (lengths.unsqueeze(-1) - 1) / 2).unsqueeze(-1) * valid
    spread = clock.square().sum(dim=2).clamp(min=1.0)  # of one step: no slope
    slope = (clock * centred).sum(dim=2) / spread
    return torch.cat([mean, deviation, last.squeeze(2), slope], dim=-1)
