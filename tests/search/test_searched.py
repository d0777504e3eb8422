"""What is searched is said in one place: by the searcher or by the Tuner."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune

from raymeta.errors import SearchError
from raymeta.search import AxSearcher, Parameter


@pytest.mark.parametrize(
    ("param_space", "message"),
    [
        ({"x": tune.uniform(2, 3)}, r"param_space holds domains \(x\)"),
        ({"y": tune.randint(3, 4)}, r"param_space holds domains \(y\)"),
        ({"x": 0.5}, "param_space holds x, which the searcher's own space holds, too"),
    ],
)
def test_a_second_search_space_is_refused(param_space: dict[str, Any], message: str) -> None:
    searcher = AxSearcher([Parameter(name="x", low=0, high=1)])
    with pytest.raises(SearchError, match=message):
        searcher.set_search_properties("loss", "min", param_space)


@pytest.mark.parametrize(
    ("metric", "mode", "message"),
    [
        ("loss", "max", "Tuner's mode for loss is max, but the searcher's is min"),
        ("cost", "min", "Tuner's metric is cost, but the searcher optimises loss"),
    ],
)
def test_another_objective_of_the_tuner_is_refused(metric: str, mode: str, message: str) -> None:
    searcher = AxSearcher(metric="loss", mode="min")
    with pytest.raises(SearchError, match=message):
        searcher.set_search_properties(metric, mode, {"x": tune.uniform(0, 1)})
