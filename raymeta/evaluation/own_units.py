"""Measures of forecasts and numbers in the units of the data, beside the score.

Shape legend: R trainings, E episodes, M queries, H horizon, Q levels of quantiles, O outputs: H, or
H Q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymeta.episodes import Split, TaskDistribution
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.ensemble import query_answers
from raymeta.evaluation.scores import Score
from raymeta.problem import Problem, pinball
from raymeta.uncertainty import Units


def forecasts_of(
    networks: Sequence[Network], num_episodes: int, num_steps: int, split: Split = "test"
) -> Tensor:
    """Computes the forecasts for a split's first episodes, float64 `[R, E, M, O]`."""
    found = [
        torch.stack([steps[-1] for steps in answers]).double().cpu()
        for _, answers in query_answers(networks, num_episodes, num_steps, split)
    ]
    return torch.cat(found, dim=1)


def in_own_units(
    tasks: TaskDistribution, problem: Problem, outputs: Tensor, units: Units
) -> dict[str, Score]:
    """Computes the measures of answers `[R, E, M, O]` to the first meta-test episodes, by name.

    Of numbers they are the absolute and the squared error. Of forecasts, sMAPE is in percent, 0
    where forecast and value are both 0; the squared error is in the square of the series' unit.
    Quantiles also have the MASE of their medians, the CRPS in the series' unit (see
    `raymeta.problem.pinball`), and of every two levels τ and 1 - τ the share of values that are
    within these two quantiles, in percent; it should be 100 (1 - 2 τ).
    """
    num_episodes = outputs.shape[1]
    if tasks.target_scale is not None:
        return _of_numbers(tasks, outputs, units)
    past = tasks.query_past("test", num_episodes)
    base, unit = torch.from_numpy(past.base), torch.from_numpy(past.unit)
    targets = tasks.episodes("test", range(num_episodes)).query.y.double()
    values, forecasts = base + unit * targets, base + unit * problem.point(outputs)
    measures = {
        "sMAPE in %": smape(forecasts, values),
        "squared error": (forecasts - values).square().mean(dim=-1),
    }
    if problem.levels:
        quantiles = problem.quantiles(outputs)
        crps = unit * pinball(quantiles, targets, problem.levels)
        mase = (problem.point(outputs) - targets).abs().mean(dim=-1)
        measures = {"CRPS": crps.mean(dim=-1), "MASE": mase, **measures}
        for low, high in problem.intervals:
            share = f"{100 * (problem.levels[high] - problem.levels[low]):.6g}"
            is_in = (quantiles[..., low] <= targets) & (targets <= quantiles[..., high])
            measures[f"% in the {share} % interval"] = 100 * is_in.double().mean(dim=-1)
    return {
        name: Score.over(found if len(found) > 1 else found[0], units)
        for name, found in measures.items()
    }


def _of_numbers(tasks: TaskDistribution, outputs: Tensor, units: Units) -> dict[str, Score]:
    scale = tasks.target_scale
    assert scale is not None, "the targets are numbers"
    targets = tasks.episodes("test", range(outputs.shape[1])).query.y.double()
    errors = (scale.deviation * (outputs.double() - targets)).mean(dim=-1)
    measures = {f"absolute error, {scale.name}": errors.abs(), "squared error": errors.square()}
    return {
        name: Score.over(found if len(found) > 1 else found[0], units)
        for name, found in measures.items()
    }


def smape(forecasts: Tensor, values: Tensor) -> Tensor:
    """200 |f - y| / (|f| + |y|), the mean over H (Makridakis et al. 2000, the M3 competition)."""
    size = forecasts.abs() + values.abs()
    errors = (forecasts - values).abs()
    return (200 * errors / size.masked_fill(size == 0, 1.0)).mean(dim=-1)
