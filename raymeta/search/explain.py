"""Explains a search by Ax's analyses of its model; RUN/report.html draws them.

RUN/search/*.csv            the data of each analysis
RUN/search/analyses.json    which file holds what, and why an analysis is missing
RUN/search/importance.json  the parameters' shares of the objective's variance
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from ax.analysis.plotly.plotly_analysis import PlotlyAnalysisCard
from ax.core.analysis_card import AnalysisCardBase

from raymeta.run_folder import ANALYSES_FILE
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
_LONGEST_FILE_NAME = 60  # characters; a file system counts bytes


@dataclass(frozen=True)
class Analysis:
    """The data of one of Ax's analyses: `name` names its file, `shows` begins with its kind."""

    name: str
    shows: str
    table: pd.DataFrame


@dataclass(frozen=True)
class Explanation:
    """All analyses of a search.

    `importance` is each parameter's share of the variance of the (first) objective, as the model
    has it: total-order Sobol indices, which count interactions for every parameter that takes part,
    so that they may add up to more than one.  Empty where the model could not tell.
    """

    analyses: list[Analysis]
    importance: dict[str, float]
    missing: dict[str, str]  # analysis -> why it is missing

    def write(self, folder: AnyPath) -> None:
        """Writes the data to a folder.

        Raises:
            RunError: it cannot be written.
        """
        for analysis in self.analyses:
            content = analysis.table.to_csv(index=False)
            write_file(folder / f"{analysis.name}.csv", content.encode())
        index = {
            "analyses": [{"file": f"{a.name}.csv", "shows": a.shows} for a in self.analyses],
            "missing": self.missing,
        }
        write_file(folder / ANALYSES_FILE, json.dumps(index, indent=1).encode())
        write_file(folder / IMPORTANCE_FILE, json.dumps(self.importance, indent=1).encode())


def explain(
    space: Space, settings: SearchSettings, records: Mapping[str, TrialRecord]
) -> Explanation:
    """Explains the trials by the search's model, however their points were chosen.

    Args:
        space: the search space.
        settings: of the search; a model is fitted even if the search had none (Sobol, random).
        records: the trials by Tune's trial_id, in their order; `check_enough` has seen them.

    Raises:
        SearchError: the model cannot be fitted to them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores a second thread makes a fit many times slower
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
    """Computes all plots; returns those that succeed and why others fail."""
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
                analyses.append(Analysis(file, name, _in_own_names(card, search.names)))
    return analyses, missing


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:_LONGEST_FILE_NAME]


def _in_own_names(card: PlotlyAnalysisCard, names: AxSpace) -> pd.DataFrame:
    """Replaces Ax's names in a card's data by the search's own."""

    def own(value: Any) -> Any:
        return names.own_text(value) if isinstance(value, str) else value

    table = card.df.rename(columns=own)
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            table[column] = table[column].map(own)
    return table


def _reason(result: AnalysisCardBase) -> str:
    """Takes the last line of Ax's message, which may be a traceback."""
    blobs = [getattr(card, "blob", "") for card in result.flatten()]
    lines = [line for blob in blobs for line in blob.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing to show"
