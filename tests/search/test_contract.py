"""The contract of every configuration of the searcher, through Tune itself.

Each trial ends in Ax as in Tune, also in a search that goes on elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher

from raymeta.search import AxSearcher, Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.tune_space import joined
from tests.search.helpers import (
    TIMEOUT_S,
    StopDriver,
    fit,
    local_ray,
    run_ax_here,
    saved_state,
    wait_for_point,
)
from tests.search.trainables import BUDGET, FATES, SCORE, Numbered

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Names that a parser of formulas knows, and a range that nobody can list.
PLAIN = [Parameter(name="beta", low=0, high=1), Parameter(name="test", low=1, high=9, integer=True)]
WIDE = [PLAIN[0], Parameter(name="test", low=1, high=10**9, integer=True, log=True)]
FLOATS = [PLAIN[0], Parameter(name="test", low=1, high=9)]
CONDITIONAL = [
    *PLAIN,
    Parameter(name="cell", choices=("rnn", "gru", "lstm")),
    Parameter(name="gate", low=0.1, high=1, log=True, when=("cell", ("gru", "lstm"))),
]
EARLIER = [
    TrialRecord({"beta": n / 8, "test": n}, "earlier", "completed", [(BUDGET, n / 8, 0.01)])
    for n in range(1, 8)
]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "least": {"mode": "min"},
    "wide": {"space": WIDE},
    "log_ei": {"acquisition": "log_ei"},
    "per second": {"acquisition": "log_nei_per_second"},
    "ucb": {"acquisition": "ucb"},
    "saas": {"model": "saas"},
    "sobol": {"method": "sobol", "space": WIDE},
    "random": {"method": "random", "space": WIDE},
    "curves ignored": {"curves": "ignore"},
    "ensemble, time limited": {"model": "gp-ensemble", "budget_s": 86_400},
    "earlier searches": {"sources": [EARLIER]},
    "known failures": {"why_not": lambda point: "too large" if point["beta"] > 0.9 else ""},
    "gain watched": {"stop_when_gain_below": 1e-300},
    "two objectives": {"metric": [SCORE, "acc%"], "mode": ["max", "min"]},
    "bounded": {"outcome_constraints": ["acc% <= 6"]},
    "constrained": {"space": FLOATS, "constraints": ["4 * beta + test <= 9"]},
    "conditional": {"space": CONDITIONAL},
    "Tune's space": {"space": {"net": {"beta": tune.uniform(0, 1), "test": tune.randint(1, 10)}}},
    "the Tuner's space": {"space": None, "metric": None, "mode": None},
}
TUNERS_SPACE = {"beta": tune.uniform(0, 1), "test": tune.randint(1, 10)}
SAVED_AFTER = 4  # regular ends; the search goes on elsewhere then


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_trial_ends_in_ax_with_its_own_status(
    configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver ends, its folder is moved and lacks a trial; the restored search goes on there."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    if configuration != "defaults":
        run_ax_here(monkeypatch)
    restored: list[AxSearcher] = []
    restore = AxSearcher.restore

    def remembered(searcher: AxSearcher, path: str) -> None:
        restored.append(searcher)
        restore(searcher, path)

    monkeypatch.setattr(AxSearcher, "restore", remembered)
    settings: dict[str, Any] = {"space": PLAIN, "metric": SCORE, "mode": "max", "num_sobol": 5}
    settings |= CONFIGURATIONS[configuration]
    is_tuners = settings["space"] is None
    places = tmp_path / "places"
    places.mkdir()
    with pytest.raises(InterruptedError):
        fit(
            AxSearcher(step_metric="epochs", max_steps=BUDGET, **settings),
            tmp_path,
            {"folder": str(places), **(TUNERS_SPACE if is_tuners else {})},
            num_samples=len(FATES),
            callbacks=(StopDriver(after=SAVED_AFTER),),
            metric=SCORE if is_tuners else None,
            mode="max" if is_tuners else None,
            trainable=Numbered,
            max_concurrent_trials=2,
        )
    saved_state(tmp_path / "tune", num_ended=SAVED_AFTER)
    moved = (tmp_path / "tune").rename(tmp_path / "moved")
    (file,) = moved.glob("searcher-state-*")
    state = json.loads(file.read_text())
    del state["records"][(places / "0").read_text()]  # Tune alone knows it now
    file.write_text(json.dumps(state))
    tune.Tuner.restore(str(moved), Numbered).fit()

    assert not (tmp_path / "tune").exists()
    (searcher,) = restored
    records = [searcher.records[(places / str(place)).read_text()] for place in range(len(FATES))]
    assert [record.status for record in records] == list(FATES)
    assert searcher.statuses() == {i: record.status for i, record in searcher.records.items()}
    assert searcher.space is not None
    assert all(searcher.space.contains(record.point) for record in records)
    assert len({tuple(joined(record.point).items()) for record in records}) == len(FATES)
    method = settings.get("method", "bo")
    assert [record.source for record in records][-2:] == [method] * 2


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
