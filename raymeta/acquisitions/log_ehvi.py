"""Expected improvement of the dominated hypervolume, in its log form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement  # noqa: PLC0415  (slow)

    return qLogExpectedHypervolumeImprovement


LOG_EHVI = Acquisition("log_ehvi", is_multi_objective=True, load=_load, takes_failures=False)
