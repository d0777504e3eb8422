from __future__ import annotations

import pytest

from raymeta.search.records import Curve, Status, TrialRecord, pareto_front
from raymeta.search.settings import Mode


def record(first: float, second: float, status: Status = "completed") -> TrialRecord:
    others: dict[str, Curve] = {"seconds": [(1, 0.0, None), (2, second, None)]}
    return TrialRecord({}, "bo", status, [(1, 0.0, None), (2, first, None)], others)


@pytest.mark.parametrize(
    ("mode", "front"), [("max", {"b", "d", "e"}), ("min", {"a", "b"})], ids=["max", "min"]
)
def test_the_front_holds_the_points_that_no_other_dominates(mode: Mode, front: set[str]) -> None:
    records = {
        "a": record(0.1, 2.0),
        "b": record(0.5, 1.0),
        "c": record(0.5, 2.0),
        "d": record(0.9, 3.0),
        "e": record(0.9, 3.0),
        "running": record(1.0, 0.0, "running"),
    }
    found = pareto_front(records, (("accuracy", mode), ("seconds", "min")))
    assert set(found) == front
    assert found["b"] == [0.5, 1.0]
