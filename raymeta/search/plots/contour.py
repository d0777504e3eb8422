"""The model over the two most important parameters."""

from __future__ import annotations

from collections.abc import Iterator

from ax.analysis.plotly import ContourPlot
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def contour(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each metric; none where fewer than two parameters have an order."""
    names = search.names
    for metric in search.settings.metrics:
        found = search.most_important(metric, 2)
        if len(found) == 2:
            x, y = found
            plot = ContourPlot(names.parameter(x), names.parameter(y), names.metrics[metric])
            yield f"contour {metric} {x} {y}", search.compute(plot)
