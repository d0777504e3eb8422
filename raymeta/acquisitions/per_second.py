"""Expected improvement per second (Snoek, Larochelle and Adams 2012, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from botorch.acquisition.input_constructors import (
    acqf_input_constructor,
    get_acqf_input_constructor,
)
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

LogSeconds = Callable[[Tensor], Tensor]


class LogNEIPerSecond(qLogNoisyExpectedImprovement):
    """Log noisy expected improvement minus the log of a trial's duration in seconds.

    Args:
        log_seconds: for points of shape (..., parameters), as the model sees them, the expected
            logarithms of their seconds, shape (...).
        arguments: of `qLogNoisyExpectedImprovement`.
    """

    def __init__(self, *, log_seconds: LogSeconds, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._log_seconds = log_seconds

    @t_batch_mode_transform()  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Evaluates `b` sets of `q` points, whose trials run one after another: shape (b)."""
        improvement: Tensor = super().forward(X)
        return improvement - torch.logsumexp(self._log_seconds(X), dim=-1)


@acqf_input_constructor(LogNEIPerSecond)
def _inputs(
    model: Model,
    training_data: Any,
    log_seconds: LogSeconds,
    objective: Any = None,
    posterior_transform: Any = None,
    X_pending: Tensor | None = None,  # noqa: N803
    X_baseline: Tensor | None = None,  # noqa: N803
    constraints: Any = None,
) -> dict[str, Any]:
    """Builds the constructor's arguments from Ax's; BoTorch drops arguments not named here."""
    inputs = get_acqf_input_constructor(qLogNoisyExpectedImprovement)(
        model=model,
        training_data=training_data,
        objective=objective,
        posterior_transform=posterior_transform,
        X_pending=X_pending,
        X_baseline=X_baseline,
        constraints=constraints,
    )
    return {**inputs, "log_seconds": log_seconds}
