"""The Pareto front of each pair of objectives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ax.analysis.plotly import ScatterPlot
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def front(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot for each pair; none of a single objective."""
    metrics = search.names.metrics
    for (x, _), (y, _) in itertools.combinations(search.settings.objectives, 2):
        plot = ScatterPlot(
            metrics[x], metrics[y], use_model_predictions=False, show_pareto_frontier=True
        )
        yield f"front {x} {y}", search.compute(plot)
