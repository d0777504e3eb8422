"""Any use of the searcher by users of Ray Tune, through `Tuner.fit` and `Tuner.restore`.

Most points are given, so that no process of Ax has to start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ax.api.client import Client
from botorch.exceptions.errors import ModelFittingError
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from raymeta.errors import RunError, SearchError
from raymeta.search import AxSearcher, Parameter
from raymeta.search.ax_process import AxProcess
from tests.search.helpers import StopDriver, fit, local_ray, run_ax_here, saved_state
from tests.search.trainables import SCORE, Color, Level, Limited, Opt, Reported

pytestmark = [pytest.mark.ray, pytest.mark.slow]

XS = (0.25, 0.75)
GIVEN = [{"x": x} for x in XS]


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


@dataclass
class Sizes:
    width: Any


# ------------------------------------------------------------------- every way to configure it

SPACES: dict[str, Any] = {
    "parameters": ([Parameter(name="x", low=0, high=1)], {"more": 3}),
    "a space of Tune's": ({"x": tune.uniform(0, 1), "more": 3}, None),
    "the Tuner's param_space": (None, {"x": tune.uniform(0, 1), "more": 3}),
}
WRAPPERS: dict[str, Callable[[Searcher], Searcher]] = {
    "alone": lambda searcher: searcher,
    "limited": lambda searcher: ConcurrencyLimiter(searcher, 1),
    "repeated": lambda searcher: Repeater(searcher, repeat=2),
    "repeated and limited": lambda searcher: ConcurrencyLimiter(Repeater(searcher, repeat=2), 2),
}


BUDGET = {"step_metric": "epoch", "max_steps": 9}


@pytest.mark.parametrize(
    ("spaces", "wrapper", "steps"),
    [
        ("parameters", "limited", {}),
        ("a space of Tune's", "alone", BUDGET),
        ("the Tuner's param_space", "repeated", {}),
        ("the Tuner's param_space", "repeated and limited", BUDGET),
    ],
)
def test_every_trial_is_learned_from(
    spaces: str, wrapper: str, steps: dict[str, Any], tmp_path: Path
) -> None:
    space, param_space = SPACES[spaces]
    searcher = AxSearcher(space, points_to_evaluate=GIVEN, **steps)
    repeats = 2 if wrapper.startswith("repeated") else 1
    results = fit(WRAPPERS[wrapper](searcher), tmp_path, param_space, repeats * len(GIVEN))
    assert not results.errors
    assert all(result.config is not None and result.config["more"] == 3 for result in results)
    found = {(r.status, r.point["x"], r.curve[-1][1]) for r in searcher.records.values()}
    assert found == {("completed", x, x) for x in XS}
    assert len(searcher.records) == len(XS)


def test_several_metrics_are_learned_from(tmp_path: Path) -> None:
    searcher = AxSearcher(
        metric=["loss", "cost"], mode=["min", "max"], points_to_evaluate=GIVEN, num_sobol=2
    )
    fit(searcher, tmp_path, {"x": tune.uniform(0, 1)}, metric=None, mode=None)
    found = [r.others["cost"][-1][1] for r in searcher.records.values()]
    assert sorted(found) == [2 * x for x in XS]


def test_ax_is_asked_nothing_where_no_trial_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    call = AxProcess._call

    def counted(process: AxProcess, method: str, *arguments: Any) -> Any:
        asked.append(method)
        return call(process, method, *arguments)

    monkeypatch.setattr(AxProcess, "_call", counted)
    searcher = AxSearcher(points_to_evaluate=GIVEN)
    fit(searcher, tmp_path, {"x": tune.uniform(0, 1)})
    assert [record.status for record in searcher.records.values()] == ["completed"] * 2
    assert not asked


# ------------------------------------------------------------------- the model


def test_a_moved_search_goes_on_away_from_the_region_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metric, parameters and constraint have names that a parser of formulas knows."""
    run_ax_here(monkeypatch)
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    space = {"beta": tune.uniform(0, 1), "test": tune.uniform(0, 1)}
    given = [{"beta": x, "test": 0.5} for x in (0.95, 0.8, 0.05, 0.2, 0.4, 0.6)]
    searcher = AxSearcher(
        points_to_evaluate=given,
        num_sobol=4,
        constraints=["beta + test <= 1.5"],
        outcome_constraints=["acc% <= 0.99"],
    )
    with pytest.raises(InterruptedError):
        fit(
            searcher,
            tmp_path,
            space,
            num_samples=8,
            callbacks=(StopDriver(after=4),),
            metric=SCORE,
            mode="max",
            trainable=Limited,
            max_concurrent_trials=1,
        )
    saved_state(tmp_path / "tune", num_ended=6)
    moved = (tmp_path / "tune").rename(tmp_path / "moved")
    results = tune.Tuner.restore(str(moved), Limited).fit()

    assert len(results) == 8
    assert len(results.errors) == 2
    assert not (tmp_path / "tune").exists()
    state = json.loads(max(moved.glob("searcher-state-*")).read_text())
    records = list(state["records"].values())
    assert [record["status"] for record in records] == ["failed"] * 2 + ["completed"] * 6
    assert [record["source"] for record in records] == ["given"] * 6 + ["bo"] * 2
    points = [record["point"] for record in records]
    assert all(point["beta"] + point["test"] <= 1.5 for point in points)
    assert not any(point in points[:2] for point in points[2:])  # what failed


@pytest.mark.parametrize("method", ["random", "sobol", "bo"])
def test_wide_ranges_and_tight_constraints_are_searched(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ax_here(monkeypatch)
    fractions = ["x", *(f"f-{number}" for number in range(9))]
    space = {
        **{name: tune.uniform(0, 1) for name in fractions},
        "wide": tune.randint(1, 10**9),
        "rate": tune.loguniform(1e-9, 1),
    }
    constraints = [" + ".join(fractions) + " <= 1"]
    searcher = AxSearcher(method=method, num_sobol=2, constraints=constraints)
    results = fit(searcher, tmp_path, space, 4)
    assert not results.errors
    records = searcher.records.values()
    assert [record.status for record in records] == ["completed"] * 4
    assert [record.source for record in records][2:] == [method] * 2
    for result in results:
        assert result.config is not None
        assert sum(result.config[name] for name in fractions) <= 1 + 1e-9


def test_a_model_that_always_fails_ends_the_search_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_ax_here(monkeypatch)

    def fails(*_: Any, **__: Any) -> None:
        raise ModelFittingError("all attempts failed")

    monkeypatch.setattr(Client, "get_next_trials", fails)
    searcher = AxSearcher(points_to_evaluate=GIVEN, num_sobol=2)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(SearchError, match=r"failed 3 times in a row.*ModelFittingError: all att"),
    ):
        fit(searcher, tmp_path, {"x": tune.uniform(0, 1)}, 9, max_concurrent_trials=1)
    sources = [record.source for record in searcher.records.values()]
    assert sources == ["given"] * 2 + ["fallback"] * 2
    reasons = [record.reason for record in searcher.records.values()]
    assert reasons == [""] * 2 + ["ModelFittingError: all attempts failed"] * 2
    assert sum("source `fallback`" in message for message in caplog.messages) == 1


# ------------------------------------------------------------------- restoring


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs a search as README shows; its driver ends after two of four trials."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    space = {"x": tune.uniform(0, 1), "opt": tune.choice([Opt.ADAM, Opt.SGD]), "more": 3}
    given = [{"x": x, "opt": "sgd"} for x in (0.25, 0.5, 0.625, 0.75)]
    with pytest.raises(InterruptedError):
        fit(
            AxSearcher(num_sobol=2, points_to_evaluate=given),
            tmp_path,
            space,
            num_samples=4,
            callbacks=(StopDriver(after=2),),
            max_concurrent_trials=1,
        )
    saved_state(tmp_path / "tune")
    return tmp_path / "tune"


def test_restore_needs_only_the_trainable(interrupted: Path) -> None:
    tuner = tune.Tuner.restore(str(interrupted), Reported)
    results = tuner.fit()
    assert len(results) == 4
    assert not results.errors
    assert {result.config["x"] for result in results if result.config} == {0.25, 0.5, 0.625, 0.75}
    kinds = [json.loads(result.metrics["kinds"]) for result in results if result.metrics]
    assert {kind["opt"] for kind in kinds} == {"Opt"}  # the members themselves
    assert results.get_best_result().config["x"] == 0.25
    state = json.loads(max(interrupted.glob("searcher-state-*")).read_text())
    assert [record["status"] for record in state["records"].values()] == ["completed"] * 4


def test_a_trial_that_only_tune_remembers_is_learned_from(interrupted: Path) -> None:
    (file,) = interrupted.glob("searcher-state-*")
    state = json.loads(file.read_text())
    first = next(iter(state["records"]))
    expected = state["records"].pop(first)
    file.write_text(json.dumps(state))
    tune.Tuner.restore(str(interrupted), Reported).fit()
    state = json.loads(max(interrupted.glob("searcher-state-*")).read_text())
    found = state["records"][first]
    assert found.pop("began_s") is None  # a time of its own would be taken for how long it took
    assert expected.pop("began_s") is not None
    assert found.pop("latest_s") >= expected.pop("latest_s")
    assert found == expected


@pytest.mark.parametrize("content", [b"", b'{"version": 3, "rec'])
def test_a_damaged_state_ends_the_search_and_stays(interrupted: Path, content: bytes) -> None:
    (file,) = interrupted.glob("searcher-state-*")
    file.write_bytes(content)
    tuner = tune.Tuner.restore(str(interrupted), Reported)
    with pytest.raises(RunError, match="the state of the search is damaged"):
        tuner.fit()
    assert file.read_bytes() == content
    assert list(interrupted.glob("searcher-state-*")) == [file]


def test_restore_with_another_range_is_refused(interrupted: Path) -> None:
    wider = {"x": tune.uniform(0, 9), "opt": tune.choice([Opt.ADAM, Opt.SGD]), "more": 3}
    tuner = tune.Tuner.restore(str(interrupted), Reported, param_space=wider)
    with pytest.raises(SearchError, match="belongs to a search of another space"):
        tuner.fit()


def test_restoring_asks_for_objects_that_tune_does_not_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    space = {"x": tune.uniform(0, 1), "wrap": np.float64}
    searcher = AxSearcher(points_to_evaluate=[*GIVEN, *GIVEN])
    stop = (StopDriver(after=1),)
    with pytest.raises(InterruptedError):
        fit(searcher, tmp_path, space, 4, stop, max_concurrent_trials=1)
    path = str(tmp_path / "tune")
    tuner = tune.Tuner.restore(path, Reported)
    with pytest.raises(SearchError, match=r"does not save the objects in param_space \(wrap\)"):
        tuner.fit()
    results = tune.Tuner.restore(path, Reported, param_space=space).fit()
    assert len(results) == 4


# ------------------------------------------------------------------- what is refused

PARAMETERS = [Parameter(name="x", low=0, high=1)]


@pytest.mark.parametrize(
    ("searcher", "space", "message"),
    [
        ({}, {"x": tune.uniform(2, 3)}, r"param_space holds domains \(x\)"),
        ({}, {"y": tune.uniform(0, 1)}, r"param_space holds domains \(y\)"),
        ({}, {"x": 0.5}, "param_space holds x, which the searcher's own space holds, too"),
        ({"metric": "loss", "mode": "max"}, {"a": 1}, "Tuner's mode for loss is min, but the sea"),
        ({"metric": "loss", "mode": "max"}, None, "Tuner's mode for loss is min, but the searche"),
        ({"metric": "cost", "mode": "min"}, None, "Tuner's metric is loss, but the searcher opti"),
    ],
)
def test_a_searcher_that_contradicts_the_tuner_is_refused(
    searcher: dict[str, Any], space: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match=message):
        fit(AxSearcher(PARAMETERS, points_to_evaluate=GIVEN, **searcher), tmp_path, space)


def test_another_param_space_for_the_same_searcher_is_refused(tmp_path: Path) -> None:
    searcher = AxSearcher(points_to_evaluate=GIVEN)
    fit(searcher, tmp_path / "first", {"x": tune.uniform(0, 1)})
    with pytest.raises(SearchError, match="make a new AxSearcher for a new param_space"):
        fit(searcher, tmp_path / "second", {"x": tune.uniform(0, 2)})


def objects(*values: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


UNIFORM = tune.uniform(0, 1)
SAMPLED = tune.sample_from(lambda _: 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([UNIFORM, 1], r"y\[0\]: a Float domain within a list"),
        ((1, UNIFORM), r"y\[1\]: a Float domain within a tuple"),
        ([[1], [tune.randint(1, 9)]], r"y\[1\]\[0\]: a Integer domain within a list"),
        ([{"a": UNIFORM}], r"y\[0\]/a: a Float domain within a list"),
        ({"a": [UNIFORM]}, r"y/a\[0\]: a Float domain within a list"),
        ({UNIFORM}, r"y\[0\]: a Float domain within a set"),
        (Sizes(UNIFORM), r"y.width: a Float domain within a Sizes"),
        (Sizes([UNIFORM]), r"y.width\[0\]: a Float domain within a Sizes"),
        (objects(UNIFORM, 1), r"y\[0\]: a Float domain within a ndarray"),
        (SAMPLED, "y: tune.sample_from has no bounds"),
        ([SAMPLED], r"y\[0\]: tune.sample_from has no bounds"),
        (tune.choice([UNIFORM, 1]), "y: tune.choice over Float cannot be searched"),
        (tune.choice([Sizes(1), Sizes(2)]), "y: tune.choice over Sizes cannot be searched"),
        (tune.choice([]), "y: tune.choice must have 1 to 1000 values, but got 0"),
        (tune.choice(list(range(1001))), "y: tune.choice must have 1 to 1000 values"),
        (tune.choice([1.0, float("nan")]), "y: a choice must be finite, but got nan"),
        (tune.grid_search([1, 2]), "y: tune.grid_search tries all values by itself"),
        (tune.uniform(1, 0), "y: there is no value between 1 and 0"),
    ],
    # Not by `str`: objects print addresses, which differ from one process to the next.
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_searched_is_refused_before_a_trial_begins(
    value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match=message) as caught:
        fit(AxSearcher(), tmp_path, {"x": tune.uniform(0, 1), "y": value})
    assert len(str(caught.value)) < 1500


# ------------------------------------------------------------------- what is accepted


def test_enums_and_none_reach_the_trainable_as_they_are(tmp_path: Path) -> None:
    space = {
        "x": tune.uniform(0, 1),
        "opt": tune.choice([Opt.ADAM, Opt.SGD]),
        "level": tune.choice([Level.LOW, Level.HIGH]),
        "color": tune.choice(list(Color)),
        "clip": tune.choice([None, 0.5]),
        "width": tune.choice(np.array([8, 16])),
    }
    given = [
        {"x": 0.25, "opt": Opt.SGD, "level": 2, "color": "RED", "clip": None, "width": np.int64(8)},
        {
            "x": 0.75,
            "opt": "adam",
            "level": Level.LOW,
            "color": Color.BLUE,
            "clip": 0.5,
            "width": 16.0,
        },
    ]
    results = fit(AxSearcher(points_to_evaluate=given), tmp_path, space)
    found = {r.config["x"]: r for r in results if r.config is not None}
    expected: dict[float, dict[str, Any]] = {
        0.25: {"opt": Opt.SGD, "level": Level.HIGH, "color": Color.RED, "clip": None, "width": 8},
        0.75: {"opt": Opt.ADAM, "level": Level.LOW, "color": Color.BLUE, "clip": 0.5, "width": 16},
    }
    for x, values in expected.items():
        config, metrics = found[x].config, found[x].metrics
        assert config is not None
        assert metrics is not None
        assert {name: config[name] for name in values} == values
        kinds = json.loads(metrics["kinds"])
        assert (kinds["opt"], kinds["level"]) == ("Opt", "Level")
        assert kinds["color"] == "Color"
        assert kinds["clip"] in ("NoneType", "float")


def test_the_config_of_a_result_can_be_tried_first_in_another_search(tmp_path: Path) -> None:
    space = {"net": {"width": tune.choice([0, 0.5])}, "x": tune.uniform(0, 1), "data": objects(1)}
    given = [{"net": {"width": 0}, "x": 0.25}]
    (first,) = fit(AxSearcher(points_to_evaluate=given), tmp_path / "a", space, 1)
    assert first.config is not None
    searcher = AxSearcher(points_to_evaluate=[first.config])
    fit(searcher, tmp_path / "b", space, 1)
    (record,) = searcher.records.values()
    assert record.point == {"net/width": 0.0, "x": 0.25}


def test_an_array_of_one_element_is_a_metric(tmp_path: Path) -> None:
    def wrap(x: float) -> Any:
        return np.array([x]) if x < 0.5 else torch.tensor([[x]])

    searcher = AxSearcher(points_to_evaluate=GIVEN)
    fit(searcher, tmp_path, {"x": tune.uniform(0, 1), "wrap": wrap})
    found = {(r.status, r.curve[-1][1]) for r in searcher.records.values()}
    assert found == {("completed", x) for x in XS}


def test_a_metric_that_is_no_number_ends_the_search(tmp_path: Path) -> None:
    searcher = AxSearcher(points_to_evaluate=GIVEN)
    space = {"x": tune.uniform(0, 1), "wrap": lambda x: [x]}
    with pytest.raises(SearchError, match=r"loss is \[0.25\] \(list\)"):
        fit(searcher, tmp_path, space, max_concurrent_trials=1)


def test_trials_whose_metric_is_nan_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = AxSearcher(points_to_evaluate=GIVEN)
    with caplog.at_level(logging.WARNING):
        fit(searcher, tmp_path, {"x": tune.uniform(0, 1), "wrap": lambda _: float("nan")})
    assert {record.status for record in searcher.records.values()} == {"abandoned"}
    told = [message for message in caplog.messages if "no usable value" in message]
    assert ["loss is nan; so far 1 of" in told[0], "so far 2 of" in told[1]] == [True, True]


def test_a_searcher_goes_on_in_a_new_ray_session(tmp_path: Path) -> None:
    """Runs last in this module: it ends the Ray that the others share."""
    searcher = AxSearcher(method="random")
    space = {"x": tune.uniform(0, 1)}
    fit(searcher, tmp_path / "first", space)
    ray.shutdown()
    with local_ray(num_cpus=2):
        fit(searcher, tmp_path / "second", space)
        assert [record.status for record in searcher.records.values()] == ["completed"] * 4
        assert set(searcher.statuses().values()) == {"completed"}
