"""Expected improvement of the dominated hypervolume under noise, in its log form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement  # noqa: PLC0415  (slow)

    return qLogNoisyExpectedHypervolumeImprovement


LOG_NEHVI = Acquisition("log_nehvi", is_multi_objective=True, load=_load)
