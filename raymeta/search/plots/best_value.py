"""The best value so far, trial by trial; of several objectives, the dominated hypervolume."""

from __future__ import annotations

from collections.abc import Iterator

from ax.analysis.plotly import UtilityProgressionAnalysis
from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.fitted import FittedSearch


def best_value(search: FittedSearch) -> Iterator[tuple[str, AnalysisCardBase]]:
    """One plot."""
    yield "best_value", search.compute(UtilityProgressionAnalysis())
