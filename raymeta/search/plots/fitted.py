"""A fitted search, as the plots see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from ax.adapter.base import Adapter
from ax.adapter.transforms.one_hot import OH_PARAM_INFIX
from ax.analysis.plotly import SensitivityAnalysisPlot
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import AnalysisCardBase
from ax.core.experiment import Experiment

from raymeta.search.ax_parameters import AxSpace
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space


class FittedSearch:
    """A search's space, settings and fitted model; Ax's names are in `names`."""

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        names: AxSpace,
        experiment: Experiment,
        adapter: Adapter,
    ) -> None:
        self.space, self.settings, self.names = space, settings, names
        self._experiment, self._adapter = experiment, adapter
        self._sensitivities: dict[str, AnalysisCardBase] = {}

    def compute(self, analysis: Any) -> AnalysisCardBase:
        """Runs one of Ax's analyses; the card of an error where it fails."""
        return analysis.compute_or_error_card(experiment=self._experiment, adapter=self._adapter)

    def sensitivity(self, metric: str) -> AnalysisCardBase:
        """How much of a metric's variance each parameter accounts for."""
        if metric not in self._sensitivities:
            analysis = SensitivityAnalysisPlot(self.names.metrics[metric], top_k=None)
            self._sensitivities[metric] = self.compute(analysis)
        return self._sensitivities[metric]

    def shares(self, metric: str) -> dict[str, float]:
        """Each parameter's share of a metric's variance, the greatest first; empty if unknown."""
        card = next(plotted(self.sensitivity(metric)), None)
        if card is None:
            return {}
        table: pd.DataFrame = card.df
        pairs = list(zip(table["parameter_name"], table["sensitivity"], strict=True))
        shares = {}
        for parameter in self.space.parameters:
            # An unordered choice may be one column for each of its values.
            name = re.escape(self.names.parameter(parameter.name))
            columns = re.compile(rf"{name}(?:{re.escape(OH_PARAM_INFIX)}\d+)?")
            found = [share for column, share in pairs if columns.fullmatch(column)]
            shares[parameter.name] = sum(abs(float(share)) for share in found)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def most_important(self, metric: str, count: int) -> Sequence[str]:
        """The most important parameters whose values can be laid out on an axis."""
        parameters = self.space.parameters
        on_axis = {p.name for p in parameters if p.is_ordered or len(p.choices or ()) == 2}
        return [name for name in self.shares(metric) if name in on_axis][:count]


def plotted(result: AnalysisCardBase) -> Iterator[PlotlyAnalysisCard]:
    """The cards of an analysis that have a plot."""
    return (card for card in result.flatten() if isinstance(card, PlotlyAnalysisCard))
