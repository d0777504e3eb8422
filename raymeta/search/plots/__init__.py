"""The plots of a search's model in a report: one file each, and one line each here.

A plot is a function of a `FittedSearch` that yields names, of a kind and what it is of, and Ax's
cards.  A report draws their data by their columns; `raymeta.report.model_plots` draws some kinds
in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ax.core.analysis_card import AnalysisCardBase

from raymeta.search.plots.contour import contour
from raymeta.search.plots.cross_validation import cross_validation
from raymeta.search.plots.fitted import FittedSearch
from raymeta.search.plots.importance import importance
from raymeta.search.plots.slices import slices

PLOTS: tuple[Callable[[FittedSearch], Iterator[tuple[str, AnalysisCardBase]]], ...] = (
    cross_validation,
    importance,
    slices,
    contour,
)
