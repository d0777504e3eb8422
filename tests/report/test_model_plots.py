"""What `raymeta explain` leaves is drawn, also what no function here knows."""

from __future__ import annotations

import pytest

from raymeta.experiment.file import load_experiment
from raymeta.report.facts import Analysis
from raymeta.report.model_plots import analysis_figure, analysis_title

EXPERIMENT = load_experiment("pen")


@pytest.mark.parametrize(
    ("first", "kind"), [(["1", "2.5"], "scatter"), (["gru", "<b>lstm</b>"], "bar")]
)
def test_an_analysis_of_an_unknown_kind_is_drawn_by_its_columns(
    first: list[str], kind: str
) -> None:
    columns = {"at": first, "mean": ["0.5", "0.75"], "words": ["a", "b"]}
    analysis = Analysis("regret", "val_accuracy", columns)
    figure = analysis_figure(analysis, EXPERIMENT)
    assert figure is not None
    (trace,) = figure.data
    assert trace.type == kind
    assert list(trace.y) == [0.5, 0.75]
    assert "<b>" not in str(trace.x)
    assert analysis_title(analysis) == "regret: val_accuracy"


@pytest.mark.parametrize("columns", [{}, {"at": ["1"]}, {"at": ["1"], "words": ["a"]}])
def test_an_analysis_without_numbers_is_left_to_a_table(columns: dict[str, list[str]]) -> None:
    assert analysis_figure(Analysis("regret", "", columns), EXPERIMENT) is None


def test_the_importance_for_a_second_metric_is_drawn() -> None:
    columns = {"parameter_name": ["rate", "width"], "sensitivity": ["-0.75", "0.25"]}
    figure = analysis_figure(Analysis("importance", "seconds", columns), EXPERIMENT)
    assert figure is not None
    assert sorted(figure.data[0].x) == [25, 75]
