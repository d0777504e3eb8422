"""Expected improvement over the best value observed, in its log form (Ament et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from botorch.acquisition.logei import qLogExpectedImprovement  # noqa: PLC0415  (slow)

    return qLogExpectedImprovement


LOG_EI = Acquisition("log_ei", is_multi_objective=False, load=_load, takes_failures=False)
