"""Measures of forecasts and numbers in the units of the data, beside the score.

Shape legend: R trainings, E episodes, M queries, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymeta.episodes import Split, TaskDistribution
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.ensemble import query_answers
from raymeta.evaluation.scores import Score
from raymeta.uncertainty import Units


def forecasts_of(
    networks: Sequence[Network], num_episodes: int, num_steps: int, split: Split = "test"
) -> Tensor:
    """Computes the forecasts for a split's first episodes, float64 `[R, E, M, H]`."""
    found = [
        torch.stack([steps[-1] for steps in answers]).double().cpu()
        for _, answers in query_answers(networks, num_episodes, num_steps, split)
    ]
    return torch.cat(found, dim=1)


def in_own_units(tasks: TaskDistribution, outputs: Tensor, units: Units) -> dict[str, Score]:
    """Computes the measures of forecasts `[R, E, M, H]` for the first meta-test episodes, by name.

    Of numbers they are the absolute and the squared error. Of forecasts, sMAPE is in percent, 0
    where forecast and value are both 0; the squared error is in the square of the series' unit.
    """
    num_episodes = outputs.shape[1]
    if tasks.target_scale is not None:
        return _of_numbers(tasks, outputs, units)
    past = tasks.query_past("test", num_episodes)
    base, unit = torch.from_numpy(past.base), torch.from_numpy(past.unit)
    targets = tasks.episodes("test", range(num_episodes)).query.y.double()
    values, forecasts = base + unit * targets, base + unit * outputs
    measures = {
        "sMAPE in %": smape(forecasts, values),
        "squared error": (forecasts - values).square().mean(dim=-1),
    }
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
