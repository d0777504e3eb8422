from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raymeta.run_folder import Run
from raymeta.search.records import Curve, Status, TrialRecord, pareto_front
from raymeta.search.settings import Mode
from raymeta.search.trial_log import TRIALS_FILE, logged_trials
from raymeta.storage.journal import Journal
from tests.search.helpers import tiny_experiment


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


GOOD: dict[str, Any] = asdict(record(0.5, 1.0))
BAD: list[dict[str, Any]] = [
    {"point": None},
    {"point": [1]},
    {"point": {"x": [1]}},
    {"point": {"x": {"y": 1}}},
    {"point": {"x": 10**400}},
    {"source": "stranger"},
    {"source": []},
    {"status": "unknown"},
    {"status": {}},
    {"curve": 5},
    {"curve": []},
    {"curve": [[1, 0.5]]},
    {"curve": [[1, "high", None]]},
    {"curve": [[[1], 0.5, None]]},
    {"curve": [[math.inf, 0.5, None]]},
    {"curve": [[1, math.nan, None]]},
    {"curve": [[1, True, None]]},
    {"curve": [[1, 0.5, -1.0]]},
    {"curve": [[1, 0.5, "low"]]},
    {"curve": [[2, 0.5, None], [2, 0.5, None]]},
    {"others": 5},
    {"others": {"seconds": 5}},
    {"others": {"seconds": [[1, None, None]]}},
    {"reason": 5},
    {"passed_over": []},
    {"began_s": "now"},
    {"latest_s": "later"},
    {"latest_s": None},
    {"latest_s": 10**400},
    {"began_s": -1e308},
    {"gain": "much"},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_record_of_another_form_is_an_error_and_a_note(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert TrialRecord.from_json(GOOD) == record(0.5, 1.0)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        TrialRecord.from_json({**GOOD, **change})
    run = Run.create(tmp_path, tiny_experiment())
    assert run.origin is not None
    journal = Journal(run.trials_dir / TRIALS_FILE, run.origin.id)
    journal.append({"trial": "a", "record": GOOD})
    journal.append({"trial": "b", "record": {**GOOD, **change}})
    found = logged_trials(run)
    assert found.records == {"a": record(0.5, 1.0)}
    assert len(found.notes) == 1
    assert "has another form" in found.notes[0]


@pytest.mark.parametrize(
    "report",
    [
        5,
        {},
        {"curve": [3, "high", None], "others": {}},
        {"curve": [[3], 0.5, None], "others": {}},
        {"curve": [3, 0.5, None], "others": 5},
        {"curve": [3, 0.5, None], "others": {"seconds": [3]}},
        {"curve": [3, 0.5, None], "others": {}, "latest_s": "later"},
    ],
    ids=str,
)
def test_a_report_of_another_form_changes_nothing(report: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny_experiment())
    assert run.origin is not None
    journal = Journal(run.trials_dir / TRIALS_FILE, run.origin.id)
    journal.append({"trial": "a", "record": GOOD})
    journal.append({"trial": "a", "report": report})
    found = logged_trials(run)
    assert found.records == {"a": record(0.5, 1.0)}
    assert len(found.notes) == 1
