"""The Ax side of the search: proposals, what Ax is told, and a model rebuilt from records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from botorch.exceptions.errors import ModelFittingError

from raymeta.search.ax_model import AxModel
from raymeta.search.records import Source, Status, TrialRecord
from raymeta.search.space import Parameter, Point

METRIC = "val_accuracy"
RATE = Parameter(name="rate", low=1e-4, high=1, log=True)
UNIT = Parameter(name="x", low=0, high=1)
SPACE = [
    UNIT,
    RATE,
    Parameter(name="layers", low=1, high=4, integer=True),
    Parameter(name="width", low=8, high=64, step=8, integer=True),
    Parameter(name="dropout", low=0, high=0.5, step=0.125),
    Parameter(name="cell", choices=("rnn", "gru", "lstm")),
    Parameter(name="size", choices=(8, 16, 32)),
    Parameter(name="first_order", choices=(False, True)),
]
FEW = [Parameter(name="cell", choices=("rnn", "gru")), Parameter(name="layers", choices=(1, 2))]


def new_model(
    parameters: list[Parameter],
    *,
    mode: Any = "max",
    num_sobol: int = 3,
    seed: int = 0,
    history: dict[str, TrialRecord] | None = None,
) -> AxModel:
    return AxModel(parameters, METRIC, mode, num_sobol, seed, history or {})


def run_trials(
    model: AxModel, count: int, objective: Callable[[Point], float], prefix: str = "t"
) -> list[tuple[Point, Source]]:
    """So many trials one after another, each told Ax from beginning to end."""
    trials = []
    for number in range(count):
        proposal = model.propose()
        assert proposal is not None
        index, point, source = proposal
        model.adopt(f"{prefix}{number}", index)
        model.report(f"{prefix}{number}", 1, objective(point), 0.05)
        model.finish(f"{prefix}{number}", "completed")
        trials.append((point, source))
    return trials


def observations(model: AxModel) -> list[tuple[int, float, float, float]]:
    """All that Ax knows, as (trial_index, step, mean, standard error)."""
    table = model._client._experiment.lookup_data().full_df
    if table.empty:
        return []
    columns = [table[name].tolist() for name in ("trial_index", "step", "mean", "sem")]
    return sorted(zip(*columns, strict=True))


def in_space(parameter: Parameter, value: Any) -> bool:
    """Whether the value is of the very type and set that the parameter names."""
    if parameter.choices is not None:
        return any(value == c and type(value) is type(c) for c in parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if type(value) is not (int if parameter.integer else float):
        return False
    if parameter.step is not None and (value - parameter.low) % parameter.step:
        return False
    return parameter.low <= value <= parameter.high


def assert_in_space(point: Point) -> None:
    assert point.keys() == {parameter.name for parameter in SPACE}
    outside = [p.name for p in SPACE if not in_space(p, point[p.name])]
    assert not outside, f"{outside} of {point}"


def fails_to_fit(**_: Any) -> None:
    raise ModelFittingError("all attempts to fit the model have failed")


@pytest.fixture(scope="module")
def searched() -> tuple[AxModel, list[tuple[Point, Source]]]:
    """A search of six trials over every kind of parameter; large x and the LSTM are good."""
    model = new_model(SPACE)
    return model, run_trials(model, 6, lambda point: point["x"] + 0.3 * (point["cell"] == "lstm"))


def test_proposals_lie_in_the_space_in_type_and_value(
    searched: tuple[AxModel, list[tuple[Point, Source]]],
) -> None:
    for point, _ in searched[1]:
        assert_in_space(point)


def test_sobol_points_come_first_and_then_the_models(
    searched: tuple[AxModel, list[tuple[Point, Source]]],
) -> None:
    assert [source for _, source in searched[1]] == ["sobol"] * 3 + ["bo"] * 3


def test_points_from_outside_count_as_start_points() -> None:
    model = new_model([UNIT], num_sobol=2)
    model.attach("given", {"x": 0.5})
    model.report("given", 1, 0.5, 0.05)
    model.finish("given", "completed")
    sources = [source for _, source in run_trials(model, 2, lambda point: point["x"])]
    assert sources == ["sobol", "bo"]


@pytest.mark.parametrize(("mode", "optimum"), [("min", 0.0), ("max", 1.0)])
def test_the_model_goes_where_the_metric_is_best(mode: str, optimum: float) -> None:
    trials = run_trials(new_model([UNIT], mode=mode), 7, lambda point: point["x"])
    best_of_sobol = min(abs(p["x"] - optimum) for p, source in trials if source == "sobol")
    best_of_model = min(abs(p["x"] - optimum) for p, source in trials if source == "bo")
    assert best_of_model < min(0.05, best_of_sobol)


def test_a_log_range_is_searched_on_a_log_scale() -> None:
    rates = [p["rate"] for p, _ in run_trials(new_model([RATE], num_sobol=12), 8, lambda _: 0.5)]
    assert sum(rate < 0.01 for rate in rates) == 4  # the lower half of four decades


def test_the_seed_determines_the_proposals() -> None:
    first, again, other = (new_model(SPACE, seed=seed).propose() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("num_known", [0, 3], ids=["sobol", "bo"])
def test_proposals_without_results_yet_differ(num_known: int) -> None:
    model = new_model([UNIT])
    run_trials(model, num_known, lambda point: point["x"])
    proposals = [model.propose() for _ in range(3)]
    points = [proposal[1]["x"] for proposal in proposals if proposal is not None]
    assert len({round(x, 3) for x in points}) == 3


def test_a_curve_reaches_ax_with_means_and_standard_errors() -> None:
    model = new_model([UNIT])
    model.attach("a", {"x": 0.2})
    model.attach("b", {"x": 0.8})
    model.report("a", 10, 0.4, 0.02)
    model.report("b", 10, 0.5, 0.03)
    model.report("a", 20, 0.6, 0.01)
    assert observations(model) == [(0, 10, 0.4, 0.02), (0, 20, 0.6, 0.01), (1, 10, 0.5, 0.03)]


@pytest.mark.parametrize("sem", [None, math.nan, math.inf])
def test_an_unknown_standard_error_is_left_to_ax(sem: float | None) -> None:
    model = new_model([UNIT])
    model.attach("a", {"x": 0.2})
    model.report("a", 1, 0.4, sem)
    ((_, _, mean, known),) = observations(model)
    assert mean == 0.4
    assert math.isnan(known)


@pytest.mark.parametrize("mean", [math.nan, math.inf, -math.inf])
def test_an_observation_that_is_not_finite_is_refused(mean: float) -> None:
    model = new_model([UNIT])
    model.attach("a", {"x": 0.2})
    with pytest.raises(ValueError, match=f"must be finite, but got {mean}"):
        model.report("a", 1, mean, 0.1)
    assert observations(model) == []


def test_every_trial_has_in_ax_the_status_it_ended_with() -> None:
    model = new_model([UNIT])
    ends: list[Status] = ["completed", "early_stopped", "failed", "abandoned"]
    for number, status in enumerate(ends):
        model.attach(status, {"x": number / 4})
        model.report(status, 1, 0.5, 0.1)
        model.finish(status, status)
    model.attach("running", {"x": 1.0})
    assert model.statuses() == {status: status for status in [*ends, "running"]}
    with pytest.raises(ValueError, match="running"):
        model.finish("running", "running")


def test_an_exhausted_discrete_space_gives_none() -> None:
    model = new_model(FEW, num_sobol=2)
    points = [tuple(p.values()) for p, _ in run_trials(model, 4, lambda point: point["layers"])]
    assert len(set(points)) == 4
    assert model.propose() is None


def test_a_model_rebuilt_from_records_knows_everything() -> None:
    records = {
        "a": TrialRecord({"x": 0.1}, "given", "completed", [(1, 0.1, 0.02), (2, 0.2, 0.01)]),
        "b": TrialRecord({"x": 0.5}, "sobol", "early_stopped", [(1, 0.5, 0.03)]),
        "c": TrialRecord({"x": 0.6}, "sobol", "failed"),
        "d": TrialRecord({"x": 0.7}, "sobol", "abandoned", [(1, 0.3, None)]),
        "e": TrialRecord({"x": 0.9}, "bo", "running", [(1, 0.9, 0.05)]),
    }
    model = new_model([UNIT], history=records)
    assert model.statuses() == {trial_id: record.status for trial_id, record in records.items()}
    told = [(i, *point) for i, r in enumerate(records.values()) for point in r.curve]
    known = observations(model)
    assert [row[:3] for row in known] == [row[:3] for row in told]
    assert [row[3] for row in known if not math.isnan(row[3])] == [0.02, 0.01, 0.03, 0.05]
    # A trial that was running goes on.
    model.report("e", 2, 0.95, 0.05)
    model.finish("e", "completed")
    assert model.statuses()["e"] == "completed"


def test_a_rebuilt_model_goes_on_where_the_first_one_was() -> None:
    model = new_model([UNIT])
    trials = run_trials(model, 3, lambda point: point["x"])
    records = {
        f"t{i}": TrialRecord(point, "sobol", "completed", [(1, point["x"], 0.05)])
        for i, (point, _) in enumerate(trials)
    }
    proposal = new_model([UNIT], history=records).propose()
    assert proposal is not None
    assert proposal[2] == "bo"


def test_a_rebuilt_model_repeats_no_sobol_point() -> None:
    first = run_trials(new_model(SPACE, num_sobol=6), 2, lambda point: point["x"])
    records = {
        f"t{i}": TrialRecord(point, "sobol", "completed", [(1, point["x"], 0.05)])
        for i, (point, _) in enumerate(first)
    }
    rebuilt = new_model(SPACE, num_sobol=6, history=records)
    rates = [p["rate"] for p, _ in [*first, *run_trials(rebuilt, 2, lambda p: p["x"], "later")]]
    assert len(set(rates)) == 4


def test_an_exhausted_space_is_seen_by_a_rebuilt_model() -> None:
    records = {
        f"{cell}{layers}": TrialRecord(
            {"cell": cell, "layers": layers}, "sobol", "completed", [(1, layers, 0.1)]
        )
        for cell in ("rnn", "gru")
        for layers in (1, 2)
    }
    assert new_model(FEW, num_sobol=2, history=records).propose() is None


def test_where_the_model_fails_random_points_of_the_space_are_proposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model(SPACE)
    monkeypatch.setattr(model._client, "get_next_trials", fails_to_fit)
    points = []
    for number in range(40):
        proposal = model.propose()
        assert proposal is not None
        index, point, source = proposal
        assert source == "random"
        assert_in_space(point)
        points.append(point)
        model.adopt(str(number), index)
    assert set(model.statuses().values()) == {"running"}  # Ax knows of them
    for parameter in SPACE:
        assert len({point[parameter.name] for point in points}) > 1, parameter.name
    assert 10 <= sum(point["rate"] < 0.01 for point in points) <= 30


def test_a_search_goes_on_after_a_random_point(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model([UNIT])
    run_trials(model, 3, lambda point: point["x"])
    with monkeypatch.context() as broken:
        broken.setattr(model._client, "get_next_trials", fails_to_fit)
        ((_, source),) = run_trials(model, 1, lambda point: point["x"], "broken")
    assert source == "random"
    ((_, source),) = run_trials(model, 1, lambda point: point["x"], "later")
    assert source == "bo"
    assert len(model.statuses()) == len(observations(model)) == 5
