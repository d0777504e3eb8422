"""How well the model predicts each trial from the others, in the metrics' own units."""

from __future__ import annotations

from collections.abc import Iterator

from ax.analysis.plotly import CrossValidationPlot
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def cross_validation(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each metric."""
    for metric in search.settings.metrics:
        plot = CrossValidationPlot([search.names.metrics[metric]], untransform=True)
        yield f"cross_validation {metric}", search.compute(plot)
