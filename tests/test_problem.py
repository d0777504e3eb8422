"""Problems: their losses, scores and directions."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from raymeta.episodes import InputSpec
from raymeta.problem import PROBLEMS, Problem

every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def answers(problem: Problem) -> tuple[Tensor, Tensor]:
    """Makes outputs `[3, 4, 2]` and targets of three episodes."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    if problem.name != "classification":
        return outputs, torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(2, (3, 4), generator=generator)


@every_problem
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_episode_with_an_output_that_is_not_finite_has_no_score(
    problem: Problem, bad: float
) -> None:
    outputs, targets = answers(problem)
    whole = problem.score(outputs, targets)
    outputs[1, 2, 0] = bad
    scores = problem.score(outputs, targets)
    assert scores.isnan().tolist() == [False, True, False]
    assert torch.equal(scores[[0, 2]], whole[[0, 2]])
    of_queries = problem.query_scores(outputs, targets)
    assert of_queries.isnan().all(dim=1).tolist() == [False, True, False]
    assert not of_queries[[0, 2]].isnan().any()


@every_problem
def test_the_score_is_the_mean_of_its_queries(problem: Problem) -> None:
    outputs, targets = answers(problem)
    of_queries = problem.query_scores(outputs, targets)
    assert of_queries.shape == (3, 4)
    torch.testing.assert_close(of_queries.mean(dim=1), problem.score(outputs, targets))
    alone = problem.query_scores(outputs[:, 1:2], targets[:, 1:2])
    assert torch.equal(of_queries[:, 1:2], alone)


@every_problem
def test_the_better_of_two_scores_is_higher_after_multiplication_by_the_sign(
    problem: Problem,
) -> None:
    _, targets = answers(problem)
    if problem.name != "classification":
        right = targets.clone()
    else:
        right = torch.nn.functional.one_hot(targets, 2).double()
    good, bad = (problem.sign * problem.score(x, targets) for x in (right, -10 * right))
    assert (good > bad).all()
    assert problem.mode == ("max" if problem.sign > 0 else "min")
    assert problem.higher_is_better == (problem.sign > 0)


def test_an_input_spec_of_an_unknown_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="classification, regression, forecast, but got 'ranking'"):
        InputSpec("ranking", 2, num_features=1)


def test_problems_are_known_without_torch() -> None:
    script = "import sys, raymeta.problem; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
