"""Problems: the loss, the score, the metrics' names and their direction, in one place.

Shape legend: E episodes, N examples, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    name: str
    metric: str
    val_metric: str
    higher_is_better: bool
    loss: Measure
    score: Measure
    query_scores: Measure
    mean_outputs: Callable[[Tensor], Tensor]

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


def _where_finite(outputs: Tensor, scores: Tensor) -> Tensor:
    """NaN for episodes with an output that is not finite: argmax would score NaN as class 0."""
    broken = ~outputs.isfinite().flatten(1).all(dim=1)
    return scores.masked_fill(broken.view(-1, *[1] * (scores.dim() - 1)), float("nan"))


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
        ),
    )
}
