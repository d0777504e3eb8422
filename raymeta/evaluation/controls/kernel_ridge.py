"""Control for regression of sequences of numbers: kernel ridge regression on the support set alone.

Only its two settings come from other tasks.  A kernel ridge regression is the mean of a
Gaussian process with noise (Rasmussen & Williams 2006, eq. 2.25), the usual choice for few points.

Shape legend: E episodes, N support examples, M query examples, O outputs, F values.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from raymeta.episodes import Episodes, TaskDistribution, joined
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement

WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # of the kernel, as multiples of the median distance
PENALTIES = (1e-6, 1e-4, 1e-2, 1.0)  # on the norm of the function
NUM_MEDIAN_EPISODES = 20
CHUNK = 64  # episodes at once; bounds memory


class KernelRidge(Control):
    """A Gaussian kernel between whole sequences, step by step."""

    name = "kernel_ridge"
    label = "kernel ridge regression on the support"
    problems = frozenset({"regression"})
    inputs = frozenset({"features"})

    def judge(self, contest: Contest) -> Judgement:
        """Chooses width and penalty on meta-validation; scores the meta-test with them."""
        own = contest.own
        median = _median_distance(own.tasks)
        validation = own.tasks.episodes("val", range(contract.NUM_CHOICE_EPISODES))
        score, sign = own.recipe.problem.query_scores, own.recipe.problem.sign

        def value(setting: tuple[float, float]) -> float:
            outputs = _answers(validation, median * setting[0], setting[1])
            return sign * float(score(outputs, validation.query.y.double()).mean())

        width, penalty = max(itertools.product(WIDTHS, PENALTIES), key=value)
        scores, answers = [], []
        for start in range(0, contest.num_episodes, CHUNK):
            indices = range(start, min(start + CHUNK, contest.num_episodes))
            episodes = own.tasks.episodes("test", indices)
            outputs = _answers(episodes, median * width, penalty)
            scores.append(score(outputs, episodes.query.y.double()))
            answers.append(outputs)
        return Judgement(
            torch.cat(scores),
            outputs=torch.cat(answers),
            detail=f"width {width:g}, penalty {penalty:g}",
        )


def ridge_answers(gram: Tensor, cross: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The answers `[E, M, O]` of kernel ridge regression around the targets' mean.

    Args:
        gram: kernel between support examples, float64 `[E, N, N]`.
        cross: kernel between query and support examples, `[E, M, N]`.
        targets: of the support examples, `[E, N, O]`.
        penalty: the weight λ > 0 of the function's squared norm beside the sum of squared errors.
    """
    mean = targets.mean(dim=1, keepdim=True)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    return mean + cross @ torch.linalg.solve(gram + penalty * identity, targets - mean)


def _answers(episodes: Episodes, width: float, penalty: float) -> Tensor:
    support, query = _values(episodes)
    gram, cross = (
        (-0.5 * (torch.cdist(values, support) / width).square()).exp()
        for values in (support, query)
    )
    return ridge_answers(gram, cross, episodes.support.y.double(), penalty)


def _values(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Flattens support `[E, N, F]` and query examples `[E, M, F]`, zero past their ends."""
    both = joined(episodes.support, episodes.query)
    x = both.x.double()
    if both.lengths is not None:
        past = torch.arange(x.shape[2]) >= both.lengths.unsqueeze(-1)
        x = x.masked_fill(past.unsqueeze(-1), 0.0)
    values, num_support = x.flatten(2), episodes.support.y.shape[1]
    return values[:, :num_support], values[:, num_support:]


def _median_distance(tasks: TaskDistribution) -> float:
    """The median distance between examples of one meta-training episode."""
    support, query = _values(tasks.episodes("train", range(NUM_MEDIAN_EPISODES)))
    return float(torch.cdist(query, support).median()) or 1.0  # equal inputs: any width serves
