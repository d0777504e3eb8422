"""Expected improvement where observations are noisy, in its log form (Ament et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement  # noqa: PLC0415  (slow)

    return qLogNoisyExpectedImprovement


LOG_NEI = Acquisition("log_nei", is_multi_objective=False, load=_load)
