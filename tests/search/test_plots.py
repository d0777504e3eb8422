"""Every registered plot works on a fitted search with metrics and parameters of any name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import AnalysisCardBase

from raymeta.experiment.file import load_experiment
from raymeta.experiment.parameter import Parameter
from raymeta.report.facts import Analysis
from raymeta.report.model_plots import analysis_figure
from raymeta.search import explain
from raymeta.search.ax_model import AxModel
from raymeta.search.plots import PLOTS, fitted
from raymeta.search.plots.fitted import FittedSearch, plotted
from raymeta.search.records import TrialRecord
from raymeta.search.settings import Mode, SearchSettings
from raymeta.search.space import Space

pytestmark = pytest.mark.slow  # it fits models

NUM_TRIALS = 10
EXPERIMENT = load_experiment("pen")
NAMES = [  # two metrics, two ranges and a choice
    ("accuracy", "seconds", "rate", "width", "cell"),
    ("metrics/mAP50-95(B)", "f-score", "beta", "lr-1", "kind of cell"),
    ("test", "acc%", "model.lambda", "S", "Ω"),
]


def fitted_search(names: Sequence[str], num_objectives: int) -> FittedSearch:
    """Fits a search: one metric is best at a middling rate, another grows with width."""
    first, second, rate, width, cell = names
    space = Space(
        (
            Parameter(name=rate, low=1e-3, high=1, log=True),
            Parameter(name=width, low=1, high=20, integer=True),
            Parameter(name=cell, choices=("rnn", "gru", "lstm")),
        )
    )
    objectives: tuple[tuple[str, Mode], ...] = ((first, "max"), (second, "min"))
    settings = SearchSettings(objectives=objectives[:num_objectives])
    rng = np.random.default_rng(0)
    records = {}
    for number in range(NUM_TRIALS):
        decade = float(rng.uniform(-3, 0))
        point: dict[str, Any] = {
            rate: 10**decade,
            width: int(rng.integers(1, 21)),
            cell: ("rnn", "gru", "lstm")[number % 3],
        }
        value = -((decade + 1.5) ** 2) + 0.1 * (point[cell] == "gru")
        records[str(number)] = TrialRecord(
            point,
            "sobol",
            "completed",
            [(1, value, 0.05)],
            {second: [(1, float(point[width]), None)]},
        )
    model = AxModel(space, settings)
    model.learn(records)
    return FittedSearch(space, settings, model.ax_space, *model.fitted())


@pytest.fixture(scope="module", params=[(n, k) for n in NAMES for k in (1, 2)], ids=str)
def search(request: pytest.FixtureRequest) -> FittedSearch:
    return fitted_search(*request.param)


def in_own_names(card: PlotlyAnalysisCard, search: FittedSearch) -> dict[str, list[str]]:
    """The data of a card as a report reads it."""
    table = explain._in_own_names(card, search.names)
    return {name: [str(value) for value in column] for name, column in table.items()}


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_a_plot_yields_figures_and_tables_under_distinct_names(
    plot: Callable[[FittedSearch], Iterator[tuple[str, AnalysisCardBase]]], search: FittedSearch
) -> None:
    found = list(plot(search))
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    assert found
    for name, result in found:
        cards = list(plotted(result))
        assert cards, f"{name}: {[getattr(card, 'blob', '') for card in result.flatten()]}"
        assert all(len(card.df) for card in cards)
        kind, _, of = name.partition(" ")
        analyses = [Analysis(kind, of, in_own_names(card, search)) for card in cards]
        drawn = [analysis_figure(analysis, EXPERIMENT) for analysis in analyses]
        assert any(figure is not None and figure.data for figure in drawn)  # others are tables


def test_the_most_important_parameter_is_known_by_its_own_name(search: FittedSearch) -> None:
    first = search.settings.metrics[0]
    shares = search.shares(first)
    assert set(shares) == {parameter.name for parameter in search.space.parameters}
    assert next(iter(shares)) == search.space.parameters[0].name


@pytest.mark.parametrize("search", [(NAMES[0], 1)], indirect=True, ids=str)
def test_four_times_as_many_samples_give_the_same_shares(
    search: FittedSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = search.settings.metrics[0]
    shares = search.shares(metric)
    search._sensitivities.clear()
    monkeypatch.setattr(fitted, "_SENSITIVITY_SAMPLES", 4 * fitted._SENSITIVITY_SAMPLES)
    assert search.shares(metric) == pytest.approx(shares, abs=0.005)
    search._sensitivities.clear()
