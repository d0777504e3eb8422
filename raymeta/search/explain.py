"""What a search has found out about its space, as Ax's own analyses: tables and one page of plots.

RUN/search/report.html      all plots, to be opened in a browser; it needs no network
RUN/search/*.csv            the data of each
RUN/search/importance.json  the parameters' shares of the objective's variance
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import pandas as pd
import torch
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import AnalysisCardBase
from plotly.graph_objects import Figure

from raymeta.errors import SearchError
from raymeta.search.ax_model import AxModel
from raymeta.search.ax_parameters import AxSpace
from raymeta.search.plots import PLOTS
from raymeta.search.plots.fitted import FittedSearch, plotted
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath

IMPORTANCE_FILE = "importance.json"
FEWEST_TRIALS = 4  # below, the model knows next to nothing
_LONGEST_FILE_NAME = 60  # characters; a file system counts bytes


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
    ended_by: str = ""  # what ended the search, in words

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
        if self.ended_by:
            parts.append(f"<p>{escape(f'The search has ended by {self.ended_by}.')}</p>")
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
            search = FittedSearch(space, settings, model.ax_space, *model.fitted())
            analyses, missing = _computed(search)
    finally:
        torch.set_num_threads(threads)
    return Explanation(analyses, search.shares(settings.metrics[0]), missing)


def _computed(search: FittedSearch) -> tuple[list[Analysis], dict[str, str]]:
    """All plots that succeed, and the reasons why others do not."""
    analyses: list[Analysis] = []
    missing: dict[str, str] = {}
    for plot in PLOTS:
        for name, result in plot(search):
            cards = list(plotted(result))
            if not cards:
                missing[name] = search.names.own_text(_reason(result))
            for number, card in enumerate(cards, 1):
                file = _file_name(f"{name} {number}" if len(cards) > 1 else name)
                while any(file.lower() == other.name.lower() for other in analyses):
                    file += "-"
                analyses.append(_in_own_names(file, card, search.names))
    return analyses, missing


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:_LONGEST_FILE_NAME]


def _in_own_names(file: str, card: PlotlyAnalysisCard, names: AxSpace) -> Analysis:
    """A card of Ax's with our names in place of Ax's."""

    def own(value: Any) -> Any:
        return names.own_text(value) if isinstance(value, str) else value

    table = card.df.rename(columns=own)
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            table[column] = table[column].map(own)
    return Analysis(
        file, own(card.title), own(card.subtitle), table, _relabelled(card.get_figure(), own)
    )


def _relabelled(figure: Figure, own: Callable[[Any], Any]) -> Figure:
    def relabelled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: relabelled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [relabelled(value) for value in node]
        return own(node)

    return Figure(relabelled(json.loads(figure.to_json())))


def _reason(result: AnalysisCardBase) -> str:
    """The last line of what Ax says of it, which may be a traceback."""
    blobs = [getattr(card, "blob", "") for card in result.flatten()]
    lines = [line for blob in blobs for line in blob.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing to show"
