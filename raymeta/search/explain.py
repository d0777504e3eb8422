"""What a search has found out about its space, as Ax's own analyses: tables and one page of plots.

RUN/search/report.html      all plots, to be opened in a browser; it needs no network
RUN/search/*.csv            the data of each
RUN/search/importance.json  the parameters' shares of the objective's variance
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import pandas as pd
import torch
from ax.adapter.base import Adapter
from ax.adapter.transforms.one_hot import OH_PARAM_INFIX
from ax.analysis.plotly import (
    ContourPlot,
    CrossValidationPlot,
    ScatterPlot,
    SensitivityAnalysisPlot,
    SlicePlot,
    UtilityProgressionAnalysis,
)
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import AnalysisCardBase
from ax.core.experiment import Experiment
from plotly.graph_objects import Figure

from raymeta.errors import SearchError
from raymeta.files import write_file
from raymeta.remote import AnyPath
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space

IMPORTANCE_FILE = "importance.json"
FEWEST_TRIALS = 4  # below, the model knows next to nothing
_MOST_SLICES = 3  # of the most important parameters; the contour is that of the first two


@dataclass(frozen=True)
class Analysis:
    """One of Ax's analyses: what it shows, its data and its plot."""

    name: str
    title: str
    subtitle: str
    table: pd.DataFrame
    figure: Figure


@dataclass(frozen=True)
class Explanation:
    """All analyses of a search.

    `importance` is each parameter's share of the variance of the (first) objective, as the model
    has it: total-order Sobol indices, which count interactions for every parameter that takes part,
    so that they may add up to more than one.  Empty where the model could not tell.
    """

    analyses: list[Analysis]
    importance: dict[str, float]
    missing: dict[str, str]  # by analysis, why there is none

    def write(self, folder: AnyPath) -> None:
        """Leaves the page and the data in a folder.

        Raises:
            RunError: it cannot be written.
        """
        for analysis in self.analyses:
            content = analysis.table.to_csv(index=False)
            write_file(folder / f"{analysis.name}.csv", content.encode())
        write_file(folder / "report.html", self._page().encode())
        write_file(folder / IMPORTANCE_FILE, json.dumps(self.importance, indent=1).encode())

    def _page(self) -> str:
        parts = ["<!DOCTYPE html><meta charset='utf-8'><title>The search</title>", _STYLE]
        for number, analysis in enumerate(self.analyses):
            plot = analysis.figure.to_html(full_html=False, include_plotlyjs=number == 0)
            title, subtitle = escape(analysis.title), escape(analysis.subtitle)
            parts.append(f"<h2>{title}</h2><p>{subtitle}</p>{plot}")
        parts += [f"<p>{escape(f'no {name}: {why}')}</p>" for name, why in self.missing.items()]
        return "\n".join(parts)


_STYLE = "<style>body {font-family: sans-serif; max-width: 60em; margin: 2em auto}</style>"


def explain(
    space: Space, settings: SearchSettings, records: Mapping[str, TrialRecord]
) -> Explanation:
    """What the model makes of the trials, whichever way their points were chosen.

    Args:
        space: the search space.
        settings: of the search; its model is fitted, also where it had none (Sobol, random).
        records: the trials by Tune's trial_id, in their order.

    Raises:
        SearchError: too few trials came to their end, or the model cannot be fitted to them.
    """
    finished = sum(record.status == "completed" for record in records.values())
    if finished < FEWEST_TRIALS:
        raise SearchError(
            f"{finished} of {len(records)} trials came to their end; to say what matters, the "
            f"model needs at least {FEWEST_TRIALS}"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores a second one makes a fit many times slower
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about each other
            model = AxModel(space, replace(settings, method="bo"))
            model.learn(records)
            try:
                experiment, adapter = model.fitted()
            except Exception as error:  # of four libraries, and of ever new kinds
                raise SearchError(f"no model can be fitted to these trials: {error}") from error
            collected = _Collection(experiment, adapter)
            collected.compute(space, settings)
    finally:
        torch.set_num_threads(threads)
    return Explanation(collected.analyses, collected.importance, collected.missing)


class _Collection:
    """Runs analyses one by one, keeping what succeeds and why the others did not."""

    def __init__(self, experiment: Experiment, adapter: Adapter) -> None:
        self.analyses: list[Analysis] = []
        self.missing: dict[str, str] = {}
        self.importance: dict[str, float] = {}
        self._experiment, self._adapter = experiment, adapter

    def compute(self, space: Space, settings: SearchSettings) -> None:
        metrics = settings.metrics
        self._add("best_value", UtilityProgressionAnalysis())
        for (x, _), (y, _) in itertools.combinations(settings.objectives, 2):
            front = ScatterPlot(x, y, use_model_predictions=False, show_pareto_frontier=True)
            self._add(f"front {x} {y}", front)
        self._add("cross_validation", CrossValidationPlot(metric_names=metrics))
        for metric in metrics:
            found = self._add(f"importance {metric}", SensitivityAnalysisPlot(metric, top_k=None))
            shares = _shares(found, space)
            if metric == metrics[0]:
                self.importance = shares
            for names in _views(space, shares):
                plot = SlicePlot(*names, metric) if len(names) == 1 else ContourPlot(*names, metric)
                kind = "slice" if len(names) == 1 else "contour"
                self._add(f"{kind} {metric} {' '.join(names)}", plot)

    def _add(self, name: str, analysis: Any) -> pd.DataFrame | None:
        result = analysis.compute_or_error_card(experiment=self._experiment, adapter=self._adapter)
        cards = list(_cards(result))
        for number, card in enumerate(cards, 1):
            file = re.sub(r"[^\w.-]+", "-", name) + (f"-{number}" if len(cards) > 1 else "")
            self.analyses.append(
                Analysis(file, card.title, card.subtitle, card.df, card.get_figure())
            )
        if not cards:
            self.missing[name] = _reason(result)
        return cards[0].df if cards else None


def _cards(result: AnalysisCardBase) -> Iterator[PlotlyAnalysisCard]:
    for card in result.flatten():
        if isinstance(card, PlotlyAnalysisCard):
            yield card


def _reason(result: AnalysisCardBase) -> str:
    """The last line of what Ax says of it, which may be a traceback."""
    blobs = [getattr(card, "blob", "") for card in result.flatten()]
    lines = [line for blob in blobs for line in blob.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing to show"


def _shares(table: pd.DataFrame | None, space: Space) -> dict[str, float]:
    """By parameter, the greatest first."""
    if table is None:
        return {}
    pairs = list(zip(table["parameter_name"], table["sensitivity"], strict=True))

    def share(name: str) -> float:
        # To the model, an unordered choice is one column for each of its values.
        columns = [s for column, s in pairs if column == name or _is_value(column, name)]
        return sum(abs(float(s)) for s in columns)

    shares = {p.name: share(p.name) for p in space.parameters}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _is_value(column: str, parameter: str) -> bool:
    return re.fullmatch(re.escape(f"{parameter}{OH_PARAM_INFIX}") + r"\d+", column) is not None


def _views(space: Space, shares: Mapping[str, float]) -> Iterator[Sequence[str]]:
    """The parameters, and the pair of them, that are worth a plot; an axis needs an order."""
    ordered = {p.name for p in space.parameters if p.is_ordered or len(p.choices or ()) == 2}
    names = [name for name in shares if name in ordered][:_MOST_SLICES]
    yield from ((name,) for name in names)
    if len(names) > 1:
        yield names[:2]
