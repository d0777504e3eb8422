"""Noisy expected improvement for each expected second of a trial, in its log form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymeta.acquisitions.base import Acquisition

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction


def _load() -> type[AcquisitionFunction]:
    from raymeta.acquisitions.per_second import LogNEIPerSecond  # noqa: PLC0415  (slow)

    return LogNEIPerSecond


LOG_NEI_PER_SECOND = Acquisition(
    "log_nei_per_second", is_multi_objective=False, load=_load, needs_seconds=True
)
