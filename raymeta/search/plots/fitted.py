"""A fitted search, as the plots see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.express as px
from ax.adapter.base import Adapter
from ax.adapter.torch import TorchAdapter
from ax.adapter.transforms.one_hot import OH_PARAM_INFIX
from ax.analysis.plotly import SensitivityAnalysisPlot
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard, create_plotly_analysis_card
from ax.core.analysis_card import AnalysisCardBase
from ax.core.experiment import Experiment
from ax.utils.sensitivity.sobol_measures import ax_parameter_sens

from raymeta.search.ax_parameters import AxSpace
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space

# Quasi-random; four times as many change no share by 0.005.
_SENSITIVITY_SAMPLES = 1024


class _Sensitivity(SensitivityAnalysisPlot):
    """Total-order Sobol indices of one metric, from fewer samples than Ax's 10,000 random ones."""

    def compute(
        self,
        experiment: Any = None,  # noqa: ARG002  (Ax's signature)
        generation_strategy: Any = None,  # noqa: ARG002
        adapter: Any = None,
    ) -> PlotlyAnalysisCard:
        """Computes the shares, which sum to 1 without their signs: whether they raise it."""
        assert isinstance(adapter, TorchAdapter), "a fitted model"
        assert self.metric_name is not None
        found = ax_parameter_sens(
            adapter,
            [self.metric_name],
            order="total",
            exclude_task=True,
            num_mc_samples=_SENSITIVITY_SAMPLES,
            input_qmc=True,
        )[self.metric_name]
        total = sum(abs(float(value)) for value in found.values()) or 1.0
        shares = {name: float(value) / total for name, value in found.items()}
        table = pd.DataFrame({"parameter_name": [*shares], "sensitivity": [*shares.values()]})
        figure = px.bar(table, x="sensitivity", y="parameter_name", orientation="h")
        return create_plotly_analysis_card(
            name=type(self).__name__,
            title=f"Sensitivity of {self.metric_name}",
            subtitle="each parameter's share of its variance, total-order Sobol indices",
            df=table,
            fig=figure,
        )


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
        """Computes how much of a metric's variance each parameter accounts for."""
        if metric not in self._sensitivities:
            analysis = _Sensitivity(self.names.metrics[metric])
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
        """Finds the most important parameters whose values have an order."""
        parameters = self.space.parameters
        on_axis = {p.name for p in parameters if p.is_ordered or len(p.choices or ()) == 2}
        return [name for name in self.shares(metric) if name in on_axis][:count]


def plotted(result: AnalysisCardBase) -> Iterator[PlotlyAnalysisCard]:
    """Yields the cards of an analysis that have a plot."""
    return (card for card in result.flatten() if isinstance(card, PlotlyAnalysisCard))
