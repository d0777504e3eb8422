"""How well the model predicts each trial from the others."""

from __future__ import annotations

from collections.abc import Iterator

from ax.analysis.plotly import CrossValidationPlot
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def cross_validation(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each metric."""
    metrics = [search.names.metrics[metric] for metric in search.settings.metrics]
    yield "cross_validation", search.compute(CrossValidationPlot(metric_names=metrics))
