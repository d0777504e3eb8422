"""Points that would exceed a worker's memory are recognised before they are tried."""

from __future__ import annotations

import pytest

from raymeta.experiment.file import with_values
from raymeta.search.memory import MemoryLimit
from raymeta.training.trainer import estimate_memory
from tests.search.helpers import tiny_experiment

SIZE = "search.space.model.hidden_size={low: 8, high: 2048, log: true}"


@pytest.mark.slow
def test_a_point_above_the_limit_is_refused_with_both_sizes() -> None:
    needed = estimate_memory(with_values(tiny_experiment(SIZE), {"model.hidden_size": 512}))
    experiment = tiny_experiment(SIZE, "training.memory_gb=0.02")
    why_not = MemoryLimit(experiment)
    assert needed > 0.02e9
    assert why_not({"model.hidden_size": 8}) == ""
    reason = why_not({"model.hidden_size": 2048})
    assert "model.hidden_size 2048" in reason
    assert "more than training.memory_gb 0.02" in reason


def test_a_limit_that_is_searched_itself_counts_with_the_points_value() -> None:
    experiment = tiny_experiment(SIZE, "search.space.training.memory_gb={low: 0.001, high: 64}")
    why_not = MemoryLimit(experiment)
    assert why_not({"model.hidden_size": 512, "training.memory_gb": 0.001})
    assert not why_not({"model.hidden_size": 512, "training.memory_gb": 64.0})
