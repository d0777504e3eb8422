"""The searcher as Ray Tune drives it: real Tune runs of a cheap trainable, and Tune's calls."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from raymeta.errors import RunError
from raymeta.search import AxSearcher, Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.searcher import saved_records
from raymeta.search.space import Point

pytestmark = pytest.mark.ray

BUDGET = 3
SEM = 0.125
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
TIMEOUT_S = 120


class Fated(tune.Trainable):
    """Scores x · epoch, and fails as its configuration says in its second epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config, self._epoch = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        fate, score = self._config.get("fate"), self._config["x"] * self._epoch
        if self._epoch == 2:
            failed_before = Path(self._config["folder"]) / self.trial_id
            if fate == "error" or (fate == "flaky" and not failed_before.exists()):
                failed_before.touch()
                raise RuntimeError("as the configuration says")
            if fate == "nan":
                score = math.nan
        done = self._epoch >= BUDGET or math.isnan(score)
        return {"score": score, "score_sem": SEM, "epochs": self._epoch, "done": done}


class KillAx(tune.Callback):
    """Kills the Ax actor once, when so many trials have ended."""

    def __init__(self, searcher: AxSearcher, after: int) -> None:
        self.searcher, self.left = searcher, after

    def on_trial_complete(self, **_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            ray.kill(self.searcher._actor)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; an actor's handle is of no use there


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def new_searcher(parameters: list[Parameter], **settings: Any) -> AxSearcher:
    return AxSearcher(
        parameters,
        metric="score",
        mode="max",
        sem_metric="score_sem",
        step_metric="epochs",
        max_steps=BUDGET,
        **settings,
    )


def run_tune(
    searcher: AxSearcher, folder: Path, num_trials: int, *callbacks: tune.Callback
) -> tune.ResultGrid:
    """One trial at a time, under ASHA that halves after the first epoch; one retry a trial."""
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


def wait_for_point(searcher: AxSearcher, trial_id: str) -> Point:
    """Asks again and again, as Tune does."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        point = searcher.suggest(trial_id)
        if point is not None:
            assert isinstance(point, dict)
            return point
        time.sleep(0.05)
    pytest.fail("no point came")


def result(epoch: int, score: float) -> dict[str, Any]:
    return {"epochs": epoch, "score": score, "score_sem": SEM}


def known_to_ax(searcher: AxSearcher) -> list[tuple[float, ...]]:
    """Every (step, mean, standard error) that Ax was told, in the order of trials and steps."""
    call = searcher._actor.__ray_call__
    table = ray.get(call.remote(lambda ax: ax._model._client._experiment.lookup_data().full_df))
    table = table.sort_values(["trial_index", "step"])
    return list(table[["step", "mean", "sem"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fated")


@pytest.fixture(scope="module")
def searched(local_ray: None, folder: Path) -> AxSearcher:
    """After a Tune run whose first trials are `GIVEN`."""
    searcher = new_searcher(SPACE, num_sobol=4, points_to_evaluate=list(GIVEN.values()))
    results = run_tune(searcher, folder, NUM_TRIALS)
    assert len(results) == NUM_TRIALS
    return searcher


def given_records(searcher: AxSearcher) -> dict[str, TrialRecord]:
    """The records of `GIVEN` under its names."""
    records = dict(zip(GIVEN, searcher.records.values(), strict=False))
    assert {name: record.point for name, record in records.items()} == GIVEN
    return records


# ------------------------------------------------------------------- a whole Tune run


def test_every_trial_ends_as_what_it_was(searched: AxSearcher) -> None:
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


def test_means_and_standard_errors_reach_ax(searched: AxSearcher) -> None:
    told = [point for record in searched.records.values() for point in record.curve]
    assert known_to_ax(searched) == told


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
    results = run_tune(searcher, tmp_path, 50, KillAx(searcher, after=3))
    assert len(results) == len(searcher.records) == 5
    assert {record.point["x"] for record in searcher.records.values()} == {1, 2, 3, 4, 5}
    assert searcher.statuses() == {
        trial_id: record.status for trial_id, record in searcher.records.items()
    }
    told = [point for record in searcher.records.values() for point in record.curve]
    assert known_to_ax(searcher) == told


# ------------------------------------------------------------------- Tune's calls, one by one


def test_no_call_waits_for_ax() -> None:
    searcher = new_searcher([SPACE[0]], num_sobol=1)
    assert searcher.suggest("a") is None  # Ax is not even imported yet
    wait_for_point(searcher, "a")
    busy = searcher._actor.__ray_call__.remote(lambda _: time.sleep(4))
    searcher.on_trial_result("a", result(1, 0.5))
    answers = [searcher.suggest("b") for _ in range(3)]
    searcher.on_trial_complete("a", result(BUDGET, 0.7))
    answers += [searcher.suggest("b") for _ in range(3)]
    assert ray.wait([busy], timeout=0)[1], "a call has waited until Ax was free"
    assert answers == [None] * 6
    wait_for_point(searcher, "b")


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
    ray.kill(searcher._actor)
    searcher.on_trial_result("b", result(1, 2.0))  # nobody hears this
    wait_for_point(searcher, "c")
    assert searcher.statuses() == {"a": "completed", "b": "running", "c": "running"}
    assert known_to_ax(searcher) == [(BUDGET, 1.0, SEM), (1, 2.0, SEM)]
    assert searcher.records["c"].source == "bo"


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
    assert known_to_ax(restored) == [(BUDGET, 1.0, SEM), (1, 2.0, SEM), (BUDGET, 6.0, SEM)]


def test_state_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text('{"version": 0, "given": [], "records": {}}')
    with pytest.raises(RunError, match=r"state: searcher state of version 0"):
        new_searcher([SPACE[0]]).restore(str(path))


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
def test_an_end_is_told_from_result_error_and_budget(
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
