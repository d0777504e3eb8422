"""Describes an acquisition function without importing BoTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


@dataclass(frozen=True)
class Acquisition:
    """An acquisition function: which points the model proposes.

    Attributes:
        name: its name in experiment files and among a searcher's settings.
        is_multi_objective: whether it optimises several objectives, or one.
        load: imports and returns its class, for which BoTorch or Ax has an input constructor.
        takes_failures: whether its input constructor accepts trials without the objective, so that
            the model can learn from failed trials.
        needs_seconds: whether its input constructor takes `log_seconds`, the model of trial
            durations.
    """

    name: str
    is_multi_objective: bool
    load: Callable[[], type[AcquisitionFunction]]
    takes_failures: bool = True
    needs_seconds: bool = False
