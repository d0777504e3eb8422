"""The model along the most important parameters, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

from ax.analysis.plotly import SlicePlot
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch

_MOST = 3  # for each metric


def slices(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each metric and parameter."""
    names = search.names
    for metric in search.settings.metrics:
        for name in search.most_important(metric, _MOST):
            plot = SlicePlot(names.parameter(name), names.metrics[metric])
            yield f"slice {metric} {name}", search.compute(plot)
