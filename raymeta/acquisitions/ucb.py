"""The upper confidence bound (Srinivas et al. 2010)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from botorch.acquisition.monte_carlo import qUpperConfidenceBound  # noqa: PLC0415  (slow)

    return qUpperConfidenceBound


UCB = Acquisition("ucb", is_multi_objective=False, load=_load)
