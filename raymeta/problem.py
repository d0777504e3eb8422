"""Problems: the loss, the score, the metrics' names and their direction, in one place.

Shape legend: E episodes, N examples, O outputs, H steps of a forecast, Q levels of quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    Measure = Callable[[Tensor, Tensor], Tensor]  # outputs [E, N, O], targets -> [E] or [E, N]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The kind of answers that an episode asks for, and how they are scored.

    `metric` names the score in tables, `val_metric` its mean over validation episodes in results.
    Adaptation and meta-training minimise `loss(outputs, targets)`; `score(outputs, targets)` judges
    episodes; both are `[E]`.  `query_scores` are `[E, N]`, one for
    every example; their mean is the score.  Outputs are `[E, N, O]`; targets are
    int64 `[E, N]` (classification) or float `[E, N, O]` (regression).  An episode with an output
    that is not finite has NaN for all its scores.  `mean_outputs` averages the answers `[R, E, N,
    O]` of R networks: class probabilities, or the outputs themselves.

    `is_forecast` says that it asks what follows the past of a series.  Of a problem with `levels`
    the outputs of each step are its quantiles at these levels, the targets `[E, N, H]` have one
    value a step: O = H Q, the levels of a step one after the other.  Outputs may cross; what they
    stand for is `quantiles`.
    """

    name: str
    metric: str
    val_metric: str
    higher_is_better: bool
    loss: Measure
    score: Measure
    query_scores: Measure
    mean_outputs: Callable[[Tensor], Tensor]
    is_forecast: bool = False
    levels: tuple[float, ...] = ()

    def quantiles(self, outputs: Tensor) -> Tensor:
        """The quantiles `[..., H, Q]` that outputs `[..., H Q]` stand for, in ascending order."""
        return _ascending(outputs, len(self.levels))

    def point(self, outputs: Tensor) -> Tensor:
        """The single answer `[..., H]` of outputs: their medians, where they are quantiles."""
        if not self.levels:
            return outputs
        return self.quantiles(outputs)[..., self.levels.index(MEDIAN)]

    @property
    def intervals(self) -> tuple[tuple[int, int], ...]:
        """The places of every two levels τ and 1 - τ among the levels, the widest interval first.

        The interval between their quantiles should hold the share 1 - 2 τ of the values.
        """
        return tuple(
            (low, high)
            for low, first in enumerate(self.levels)
            for high, second in enumerate(self.levels)
            if low < high and math.isclose(first + second, 1.0)
        )

    @property
    def mode(self) -> Literal["max", "min"]:
        """The direction of the score, as Ray Tune names it."""
        return "max" if self.higher_is_better else "min"

    @property
    def sign(self) -> int:
        """`sign * score` is higher for the better of two scores."""
        return 1 if self.higher_is_better else -1


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of each episode.

    An example of NO_CLASS adds nothing to the loss but counts in the mean, so that every example
    has the same weight when shards are added up.
    """
    import torch.nn.functional as F  # noqa: PLC0415  (slow)

    loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return loss.view(targets.shape).mean(dim=1)


def _are_right(outputs: Tensor, targets: Tensor) -> Tensor:
    right = (outputs.argmax(dim=-1) == targets).to(outputs.dtype)
    return _where_finite(outputs, right)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return _are_right(outputs, targets).mean(dim=1)


def _mean_probabilities(outputs: Tensor) -> Tensor:
    return outputs.double().softmax(dim=-1).mean(dim=0)


def _mean_values(outputs: Tensor) -> Tensor:
    return outputs.double().mean(dim=0)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each episode over examples and outputs."""
    return (outputs - targets).square().mean(dim=(1, 2))


def _squared_error_score(outputs: Tensor, targets: Tensor) -> Tensor:
    return _where_finite(outputs, _squared_error(outputs, targets))


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return _where_finite(outputs, (outputs - targets).square().mean(dim=2))


def _huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of Huber's loss with its bend at 1, against outliers such as strikes."""
    import torch.nn.functional as F  # noqa: PLC0415  (slow)

    return F.huber_loss(outputs, targets, reduction="none").mean(dim=(1, 2))


def _absolute_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return _where_finite(outputs, (outputs - targets).abs().mean(dim=2))


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _absolute_errors(outputs, targets).mean(dim=1)


def _ascending(outputs: Tensor, num_levels: int) -> Tensor:
    """Sorts the quantiles of each step: `[..., H Q]` to `[..., H, Q]`.

    Sorting never makes the pinball loss larger (Chernozhukov, Fernández-Val and Galichon 2010,
    "Quantile and Probability Curves Without Crossing", proposition 4).
    """
    return outputs.reshape(*outputs.shape[:-1], -1, num_levels).sort(dim=-1).values


def pinball(quantiles: Tensor, targets: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Twice the mean pinball loss over the levels, `[...]`: about the CRPS of a forecast.

    The pinball loss at level τ is τ (y - q) for y ≥ q and (τ - 1) (y - q) below (Koenker & Bassett
    1978, "Regression Quantiles"), and the CRPS is twice its integral over τ from 0 to 1 (Gneiting
    and Raftery 2007, "Strictly Proper Scoring Rules", section 4.2), which a mean over few levels
    approximates.  Where all quantiles are one number and the levels lie evenly about one half, it
    is the absolute error.

    Args:
        quantiles: `[..., Q]`.
        targets: `[...]`.
        levels: Q of them.
    """
    missed = (targets.unsqueeze(-1) - quantiles).unbind(-1)
    # Levels are numbers, not a tensor: a CUDA graph captures no copy to the GPU.
    losses = [
        ((level - 1) * own).maximum(level * own) for level, own in zip(levels, missed, strict=True)
    ]
    return sum(losses[1:], losses[0]) * (2 / len(levels))


def _pinball_losses(outputs: Tensor, targets: Tensor, *, levels: tuple[float, ...]) -> Tensor:
    """The mean over the steps for every example, `[E, N]`."""
    return pinball(_ascending(outputs, len(levels)), targets, levels).mean(dim=2)


def _pinball_loss(outputs: Tensor, targets: Tensor, *, levels: tuple[float, ...]) -> Tensor:
    return _pinball_losses(outputs, targets, levels=levels).mean(dim=1)


def _pinball_scores(outputs: Tensor, targets: Tensor, *, levels: tuple[float, ...]) -> Tensor:
    return _where_finite(outputs, _pinball_losses(outputs, targets, levels=levels))


def _pinball_score(outputs: Tensor, targets: Tensor, *, levels: tuple[float, ...]) -> Tensor:
    return _pinball_scores(outputs, targets, levels=levels).mean(dim=1)


def _mean_quantiles(outputs: Tensor, *, levels: tuple[float, ...]) -> Tensor:
    """Averages the quantiles at each level, not the probabilities (Lichtendahl et al. 2013)."""
    return _ascending(outputs.double(), len(levels)).mean(dim=0).flatten(-2)


def _where_finite(outputs: Tensor, scores: Tensor) -> Tensor:
    """NaN for episodes with an output that is not finite: argmax would score NaN as class 0."""
    broken = ~outputs.isfinite().flatten(1).all(dim=1)
    return scores.masked_fill(broken.view(-1, *[1] * (scores.dim() - 1)), float("nan"))


MEDIAN = 0.5  # a level that every forecast of quantiles has: it is the point forecast


@cache
def quantile_forecast(levels: tuple[float, ...]) -> Problem:
    """Forecasts of the quantiles at these ascending levels, `MEDIAN` among them."""
    return Problem(
        name="quantiles",
        metric="scaled CRPS",
        val_metric="val_crps",
        higher_is_better=False,
        loss=partial(_pinball_loss, levels=levels),
        score=partial(_pinball_score, levels=levels),
        query_scores=partial(_pinball_scores, levels=levels),
        mean_outputs=partial(_mean_quantiles, levels=levels),
        is_forecast=True,
        levels=levels,
    )


PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem(
            name="classification",
            metric="accuracy",
            val_metric="val_accuracy",
            higher_is_better=True,
            loss=_cross_entropy,
            score=_accuracy,
            query_scores=_are_right,
            mean_outputs=_mean_probabilities,
        ),
        Problem(
            name="regression",
            metric="squared error",
            val_metric="val_loss",
            higher_is_better=False,
            loss=_squared_error,
            score=_squared_error_score,
            query_scores=_squared_errors,
            mean_outputs=_mean_values,
        ),
        # Targets are in units of the seasonal naive forecast's mean absolute error in the past, so
        # that the mean absolute error is the MASE (Hyndman & Koehler 2006, section 3.3).
        Problem(
            name="forecast",
            metric="MASE",
            val_metric="val_mase",
            higher_is_better=False,
            loss=_huber,
            score=_absolute_error,
            query_scores=_absolute_errors,
            mean_outputs=_mean_values,
            is_forecast=True,
        ),
        # In the same units, so that the score of a point is its MASE.  Files name the levels.
        quantile_forecast((0.1, MEDIAN, 0.9)),
    )
}


def posed(name: str, levels: tuple[float, ...] = ()) -> Problem:
    """The problem of this name in `PROBLEMS`, with levels of its own where it has them."""
    return quantile_forecast(levels) if levels else PROBLEMS[name]
