"""Problems: their losses, scores and directions."""

from __future__ import annotations

import math
import pickle
import statistics
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from raymeta.episodes import InputSpec
from raymeta.problem import MEDIAN, PROBLEMS, Problem, pinball, posed, quantile_forecast

every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def answers(problem: Problem) -> tuple[Tensor, Tensor]:
    """Makes outputs `[3, 4, 6]` and targets of three episodes."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    if problem.name != "classification":
        size = 6 // (len(problem.levels) or 1)
        return outputs, torch.randn(3, 4, size, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(6, (3, 4), generator=generator)


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
        right = targets.repeat_interleave(len(problem.levels) or 1, dim=2)
    else:
        right = torch.nn.functional.one_hot(targets, 6).double()
    good, bad = (problem.sign * problem.score(x, targets) for x in (right, -10 * right))
    assert (good > bad).all()
    assert problem.mode == ("max" if problem.sign > 0 else "min")
    assert problem.higher_is_better == (problem.sign > 0)


def gaussian_crps(value: float) -> float:
    """The CRPS of a standard normal forecast (Gneiting & Raftery 2007, equation 21)."""
    normal = statistics.NormalDist()
    return value * (2 * normal.cdf(value) - 1) + 2 * normal.pdf(value) - 1 / math.sqrt(math.pi)


@pytest.mark.parametrize("value", [-2.0, 0.3, 1.1])
def test_the_loss_of_many_quantiles_is_the_crps_of_their_distribution(value: float) -> None:
    levels = tuple((2 * place + 1) / 1998 for place in range(999))
    outputs = torch.tensor([statistics.NormalDist().inv_cdf(level) for level in levels])
    targets = torch.full((1, 1, 1), value, dtype=torch.float64)
    problem = quantile_forecast(levels)
    found = problem.loss(outputs.double().view(1, 1, -1), targets)
    assert found.item() == pytest.approx(gaussian_crps(value), rel=2e-3)
    assert problem.score(outputs.double().view(1, 1, -1), targets).item() == found.item()


def test_the_quantiles_of_a_sample_have_the_least_loss() -> None:
    """The definition of Koenker & Bassett: the minimiser at each level is the sample's quantile."""
    sample = torch.arange(1.0, 12.0, dtype=torch.float64)
    levels = (0.2, MEDIAN, 0.9)

    def loss(place: int, value: float) -> float:
        quantiles = torch.tensor([3.0, 6.0, 10.0], dtype=torch.float64)  # of 11 numbers
        quantiles[place] = value
        return pinball(quantiles.expand(11, 3), sample, levels).mean().item()

    for place, own in enumerate((3.0, 6.0, 10.0)):
        losses = {value: loss(place, value) for value in sample.tolist()}
        assert min(losses, key=losses.__getitem__) == own


def test_a_point_forecast_has_its_absolute_error_as_crps() -> None:
    outputs, targets = answers(PROBLEMS["forecast"])
    problem = quantile_forecast((0.05, 0.25, MEDIAN, 0.75, 0.95))
    found = problem.score(outputs.repeat_interleave(5, dim=2), targets)
    torch.testing.assert_close(found, PROBLEMS["forecast"].score(outputs, targets))


def test_quantiles_never_cross_and_their_median_is_the_point_forecast() -> None:
    problem = PROBLEMS["quantiles"]
    outputs, targets = answers(problem)
    quantiles = problem.quantiles(outputs)
    assert quantiles.shape == (3, 4, 2, 3)
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.equal(quantiles.flatten(-2).sort(dim=-1).values, outputs.sort(dim=-1).values)
    assert torch.equal(problem.point(outputs), quantiles[..., 1])
    assert (problem.score(outputs, targets) <= crossing_loss(outputs, targets)).all()
    together = problem.mean_outputs(torch.stack([outputs, outputs.flip(-1)]))
    assert (problem.quantiles(together) == together.view(3, 4, 2, 3)).all()
    expected = (quantiles + problem.quantiles(outputs.flip(-1))) / 2
    torch.testing.assert_close(together.view(3, 4, 2, 3), expected)
    plain = PROBLEMS["forecast"]
    assert plain.point(outputs) is outputs


def crossing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss `[E]` of the quantiles as they come."""
    return pinball(outputs.view(3, 4, 2, 3), targets, (0.1, 0.5, 0.9)).mean(dim=(1, 2))


def test_levels_are_those_of_the_experiment() -> None:
    assert posed("quantiles", (0.2, 0.5)).levels == (0.2, 0.5)
    assert posed("quantiles", (0.2, 0.5)) is posed("quantiles", (0.2, 0.5))
    assert posed("forecast") is PROBLEMS["forecast"]
    again = pickle.loads(pickle.dumps(posed("quantiles", (0.2, 0.5))))  # noqa: S301  (our own)
    outputs, targets = answers(PROBLEMS["forecast"])
    wanted = posed("quantiles", (0.2, 0.5)).score(outputs, targets[..., :3])
    assert torch.equal(again.score(outputs, targets[..., :3]), wanted)


def test_an_input_spec_of_an_unknown_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="forecast, quantiles, but got 'ranking'"):
        InputSpec("ranking", 2, num_features=1)


def test_problems_are_known_without_torch() -> None:
    script = "import sys, raymeta.problem; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
