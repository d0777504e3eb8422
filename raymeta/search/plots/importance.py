"""Which parameters matter: total-order Sobol indices of the model."""

from __future__ import annotations

from collections.abc import Iterator

from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def importance(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each metric."""
    for metric in search.settings.metrics:
        yield f"importance {metric}", search.sensitivity(metric)
