"""The searcher under Ray Tune: real Tune runs of a cheap trainable, and Tune's calls."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import ConcurrencyLimiter, SearchGenerator

from raymeta.errors import RunError, SearchError
from raymeta.search import AxSearcher, Parameter, ax_process
from raymeta.search.candidates import CandidateQueue
from raymeta.search.records import TrialRecord
from raymeta.search.saved import is_saved, saved_records
from raymeta.search.settings import SearchSettings
from tests.search.helpers import ax_pids, local_ray, run_ax_here, wait_for_point
from tests.search.trainables import BUDGET, SEM, Fated, Scored

pytestmark = pytest.mark.ray

SPACE = [
    Parameter(name="x", low=0, high=4),
    Parameter(name="fate", choices=("fine", "error", "nan", "flaky")),
]
# What happens to a trial, and how it must end.
GIVEN = {
    "completed": {"x": 2.0, "fate": "fine"},
    "early_stopped": {"x": 0.5, "fate": "fine"},
    "failed": {"x": 3.0, "fate": "error"},
    "abandoned": {"x": 3.0, "fate": "nan"},
    "retried": {"x": 2.5, "fate": "flaky"},
}
NUM_TRIALS = 8


class KillAx(tune.Callback):
    """Kills the process of Ax once, after a number of trials."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_trial_complete(self, **_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            kill_ax()


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


@pytest.fixture
def ax_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs Ax in this process, for tests that need no process of its own."""
    run_ax_here(monkeypatch)


def new_searcher(parameters: list[Parameter], **settings: Any) -> AxSearcher:
    return AxSearcher(
        parameters,
        metric="score",
        mode="max",
        step_metric="epochs",
        max_steps=BUDGET,
        **settings,
    )


def run_tune(
    searcher: AxSearcher, folder: Path, num_trials: int, *callbacks: tune.Callback
) -> tune.ResultGrid:
    """Runs one trial at a time, under ASHA that halves after the first epoch, with one retry."""
    return tune.Tuner(
        Fated,
        param_space={"folder": str(folder)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=AsyncHyperBandScheduler(
                time_attr="epochs",
                metric="score",
                mode="max",
                grace_period=1,
                max_t=BUDGET,
                reduction_factor=2,
            ),
            num_samples=num_trials,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=list(callbacks),
            verbose=0,
        ),
    ).fit()


def result(epoch: int, score: float) -> dict[str, Any]:
    return {"epochs": epoch, "score": score, "score_sem": SEM}


def kill_ax() -> None:
    for pid in ax_pids():
        os.kill(pid, signal.SIGKILL)


@contextmanager
def frozen_ax() -> Iterator[None]:
    """Stops Ax from answering."""
    pids = ax_pids()
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fated")


@pytest.fixture(scope="module")
def searched(ray_of_two_cpus: None, folder: Path) -> AxSearcher:
    """Makes a searcher after a Tune run whose first trials are `GIVEN`."""
    searcher = new_searcher(SPACE, num_sobol=4, points_to_evaluate=list(GIVEN.values()))
    results = run_tune(searcher, folder, NUM_TRIALS)
    assert len(results) == NUM_TRIALS
    return searcher


def given_records(searcher: AxSearcher) -> dict[str, TrialRecord]:
    """Returns the records of `GIVEN` by its names."""
    records = dict(zip(GIVEN, searcher.records.values(), strict=False))
    assert {name: record.point for name, record in records.items()} == GIVEN
    return records


# ------------------------------------------------------------------- a whole Tune run


@pytest.mark.parametrize(
    "space", [5, "abc", [tune.uniform(0, 1)]], ids=lambda value: type(value).__name__
)
def test_an_invalid_space_is_refused(space: Any) -> None:
    with pytest.raises(SearchError, match="space must be a Space, a list of parameters or"):
        AxSearcher(space, metric="score", mode="max")


@pytest.mark.parametrize("points", ["abc", {"x": 1.0}, [("x", 1.0)], ["abc"]], ids=str)
def test_points_other_than_a_list_of_dictionaries_are_refused(points: Any) -> None:
    with pytest.raises(SearchError, match="points_to_evaluate must be a list of dictionaries"):
        new_searcher([SPACE[0]], points_to_evaluate=points)
    new_searcher([SPACE[0]], points_to_evaluate=None)  # as Tune's other searchers have it


def test_every_trial_ends_with_its_own_status(searched: AxSearcher) -> None:
    statuses = {name: record.status for name, record in given_records(searched).items()}
    assert statuses == {name: name for name in GIVEN} | {"retried": "completed"}


def test_ax_has_the_status_of_every_trial_and_none_is_left_running(searched: AxSearcher) -> None:
    records = {trial_id: record.status for trial_id, record in searched.records.items()}
    assert len(records) == NUM_TRIALS
    assert "running" not in records.values()
    assert searched.statuses() == records


def test_curves_hold_every_finite_result_once(searched: AxSearcher) -> None:
    curves = {name: record.curve for name, record in given_records(searched).items()}
    assert curves == {
        "completed": [(1, 2.0, SEM), (2, 4.0, SEM), (3, 6.0, SEM)],
        "early_stopped": [(1, 0.5, SEM)],  # the result that decided the stop
        "failed": [(1, 3.0, SEM)],
        "abandoned": [(1, 3.0, SEM)],
        "retried": [(1, 2.5, SEM), (2, 5.0, SEM), (3, 7.5, SEM)],
    }


def test_given_points_come_first_then_sobol_then_the_model(searched: AxSearcher) -> None:
    # Two of the five given ones ended without a value; three count as start points.
    sources = [record.source for record in searched.records.values()]
    assert sources == ["given"] * 5 + ["sobol"] + ["bo"] * 2


def test_the_records_are_found_in_the_folder_of_the_search(
    searched: AxSearcher, folder: Path
) -> None:
    assert saved_records(folder / "tune") == searched.records


def test_a_search_outlives_its_ax_actor_and_ends_when_the_space_is_exhausted(
    tmp_path: Path,
) -> None:
    parameters = [Parameter(name="x", choices=(1, 2, 3, 4, 5))]
    searcher = new_searcher(parameters, num_sobol=2)
    results = run_tune(searcher, tmp_path, 50, KillAx(after=3))
    assert len(results) == len(searcher.records) == 5
    assert {record.point["x"] for record in searcher.records.values()} == {1, 2, 3, 4, 5}
    assert searcher.statuses() == {
        trial_id: record.status for trial_id, record in searcher.records.items()
    }


# ------------------------------------------------------------------- Tune's calls, one by one


def test_no_call_waits_for_ax() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1)
    assert searcher.suggest("a") is None  # Ax is not even imported yet
    wait_for_point(searcher, "a")
    with frozen_ax():  # a call that waited would never return
        searcher.on_trial_result("a", result(1, 0.5))
        answers = [searcher.suggest("b") for _ in range(3)]
        searcher.on_trial_complete("a", result(BUDGET, 0.7))
        answers += [searcher.suggest("b") for _ in range(3)]
    assert answers == [None] * 6
    wait_for_point(searcher, "b")


@pytest.mark.usefixtures("ax_here")
def test_concurrent_trials_get_different_points() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=3)
    running = [wait_for_point(searcher, trial_id)["x"] for trial_id in "abc"]
    for trial_id, x in zip("abc", running, strict=True):
        searcher.on_trial_complete(trial_id, result(BUDGET, x))
    running += [wait_for_point(searcher, trial_id)["x"] for trial_id in "de"]
    assert len({round(x, 3) for x in running}) == 5
    assert [record.source for record in searcher.records.values()][3:] == ["bo", "bo"]


def test_a_killed_ax_actor_is_rebuilt_with_all_trials() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=2, points_to_evaluate=[{"x": 1.0}])
    searcher.suggest("a")
    wait_for_point(searcher, "b")
    searcher.on_trial_complete("a", result(BUDGET, 1.0))
    kill_ax()
    searcher.on_trial_result("b", result(1, 2.0))  # nobody hears this
    wait_for_point(searcher, "c")
    assert searcher.statuses() == {"a": "completed", "b": "running", "c": "running"}
    assert searcher.records["c"].source == "bo"


def test_an_ax_process_that_hangs_is_replaced_with_all_trials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=2, points_to_evaluate=[{"x": 1.0}])
    searcher.suggest("a")
    wait_for_point(searcher, "b")
    searcher.on_trial_complete("a", result(BUDGET, 1.0))
    (hung,) = ax_pids()
    os.kill(hung, signal.SIGSTOP)
    with monkeypatch.context() as hasty:
        hasty.setattr(ax_process, "_LEAST_DEADLINE_S", 1.0)
        hasty.setattr(ax_process, "_DEADLINE_MULTIPLE", 0)
        while not caplog.messages:
            assert searcher.suggest("c") is None
            time.sleep(0.1)
    assert caplog.messages == ["Ax's process has not answered for 1 s; a new one starts"]
    wait_for_point(searcher, "c")
    assert searcher.statuses() == {"a": "completed", "b": "running", "c": "running"}
    assert hung not in ax_pids()


@pytest.mark.usefixtures("ax_here")
def test_a_restored_searcher_goes_on_where_the_saved_one_was(tmp_path: Path) -> None:
    given = [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]
    searcher = new_searcher([SPACE[0]], num_sobol=1, points_to_evaluate=given)
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", result(BUDGET, 1.0))
    searcher.on_trial_result("b", result(1, 2.0))
    searcher.save(str(tmp_path / "state"))

    restored = new_searcher([SPACE[0]], num_sobol=1)
    restored.restore(str(tmp_path / "state"))
    assert restored.records == searcher.records
    assert restored.suggest("c") == {"x": 3.0}
    assert restored.suggest("d") is None
    restored.on_trial_result("b", result(1, 2.0))  # the trial repeats it on its way back
    restored.on_trial_complete("b", result(BUDGET, 6.0))
    assert restored.statuses() == {"a": "completed", "b": "completed", "c": "running"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": 0, "given": [], "records": {}}', "searcher state of version 0"),
        (b"", "state of the search is damaged"),
        (b'{"version": 3, "given": [], "recor', "state of the search is damaged"),
        (b"\xff\xfe", "state of the search is damaged"),
        (b'{"version": 3, "given": [], "records": {"a": {}}}', "state of the search is damaged"),
        (b"[]", "state of the search is damaged"),
    ],
)
def test_a_damaged_state_is_refused_and_never_overwritten(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    searcher = new_searcher([SPACE[0]])
    searcher.restore(str(path))  # Tune would take an exception as a reason to begin anew
    with pytest.raises(RunError, match=message) as caught:
        searcher.suggest("a")
    assert str(path) in str(caught.value)
    with pytest.raises(RunError, match=message):
        searcher.save(str(path))
    assert path.read_bytes() == content


@pytest.mark.usefixtures("ax_here")
def test_an_error_of_the_model_while_trials_run_reaches_tune_at_the_next_suggestion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searcher = new_searcher([SPACE[0]], points_to_evaluate=[{"x": 1.0}])
    searcher.suggest("a")

    def refuse(_: CandidateQueue) -> None:
        raise SearchError("no fit")

    monkeypatch.setattr(CandidateQueue, "_collect", refuse)
    searcher.on_trial_result("a", result(1, 1.0))  # an error here would end Tune with a traceback
    with pytest.raises(SearchError, match="no fit"):
        searcher.suggest("b")
    assert searcher.records["a"].curve == [(1, 1.0, SEM)]


@pytest.mark.usefixtures("ax_here")
def test_a_failed_trial_that_tune_takes_up_again_runs_again(tmp_path: Path) -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1, points_to_evaluate=[{"x": 1.0}, {"x": 2.0}])
    for trial_id in "ab":
        searcher.suggest(trial_id)
        searcher.on_trial_result(trial_id, result(1, 1.0))
        searcher.on_trial_complete(trial_id, error=True)
    wait_for_point(searcher, "c")  # Ax knows of the failures
    assert searcher.statuses() == {"a": "failed", "b": "failed", "c": "running"}
    searcher.save(str(tmp_path / "state"))

    restored = new_searcher([SPACE[0]], num_sobol=1)
    restored.restore(str(tmp_path / "state"))
    restored.statuses()
    restored.on_trial_result("a", result(2, 4.0))
    assert restored.statuses() == {"a": "running", "b": "failed", "c": "running"}
    restored.on_trial_complete("a", result(BUDGET, 5.0))
    assert restored.statuses()["a"] == "completed"
    assert restored.records["a"].curve == [(1, 1.0, SEM), (2, 4.0, SEM), (3, 5.0, SEM)]
    restored.on_trial_complete("b", error=True)  # and fails once more
    assert restored.statuses()["b"] == "failed"


@pytest.mark.usefixtures("ax_here")
def test_a_resumed_trial_ends_also_under_a_limit_of_concurrent_trials(tmp_path: Path) -> None:
    """With `max_concurrent_trials`, Tune wraps the searcher this way."""
    given = [{"x": 1.0}, {"x": 2.0}]
    searcher = new_searcher([SPACE[0]], num_sobol=1, points_to_evaluate=given)
    limited = ConcurrencyLimiter(searcher, max_concurrent=1)
    limited.suggest("a")
    assert limited.suggest("b") is None
    limited.on_trial_result("a", result(1, 1.0))
    limited.on_trial_complete("a", error=True)
    limited.save(str(tmp_path / "state"))

    restored = new_searcher([SPACE[0]], num_sobol=1)
    limited = ConcurrencyLimiter(restored, max_concurrent=1)
    limited.restore(str(tmp_path / "state"))
    limited.on_trial_result("a", result(2, 2.0))
    assert limited.suggest("b") is None
    limited.on_trial_complete("a", result(BUDGET, 3.0))
    assert restored.records["a"].status == "completed"
    assert limited.suggest("b") == {"x": 2.0}


@pytest.mark.usefixtures("ax_here")
def test_settings_may_come_as_one_object() -> None:
    settings = SearchSettings(objectives=(("score", "max"),), num_sobol=7)
    searcher = AxSearcher([SPACE[0]], settings, points_to_evaluate=[{"x": 1.0}])
    assert searcher.settings == settings
    assert searcher.suggest("a") == {"x": 1.0}


@pytest.mark.usefixtures("ax_here")
def test_a_new_fit_frees_the_slots_of_the_one_before() -> None:
    searcher = new_searcher([SPACE[0]], points_to_evaluate=[{"x": 1.0}, {"x": 2.0}])
    searcher.set_max_concurrency(1)
    searcher.suggest("a")
    assert searcher.suggest("b") is None
    searcher.set_search_properties(None, None, {"folder": "elsewhere"})
    assert searcher.suggest("b") == {"x": 2.0}
    assert [r.status for r in searcher.records.values()] == ["abandoned", "running"]


def test_a_trial_begun_after_the_last_save_is_recovered() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1)
    flat = {"config/x": 3.0, "config/folder": "elsewhere"}  # as Tune hands results over
    searcher.on_trial_result("a", result(1, 1.0) | flat)
    searcher.on_trial_complete("a", result(BUDGET, 2.0))
    record = searcher.records["a"]
    assert (record.point, record.status) == ({"x": 3.0}, "completed")
    searcher.on_trial_result("b", result(1, 1.0))  # of which nothing is known
    assert "b" not in searcher.records


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_results_may_be_scalars_of_numpy_and_torch(kind: Any) -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1, points_to_evaluate=[{"x": np.float32(1.0)}])
    searcher.suggest("a")
    reported = {"epochs": np.int64(BUDGET), "score": kind(0.5), "score_sem": kind(SEM)}
    searcher.on_trial_complete("a", reported)
    expected = TrialRecord({"x": 1.0}, "given", "completed", [(BUDGET, 0.5, SEM)])
    assert searcher.records["a"] == expected


@pytest.mark.parametrize(
    ("results", "end", "status"),
    [
        ([], {"result": result(BUDGET, 1.0)}, "completed"),
        ([result(1, 1.0)], {"result": result(1, 1.0)}, "early_stopped"),
        ([result(1, 1.0)], {"error": True}, "failed"),
        ([result(1, 1.0)], {"result": result(2, math.nan)}, "abandoned"),
        ([result(1, 1.0)], {"result": result(2, math.inf)}, "abandoned"),
        ([], {"result": {"epochs": BUDGET}}, "abandoned"),
        ([], {}, "abandoned"),  # stopped before it ran
    ],
)
def test_the_status_of_an_ended_trial_follows_from_result_error_and_budget(
    results: list[dict[str, Any]], end: dict[str, Any], status: str
) -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1, points_to_evaluate=[{"x": 1.0}])
    searcher.suggest("a")
    for each in results:
        searcher.on_trial_result("a", each)
    searcher.on_trial_complete("a", **end)
    assert searcher.records["a"].status == status


def test_without_a_budget_every_regular_end_is_complete() -> None:
    searcher = AxSearcher(
        [SPACE[0]], metric="score", mode="max", num_sobol=1, points_to_evaluate=[{"x": 1.0}]
    )
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"training_iteration": 2, "score": 0.5})
    assert searcher.records["a"] == TrialRecord({"x": 1.0}, "given", "completed", [(2, 0.5, None)])


# ------------------------------------------------------------------- from Tune's own arguments


def run_scored(folder: Path, searcher: AxSearcher, **settings: Any) -> tune.ResultGrid:
    space = {
        "net": {"x": tune.uniform(0, 1), "width": tune.qrandint(8, 64, 8)},
        "name": "constant",
    }
    return tune.Tuner(
        Scored,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher, num_samples=6, reuse_actors=True, **settings
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


@pytest.mark.usefixtures("ax_here")
def test_space_metric_and_mode_may_come_from_the_tuner(tmp_path: Path) -> None:
    searcher = AxSearcher(num_sobol=3)
    results = run_scored(tmp_path, searcher, metric="score", mode="max", max_concurrent_trials=2)
    assert not results.errors
    assert [record.source for record in searcher.records.values()][-1] == "bo"
    for record in searcher.records.values():
        assert record.status == "completed"
        assert record.point.keys() == {"net/x", "net/width"}
        assert record.point["net/width"] % 8 == 0
    best = results.get_best_result()
    assert best.config["net"]["x"] * best.config["net"]["width"] == best.metrics["score"]


@pytest.mark.usefixtures("ax_here")
def test_given_points_of_a_nested_space_are_tried_first() -> None:
    searcher = AxSearcher(
        {"net": {"x": tune.uniform(0, 1)}, "name": "constant"},
        metric="score",
        mode="max",
        points_to_evaluate=[{"net": {"x": 0.25}}],
    )
    assert searcher.suggest("a") == {"net": {"x": 0.25}, "name": "constant"}
    assert searcher.records["a"].point == {"net/x": 0.25}


def test_a_failure_within_ax_is_reported_in_one_message() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1)
    wait_for_point(searcher, "a")
    searcher.records["a"].point = {"x": "one"}  # which Ax cannot take up
    with pytest.raises(SearchError, match="Ax cannot go on with this search"):
        wait_for_point(searcher, "b")


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ("cost much", "'cost much' must be a bound on one metric, such as 'latency <= 0.1'"),
        ("cost <= 1e999", "must be a bound on one metric"),
        ("score >= 1", "'score >= 1' bounds the only objective"),
    ],
)
def test_a_bound_that_cannot_be_read_is_refused_at_once(bound: str, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        new_searcher([SPACE[0]], num_sobol=1, outcome_constraints=[bound])


@pytest.mark.usefixtures("ax_here")
def test_several_metrics_are_reported_with_the_mode_of_each(tmp_path: Path) -> None:
    searcher = AxSearcher(metric=["score", "cost"], mode=["max", "min"], num_sobol=3)
    assert not run_scored(tmp_path, searcher, max_concurrent_trials=1).errors
    assert searcher.settings.objectives == (("score", "max"), ("cost", "min"))
    for record in searcher.records.values():
        ((_, cost, _),) = record.others["cost"]
        assert cost == record.point["net/width"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a search space, a metric and a mode"),
        ({"metric": "score", "mode": "max"}, "needs a search space, a metric and a mode"),
        ({"metric": ["a", "b"], "mode": ["max"]}, "mode must be 'min' or 'max'"),
        ({"metric": "a", "mode": "best"}, "mode must be 'min' or 'max'"),
        ({"metric": "a", "mode": 5}, "mode must be 'min' or 'max'.* but got 5"),
        ({"metric": 5, "mode": "max"}, "metric must be a name or a list of names, but got 5"),
        ({"metric": [5], "mode": "max"}, "metric must be a name or a list of names"),
        ({"metric": "a", "mode": "max", "seed": "q"}, "seed must be a whole number >= 0"),
        ({"num_sobl": 3}, "AxSearcher has no setting num_sobl; did you mean num_sobol"),
        ({"num_sobol": 0}, "num_sobol must be .* 0, but got 0"),
        ({"method": "bayes"}, "method must be one of bo, sobol, random, but got 'bayes'"),
        ({"settings": SearchSettings(), "seed": 1}, "give seed within `settings`"),
        ({"space": {"x": tune.randn()}, "metric": "a", "mode": "min"}, "x: a normal distribution"),
        (
            {
                "space": {"net": {"x": tune.uniform(0, 1)}},
                "metric": "a",
                "mode": "min",
                "points_to_evaluate": [{"net": {"x": 2.0}}],
            },
            r"points_to_evaluate\[0\]: net/x must be a number from 0 to 1, but got 2.0",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_first_trial(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        AxSearcher(**settings).suggest("a")


@pytest.mark.usefixtures("ax_here")
def test_an_earlier_search_is_used_where_it_fits_the_space() -> None:
    earlier = [
        TrialRecord({"x": x}, "earlier", "completed", [(BUDGET, x, SEM)]) for x in (1.0, 2.0, 3.0)
    ]
    outside = TrialRecord({"x": 9.0}, "earlier", "completed", [(BUDGET, 9.0, SEM)])
    searcher = new_searcher([SPACE[0]], num_sobol=2, earlier=[*earlier, outside])
    wait_for_point(searcher, "a")
    assert searcher.records["a"].source == "bo"
    assert set(searcher.statuses()) == {"a"}


# ------------------------------------------------------------------- between two sessions


@pytest.fixture(scope="module")
def three_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the folder of a search of a completed, a failed and an abandoned trial."""
    given = [GIVEN["completed"], GIVEN["failed"], GIVEN["abandoned"]]
    folder = tmp_path_factory.mktemp("three")
    run_tune(new_searcher(SPACE, points_to_evaluate=given), folder, 3)
    return folder / "tune"


@pytest.fixture
def saved(three_trials: Path, tmp_path: Path) -> Path:
    """Copies that folder, to be changed."""
    return shutil.copytree(three_trials, tmp_path / "tune")


@pytest.mark.usefixtures("ax_here")
def test_a_kill_between_tunes_files_and_ours_loses_no_trial_and_keeps_no_ghost(saved: Path) -> None:
    (file,) = saved.glob("searcher-state-*")
    state = json.loads(file.read_text())
    expected = saved_records(saved)
    ids = {record.status: trial_id for trial_id, record in expected.items()}
    assert set(ids) == {"completed", "failed", "abandoned"}
    # Ours is older: of one trial it has not heard the end, of another nothing at all.
    state["records"][ids["completed"]] |= {"status": "running", "curve": []}
    state["records"][ids["failed"]] |= {"status": "running"}
    del state["records"][ids["abandoned"]]
    # And newer: it has handed out a point for a trial that Tune did not come to save.
    ghost = {"point": GIVEN["retried"], "source": "bo", "status": "running", "curve": []}
    state["records"]["ghost"] = ghost
    file.write_text(json.dumps(state))

    restored = new_searcher(SPACE)
    restored.restore(str(file))
    assert {i: r.status for i, r in restored.records.items()} == {
        trial_id: record.status for trial_id, record in expected.items()
    }
    (last,) = restored.records[ids["completed"]].curve
    assert last == expected[ids["completed"]].curve[-1]
    restored.set_max_concurrency(1)
    wait_for_point(restored, "next")  # no ghost takes the only slot
    assert restored.statuses() == {i: r.status for i, r in restored.records.items()}


@pytest.mark.parametrize(
    "missing", ["tuner.pkl", "experiment_state-*", "search_gen_state-*", "searcher-state-*"]
)
def test_a_search_killed_during_its_first_save_does_not_count_as_saved(
    missing: str, saved: Path
) -> None:
    assert not is_saved(saved / "nothing")
    assert is_saved(saved)
    assert is_saved(str(saved))
    (file,) = saved.glob(missing)
    file.unlink()
    assert not is_saved(saved)


@pytest.mark.parametrize("limited", [False, True], ids=["alone", "in a limiter"])
@pytest.mark.parametrize("counted", [2, 4], ids=["count older", "count newer"])
def test_a_kill_between_tunes_files_makes_no_trial_more_and_none_fewer(
    counted: int, limited: bool, saved: Path
) -> None:
    def algorithm() -> SearchGenerator:
        searcher = new_searcher(SPACE)
        return SearchGenerator(ConcurrencyLimiter(searcher, 2) if limited else searcher)

    newest = algorithm()
    state = {"counter": counted, "total_samples": 9, "finished": False, "experiment": None}
    newest.set_state(state)
    newest.save_to_dir(str(saved), "9999")

    restored, other = algorithm(), SearchGenerator(new_searcher(SPACE))
    restored.restore_from_dir(str(saved))
    assert restored.get_state()["counter"] == 3
    other.set_state(newest.get_state())  # Tune's own way is back
    assert other.get_state()["counter"] == counted


def test_a_searcher_from_another_process_tells_ax_everything_anew() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1)
    wait_for_point(searcher, "a")
    searcher.on_trial_complete("a", result(BUDGET, 1.0))
    assert searcher.statuses() == {"a": "completed"}
    other = pickle.loads(pickle.dumps(searcher))  # noqa: S301  (our own)
    wait_for_point(other, "b")
    assert other.statuses() == {"a": "completed", "b": "running"}
