"""The contract of every configuration of the searcher: each trial ends in Ax as in Tune."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher

from raymeta.search import AxSearcher, Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point
from raymeta.search.tune_space import joined
from tests.search.helpers import TIMEOUT_S, local_ray, run_ax_here, wait_for_point

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BUDGET = 3
PLAIN = [Parameter(name="x", low=0, high=1), Parameter(name="y", low=1, high=9, integer=True)]
FLOATS = [Parameter(name="x", low=0, high=1), Parameter(name="y", low=1, high=9)]
CONDITIONAL = [
    *PLAIN,
    Parameter(name="cell", choices=("rnn", "gru", "lstm")),
    Parameter(name="gate", low=0.1, high=1, log=True, when=("cell", ("gru", "lstm"))),
]
EARLIER = [
    TrialRecord({"x": n / 8, "y": n}, "earlier", "completed", [(BUDGET, n / 8, 0.01)])
    for n in range(1, 8)
]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "least": {"mode": "min"},
    "log_ei": {"acquisition": "log_ei"},
    "per second": {"acquisition": "log_nei_per_second"},
    "ucb": {"acquisition": "ucb"},
    "saas": {"model": "saas"},
    "sobol": {"method": "sobol"},
    "random": {"method": "random"},
    "curves ignored": {"curves": "ignore"},
    "ensemble, time limited": {"model": "gp-ensemble", "budget_s": 86_400},
    "earlier searches": {"sources": [EARLIER]},
    "known failures": {"why_not": lambda point: "too large" if point["x"] > 0.9 else ""},
    "gain watched": {"stop_when_gain_below": 1e-300},
    "two objectives": {"metric": ["score", "cost"], "mode": ["max", "min"]},
    "bounded": {"outcome_constraints": ["cost <= 6"]},
    "constrained": {"space": FLOATS, "constraints": ["4 * x + y <= 9"]},
    "conditional": {"space": CONDITIONAL},
    "Tune's space": {"space": {"net": {"x": tune.uniform(0, 1), "y": tune.randint(1, 10)}}},
}
# What becomes of the trials, one after another, two at a time.
FATES = [
    *["completed", "failed", "abandoned", "completed", "early_stopped", "interrupted"],
    *["completed", "early_stopped", "completed", "completed", "completed"],
]
SAVED_AFTER = 6  # trials; the search goes on in a new searcher then


@pytest.fixture(scope="module", autouse=True)
def ray_of_one_cpu() -> Iterator[None]:
    with local_ray(num_cpus=1):
        yield


def new_searcher(configuration: str) -> AxSearcher:
    settings: dict[str, Any] = {"space": PLAIN, "metric": "score", "mode": "max", "num_sobol": 5}
    settings |= CONFIGURATIONS[configuration]
    return AxSearcher(step_metric="epochs", max_steps=BUDGET, **settings)


def flat(point: Point) -> Point:
    return joined(point) if "net" in point else point


def end(searcher: AxSearcher, trial_id: str, fate: str) -> None:
    """Reports, and ends a trial, as Tune tells a searcher."""
    values = list(flat(searcher.records[trial_id].point).values())

    def result(epoch: int) -> dict[str, float]:
        score = float(values[0]) - 1 / epoch
        costs = {"cost": float(values[1]), "cost_sem": 0.1}
        return {"epochs": epoch, "score": score, "score_sem": 0.01, **costs}

    last = {"completed": BUDGET, "early_stopped": 1}.get(fate, 2)
    for epoch in range(1, last + 1):
        searcher.on_trial_result(trial_id, result(epoch))
    match fate:
        case "completed" | "early_stopped":
            searcher.on_trial_complete(trial_id, result(last))
        case "failed":
            searcher.on_trial_complete(trial_id, error=True)
        case "abandoned":
            searcher.on_trial_complete(trial_id, result(last) | {"score": math.nan})
        case "interrupted":
            searcher.on_trial_complete(trial_id)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_trial_ends_in_ax_with_its_own_status(
    configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if configuration != "defaults":
        run_ax_here(monkeypatch)
    searcher = new_searcher(configuration)
    assert searcher.set_max_concurrency(2)
    running: list[str] = []
    for number, _ in enumerate(FATES):
        trial_id = f"trial{number}"
        wait_for_point(searcher, trial_id)
        running.append(trial_id)
        if len(running) == 2:
            assert searcher.suggest("one too many") is None
            if number == SAVED_AFTER:  # both go on in the new one
                searcher.save(str(tmp_path / "state"))
                searcher = new_searcher(configuration)
                searcher.set_max_concurrency(2)
                searcher.restore(str(tmp_path / "state"))
            ended = running.pop(0)
            end(searcher, ended, FATES[int(ended.removeprefix("trial"))])
    end(searcher, running[0], FATES[-1])

    expected = ["abandoned" if fate == "interrupted" else fate for fate in FATES]
    assert [record.status for record in searcher.records.values()] == expected
    assert searcher.statuses() == {f"trial{n}": fate for n, fate in enumerate(expected)}
    points = [record.point for record in searcher.records.values()]
    assert searcher.space is not None
    assert all(searcher.space.contains(point) for point in points)
    assert len({tuple(point.items()) for point in points}) == len(points)
    method = CONFIGURATIONS[configuration].get("method", "bo")
    assert [record.source for record in searcher.records.values()][-2:] == [method] * 2


@pytest.mark.parametrize("method", ["bo", "sobol", "random"])
@pytest.mark.parametrize("slots", [1, 5])
def test_an_exhausted_space_ends_the_search_and_no_point_is_tried_twice(
    method: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ax_here(monkeypatch)
    space = [
        Parameter(name="cell", choices=("rnn", "lstm")),
        Parameter(name="size", low=1, high=5, integer=True, when=("cell", ("lstm",))),
    ]
    searcher = AxSearcher(space, metric="score", mode="max", method=method, num_sobol=2)
    running: list[str] = []
    points = []
    for number in range(6):
        point = wait_for_point(searcher, f"trial{number}")
        points.append(tuple(point.items()))
        running.append(f"trial{number}")
        if len(running) == slots:
            for trial_id in running:
                score = {"score": 1.0, "training_iteration": 1}
                searcher.on_trial_complete(trial_id, score)
            running.clear()
    assert len(set(points)) == 6
    assert finish(searcher) == Searcher.FINISHED


def finish(searcher: AxSearcher) -> Any:
    """Returns the searcher's answer once there is no point left."""
    deadline = time.monotonic() + TIMEOUT_S
    while (answer := searcher.suggest("no more")) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer
