"""What the search knows of an acquisition function before it imports BoTorch."""

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
        is_multi_objective: it is for several objectives; otherwise for one.
        load: imports and returns its class, which BoTorch or Ax has an input constructor for.
        takes_failures: its input constructor takes trials that lack the objective, so that the
            model may learn from failed ones.
        needs_seconds: its input constructor takes `log_seconds`, how long trials take.
    """

    name: str
    is_multi_objective: bool
    load: Callable[[], type[AcquisitionFunction]]
    takes_failures: bool = True
    needs_seconds: bool = False
