from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search.explain import Explanation, explain
from raymeta.search.explanation import check_enough
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space

SPACE = Space(
    (
        Parameter(name="cell", choices=("rnn", "gru", "lstm")),
        Parameter(name="both", choices=(False, True), when=("cell", ("gru", "lstm"))),
        Parameter(name="rate", low=1e-3, high=1, log=True),
        Parameter(name="size", low=1, high=20, integer=True),
    )
)
SETTINGS = SearchSettings(objectives=(("accuracy", "max"), ("seconds", "min")), method="random")


def accuracy(point: Point) -> float:
    """Is best near a rate of 0.03, and a little better with a GRU; the size does not matter."""
    return -((np.log10(point["rate"]) + 1.5) ** 2) + 0.3 * (point["cell"] == "gru")


def records(count: int) -> dict[str, TrialRecord]:
    rng = np.random.default_rng(0)
    found = {}
    for number in range(count):
        point: Point = {"cell": str(rng.choice(["rnn", "gru", "lstm"]))}
        if point["cell"] != "rnn":
            point["both"] = bool(rng.integers(2))
        point |= {"rate": float(10 ** rng.uniform(-3, 0)), "size": int(rng.integers(1, 21))}
        curve: Curve = [(1, accuracy(point) - 1, 0.05), (2, accuracy(point), 0.05)]
        seconds: Curve = [(step, float(point["size"]), None) for step in (1, 2)]
        stopped = number % 5 == 4
        found[f"trial{number}"] = TrialRecord(
            point,
            "random",
            "early_stopped" if stopped else "completed",
            curve[:1] if stopped else curve,
            {"seconds": seconds[:1] if stopped else seconds},
        )
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, Path]:
    explanation = explain(SPACE, SETTINGS, records(20))
    folder = tmp_path_factory.mktemp("search")
    explanation.write(folder)
    return explanation, folder


@pytest.mark.slow
def test_what_matters_comes_first_and_every_parameter_has_its_share(
    written: tuple[Explanation, Path],
) -> None:
    explanation, folder = written
    shares = explanation.importance
    assert next(iter(shares)) == "rate"
    assert set(shares) == {"cell", "both", "rate", "size"}
    assert shares["rate"] > 0.5 > shares["cell"] > shares["size"]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert json.loads((folder / "importance.json").read_text()) == shares
    size = pd.read_csv(folder / "importance-seconds.csv").set_index("parameter_name")
    assert size.sensitivity.abs().idxmax() == "size"


@pytest.mark.slow
def test_all_analyses_are_there_as_data_and_in_the_index(written: tuple[Explanation, Path]) -> None:
    explanation, folder = written
    assert not explanation.missing
    kinds = {analysis.shows.split(" ")[0] for analysis in explanation.analyses}
    assert kinds == {"cross_validation", "importance", "slice", "contour"}
    index = json.loads((folder / "analyses.json").read_text(encoding="utf-8"))
    assert index["missing"] == {}
    for analysis, entry in zip(explanation.analyses, index["analyses"], strict=True):
        assert entry == {"file": f"{analysis.name}.csv", "shows": analysis.shows}
        assert len(pd.read_csv(folder / entry["file"])) == len(analysis.table) > 0


@pytest.mark.slow
def test_the_data_are_those_of_the_trials_in_their_own_units(
    written: tuple[Explanation, Path],
) -> None:
    _, folder = written
    finished = [r for r in records(20).values() if r.status == "completed"]
    observed = {round(record.curve[-1][1], 6) for record in finished}
    folds = pd.read_csv(folder / "cross_validation-accuracy-1.csv")
    assert len(folds) >= len(finished)
    assert observed <= {round(value, 6) for value in folds.observed}
    assert np.corrcoef(folds.observed, folds.predicted)[0, 1] > 0.5  # left out, yet foretold


def test_too_few_finished_trials_are_refused() -> None:
    with pytest.raises(SearchError, match=r"3 of 3 trials came to their end; .* at least 4"):
        check_enough(records(3))
