"""The Ax side of the search: proposals, what Ax is told, and a model rebuilt from records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import pytest
from ax.core.trial_status import TrialStatus
from ax.generators.torch.botorch_modular import acquisition
from botorch.exceptions.errors import ModelFittingError
from botorch.optim.optimize import optimize_acqf

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.records import Curve, Source, Status, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space

pytestmark = pytest.mark.slow  # each fits models

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
    parameters: Sequence[Parameter],
    *,
    mode: Any = "max",
    records: dict[str, TrialRecord] | None = None,
    constraints: tuple[str, ...] = (),
    earlier: Sequence[TrialRecord] = (),
    **settings: Any,
) -> AxModel:
    chosen = {"objectives": ((METRIC, mode),), "num_sobol": 3, **settings}
    space = Space(tuple(parameters), constraints)
    model = AxModel(space, SearchSettings(**chosen), earlier)
    model.learn(records or {})
    return model


def run_trials(
    model: AxModel, count: int, objective: Callable[[Point], float], prefix: str = "t"
) -> list[tuple[Point, Source]]:
    """Runs trials one after another, and tells Ax about each."""
    trials = []
    for number in range(count):
        proposal = model.propose({})
        assert proposal is not None
        point, source = proposal.point, proposal.source
        model.learn({f"{prefix}{number}": finished(point, objective(point), source)})
        trials.append((point, source))
    return trials


def finished(point: Point, value: float, source: Source = "sobol") -> TrialRecord:
    """Makes a trial that finished in one step."""
    return TrialRecord(point, source, "completed", [(1, value, 0.05)])


def observations(model: AxModel) -> list[tuple[str, float, float]]:
    """Returns Ax's data of the optimised metric: trial_id, mean, standard error."""
    table = model._client._experiment.lookup_data().full_df
    if table.empty:
        return []
    names = {index: trial_id for trial_id, index in model._indices.items()}
    table = table[table["metric_name"] == model.ax_space.metrics[METRIC]]
    rows = zip(table["trial_index"], table["mean"], table["sem"], strict=True)
    return sorted((names[index], mean, sem) for index, mean, sem in rows)


def in_space(parameter: Parameter, value: Any) -> bool:
    """Tells whether a value has the parameter's type and lies in its set."""
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
    """Runs six trials over every kind of parameter; large x and the LSTM are good."""
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
    model = new_model([UNIT], num_sobol=2, records={"given": finished({"x": 0.5}, 0.5)})
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
    first, again, other = (new_model(SPACE, seed=seed).propose({}) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32, 2**64 - 1])
def test_every_seed_of_an_experiment_is_one_of_the_search(seed: int) -> None:
    trials = run_trials(new_model([UNIT], num_sobol=2, seed=seed), 3, lambda point: point["x"])
    assert [source for _, source in trials] == ["sobol", "sobol", "bo"]


@pytest.mark.parametrize("num_known", [0, 3], ids=["sobol", "bo"])
def test_proposals_for_trials_without_results_yet_differ(num_known: int) -> None:
    model = new_model([UNIT])
    run_trials(model, num_known, lambda point: point["x"])
    points: list[float] = []
    changes: dict[str, TrialRecord] = {}
    for number in range(3):
        proposal = model.propose(changes)
        assert proposal is not None
        points.append(proposal.point["x"])
        changes = {f"running {number}": TrialRecord(proposal.point, proposal.source)}
    assert len({round(x, 3) for x in points}) == 3


def test_a_proposal_that_no_trial_takes_up_is_forgotten() -> None:
    model = new_model([UNIT])
    run_trials(model, 3, lambda point: point["x"])
    first, again = model.propose({}), model.propose({})
    assert first is not None
    assert again is not None
    # Were the first one pending, the second would keep away from it.
    assert again.point["x"] == pytest.approx(first.point["x"], abs=0.02)
    assert len(model.statuses()) == 3


@pytest.mark.parametrize("sem", [None, 0.05])
def test_the_standard_error_is_used_where_all_have_one(sem: float | None) -> None:
    records = {"a": finished({"x": 0.2}, 0.4)}
    model = new_model([UNIT], records=records)
    assert observations(model) == [("a", 0.4, 0.05)]
    model.learn({"b": TrialRecord({"x": 0.8}, "sobol", "completed", [(1, 0.5, sem)])})
    known = observations(model)
    assert [row[:2] for row in known] == [("a", 0.4), ("b", 0.5)]
    assert [math.isnan(row[2]) for row in known] == [sem is None] * 2
    assert run_trials(model, 2, lambda point: point["x"])[-1][1] == "bo"


def test_every_trial_has_in_ax_the_status_it_ended_with() -> None:
    records = records_of_every_end()
    model = new_model(
        [UNIT], records={i: TrialRecord(r.point, r.source) for i, r in records.items()}
    )
    assert set(model.statuses().values()) == {"running"}
    model.learn(records)
    assert model.statuses() == {trial_id: record.status for trial_id, record in records.items()}
    rebuilt = new_model([UNIT], records=records)
    assert rebuilt.statuses() == model.statuses()
    assert observations(rebuilt) == observations(model) == [("completed", 0.2, 0.01)]


def records_of_every_end() -> dict[str, TrialRecord]:
    curve: Curve = [(1, 0.1, 0.02), (2, 0.2, 0.01)]
    ends: list[Status] = ["completed", "early_stopped", "failed", "abandoned", "running"]
    return {
        status: TrialRecord({"x": number / 8}, "given", status, curve[: 2 - number % 2])
        for number, status in enumerate(ends)
    }


def test_a_failed_trial_that_runs_again_may_complete() -> None:
    records = records_of_every_end()
    model = new_model([UNIT], records=records)
    again = TrialRecord(records["failed"].point, "given", "running", records["failed"].curve)
    model.learn({"failed": again})
    assert model.statuses() == {i: r.status for i, r in records.items()} | {"failed": "running"}
    model.learn({"failed": finished(again.point, 0.7)})
    assert observations(model) == [("completed", 0.2, 0.01), ("failed", 0.7, 0.05)]


# ------------------------------------------------------------------- trials stopped early


def stopped_and_finished(gain: float = 0.3) -> dict[str, TrialRecord]:
    """Makes trials that gain about equally between two steps, and a stopped one."""
    records = {}
    for number, x in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        late = x + gain + 0.01 * (-1) ** number
        curve: Curve = [(10, x, 0.02), (20, late, 0.02)]
        records[f"t{number}"] = TrialRecord({"x": x}, "sobol", "completed", curve)
    records["stopped"] = TrialRecord({"x": 0.4}, "sobol", "early_stopped", [(10, 0.4, 0.02)])
    return records


def test_a_stopped_trial_counts_with_its_estimated_final_value() -> None:
    model = new_model([UNIT], records=stopped_and_finished())
    model.propose({})
    ((_, mean, sem),) = [row for row in observations(model) if row[0] == "stopped"]
    assert mean == pytest.approx(0.7, abs=0.02)
    assert 0.01 < sem < 0.1  # less certain than one that was measured


def test_the_estimate_changes_with_later_results() -> None:
    records = stopped_and_finished()
    model = new_model([UNIT], records={k: records[k] for k in ("t0", "t1", "stopped")})
    model.propose({})
    ((_, _, few),) = [row for row in observations(model) if row[0] == "stopped"]
    model.propose(records)
    ((_, _, many),) = [row for row in observations(model) if row[0] == "stopped"]
    assert many != few


@pytest.mark.parametrize("reason", ["ignored", "too few"])
def test_a_low_budget_value_is_never_passed_off_as_a_final_one(reason: str) -> None:
    records = stopped_and_finished()
    if reason == "too few":
        records = {name: records[name] for name in ("t0", "stopped")}
    curves = "ignore" if reason == "ignored" else "extrapolate"
    model = new_model([UNIT], records=records, curves=curves)
    model.propose({})
    assert "stopped" not in [name for name, _, _ in observations(model)]
    assert model.statuses()["stopped"] == "early_stopped"


# ------------------------------------------------------------------- spaces


CONDITIONAL = [
    Parameter(name="cell", choices=("rnn", "gru", "lstm")),
    Parameter(name="gate", low=0, high=2, when=("cell", ("gru", "lstm"))),
    Parameter(name="x", low=0, high=1),
]


def test_a_conditional_parameter_exists_only_under_its_condition() -> None:
    model = new_model(CONDITIONAL)
    trials = run_trials(model, 8, lambda p: p["x"] + p.get("gate", 0.0))
    for point, _ in trials:
        assert ("gate" in point) == (point["cell"] != "rnn")
    assert {"gate" in point for point, _ in trials} == {False, True}
    best = max((point for point, _ in trials), key=lambda p: p["x"] + p.get("gate", 0.0))
    assert best["cell"] != "rnn"
    assert [source for _, source in trials][3:] == ["bo"] * 5


@pytest.mark.parametrize("method", ["bo", "sobol", "random"])
def test_a_discrete_space_with_conditions_is_tried_whole_and_no_point_twice(method: str) -> None:
    space = [
        Parameter(name="cell", choices=("rnn", "lstm")),
        Parameter(name="forget", low=1, high=3, integer=True, when=("cell", ("lstm",))),
    ]
    model = new_model(space, method=method)
    trials = run_trials(model, 4, lambda point: float(point.get("forget", 0)))
    points = sorted((point["cell"], point.get("forget")) for point, _ in trials)
    assert points == [("lstm", 1), ("lstm", 2), ("lstm", 3), ("rnn", None)]
    assert model.propose({}) is None


def test_a_point_on_a_step_counts_as_tried_however_it_was_written() -> None:
    steps = [Parameter(name="x", low=0.1, high=0.4, step=0.1)]
    model = new_model(steps, records={"given": finished({"x": 0.3}, 1.0, "given")})
    points = [point["x"] for point, _ in run_trials(model, 3, lambda point: point["x"])]
    assert sorted(points) == pytest.approx([0.1, 0.2, 0.4])
    assert model.propose({}) is None


def test_whole_numbers_stand_for_real_ones_and_the_other_way_round() -> None:
    space = [
        Parameter(name="kind", choices=("plain", "stepped")),
        Parameter(name="x", low=1, high=3, step=0.5, when=("kind", ("stepped",))),
        Parameter(name="n", low=1, high=9, integer=True),
    ]
    model = new_model(space)
    points: list[Point] = [{"kind": "plain", "n": 2.0}, {"kind": "stepped", "x": 2, "n": 3}]
    model.learn({str(i): finished(point, 1.0) for i, point in enumerate(points)})
    assert set(model.statuses().values()) == {"completed"}


def test_a_wide_range_of_whole_numbers_is_searched_at_once() -> None:
    model = new_model([Parameter(name="n", low=1, high=10**15, integer=True, log=True)])
    for point, _ in run_trials(model, 4, lambda point: math.log(point["n"])):
        assert type(point["n"]) is int


@pytest.mark.parametrize("values", [[0.5] * 5, [1e-9, 1.0, 1e6, 3.0, 1e12]])
def test_the_model_takes_equal_values_and_huge_ones(values: list[float]) -> None:
    rest = iter(values)
    trials = run_trials(new_model([UNIT]), 5, lambda _: next(rest))
    assert [source for _, source in trials] == ["sobol"] * 3 + ["bo"] * 2


def test_several_proposals_know_of_each_other_and_are_not_pending_later() -> None:
    model = new_model([UNIT])
    run_trials(model, 4, lambda point: -((point["x"] - 0.3) ** 2))
    several = model.propose_several({}, 3)
    assert [proposal.source for proposal in several] == ["bo"] * 3
    places = sorted(proposal.point["x"] for proposal in several)
    assert min(b - a for a, b in itertools.pairwise(places)) > 1e-3
    assert not model._client._experiment.trial_indices_by_status[TrialStatus.RUNNING]
    assert len(model.statuses()) == 4
    discrete = new_model([Parameter(name="n", low=1, high=3, integer=True)])
    points = [proposal.point["n"] for proposal in discrete.propose_several({}, 5)]
    assert sorted(points) == [1, 2, 3]
    assert discrete.propose({}) is not None  # none of them has been tried


def test_many_proposals_at_once_are_searched_for_less_and_the_next_one_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model([UNIT])
    run_trials(model, 4, lambda point: -((point["x"] - 0.3) ** 2))
    efforts: list[tuple[int, int]] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        efforts.append((kwargs["num_restarts"], kwargs["raw_samples"]))
        return optimize_acqf(*args, **kwargs)

    monkeypatch.setattr(acquisition, "optimize_acqf", noted)
    assert len(model.propose_several({}, 16)) == 16
    (quick,) = set(efforts)
    efforts.clear()
    model.propose_several({}, 1)
    (whole,) = efforts
    assert quick < whole


@pytest.mark.parametrize("method", ["bo", "sobol", "random"])
def test_linear_constraints_hold_for_every_proposal(method: str) -> None:
    parameters = [Parameter(name=name, low=0, high=1) for name in ("a/x", "b.y")]
    model = new_model(parameters, constraints=("a/x + 2 * b.y <= 1",), method=method)
    trials = run_trials(model, 6, lambda point: point["a/x"] + 3 * point["b.y"])
    for point, _ in trials:
        assert point["a/x"] + 2 * point["b.y"] <= 1 + 1e-6
    assert {source for _, source in trials} <= {method, "sobol"}


def test_steps_hold_on_a_log_scale_and_where_they_are_many() -> None:
    parameters = [
        Parameter(name="rate", low=0.001, high=1, step=0.001, log=True),
        Parameter(name="many", low=0, high=1000, step=4, integer=True),
    ]
    model = new_model(parameters)
    for point, _ in run_trials(model, 5, lambda point: point["rate"]):
        assert point["rate"] * 1000 == pytest.approx(round(point["rate"] * 1000))
        assert type(point["many"]) is int
        assert point["many"] % 4 == 0
    # Ax knows the points that were tried, not those before rounding.
    known = model._client._experiment.trials
    tried = [known[index].arm.parameters for index in model._indices.values()]
    assert tried == [model.ax_space.to_ax(record.point) for record in model._records.values()]


# ------------------------------------------------------------------- objectives and methods


def test_several_objectives_are_searched_to_their_front() -> None:
    model = new_model(
        [UNIT],
        objectives=(("accuracy", "max"), ("seconds", "min")),
        outcome_constraints=("accuracy >= 0.2",),
    )
    points = []
    for number in range(6):
        proposal = model.propose({})
        assert proposal is not None
        point, source = proposal.point, proposal.source
        x = point["x"]
        others: dict[str, Curve] = {"seconds": [(1, x**2, 0.01)]}
        model.learn({str(number): TrialRecord(point, source, "completed", [(1, x, 0.01)], others)})
        points.append((x, source))
    chosen = [x for x, source in points if source == "bo"]
    assert len(chosen) == 3
    assert len({round(x, 2) for x in chosen}) == 3


def test_a_bound_on_another_metric_is_kept() -> None:
    model = new_model([UNIT], outcome_constraints=("megabytes <= 0.5",))
    chosen = []
    for number in range(8):
        proposal = model.propose({})
        assert proposal is not None
        point, source = proposal.point, proposal.source
        others: dict[str, Curve] = {"megabytes": [(1, point["x"], 0.001)]}
        value: Curve = [(1, point["x"], 0.001)]
        model.learn({str(number): TrialRecord(point, source, "completed", value, others)})
        chosen += [point["x"]] if source == "bo" else []
    assert max(x for x in chosen if x <= 0.51) > 0.4
    assert sum(x <= 0.52 for x in chosen) >= 3


@pytest.mark.parametrize(
    "settings",
    [
        {"acquisition": "log_ei"},
        {"acquisition": "log_nei"},
        {"acquisition": "ucb"},
        {"model": "saas"},
        {"model": "gp-ensemble"},
    ],
    ids=str,
)
def test_model_and_acquisition_by_name_find_the_better_end(settings: dict[str, Any]) -> None:
    trials = run_trials(new_model([UNIT], **settings), 6, lambda point: point["x"])
    assert [source for _, source in trials] == ["sobol"] * 3 + ["bo"] * 3
    assert max(point["x"] for point, source in trials if source == "bo") > 0.9


@pytest.mark.parametrize("model", ["gp", "gp-ensemble", "saas"])
def test_the_best_of_unordered_choices_is_found(model: str) -> None:
    """The best choice lies between others, as text and as listed."""
    kinds = Parameter(name="kind", choices=("a", "b", "c", "d", "e"))
    worth = {"a": 0.0, "b": 0.2, "c": 1.0, "d": 0.1, "e": 0.3}
    search = new_model([UNIT, kinds], model=model, num_sobol=6)
    trials = run_trials(search, 14, lambda point: worth[point["kind"]] - abs(point["x"] - 0.3))
    best, _ = max(trials, key=lambda trial: worth[trial[0]["kind"]] - abs(trial[0]["x"] - 0.3))
    assert best["kind"] == "c"
    assert abs(best["x"] - 0.3) < 0.05


def test_many_parameters_bring_the_sparse_model() -> None:
    parameters = [Parameter(name=f"x{i}", low=0, high=1) for i in range(20)]
    assert "SAAS" in new_model(parameters)._client._generation_strategy.name
    assert "SAAS" not in new_model(parameters[1:])._client._generation_strategy.name
    assert "SAAS" not in new_model(parameters, model="gp")._client._generation_strategy.name


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_baselines_ignore_the_results(method: str) -> None:
    runs = [
        run_trials(new_model([UNIT, RATE], method=method), 6, objective)
        for objective in (lambda p: p["x"], lambda p: -p["x"])
    ]
    assert runs[0] == runs[1]
    assert {source for _, source in runs[0]} == {method}


def test_an_earlier_search_is_learned_from() -> None:
    earlier = [finished({"x": x}, x, "earlier") for x in (0.1, 0.4, 0.6, 0.8)]
    model = new_model([UNIT], earlier=earlier)
    ((point, source),) = run_trials(model, 1, lambda point: point["x"])
    assert source == "bo"
    assert point["x"] > 0.9


# ------------------------------------------------------------------- discrete spaces, rebuilding


def test_an_exhausted_discrete_space_gives_none() -> None:
    model = new_model(FEW, num_sobol=2)
    points = [tuple(p.values()) for p, _ in run_trials(model, 4, lambda point: point["layers"])]
    assert len(set(points)) == 4
    assert model.propose({}) is None


def test_a_rebuilt_model_goes_on_where_the_first_one_was() -> None:
    model = new_model([UNIT])
    trials = run_trials(model, 3, lambda point: point["x"])
    records = {f"t{i}": finished(point, point["x"]) for i, (point, _) in enumerate(trials)}
    proposal = new_model([UNIT], records=records).propose({})
    assert proposal is not None
    assert proposal.source == "bo"


def test_a_rebuilt_model_repeats_no_sobol_point() -> None:
    first = run_trials(new_model(SPACE, num_sobol=6), 2, lambda point: point["x"])
    records = {f"t{i}": finished(point, point["x"]) for i, (point, _) in enumerate(first)}
    rebuilt = new_model(SPACE, num_sobol=6, records=records)
    rates = [p["rate"] for p, _ in [*first, *run_trials(rebuilt, 2, lambda p: p["x"], "later")]]
    assert len(set(rates)) == 4


def test_an_exhausted_space_is_seen_by_a_rebuilt_model() -> None:
    records = {
        f"{cell}{layers}": finished({"cell": cell, "layers": layers}, layers)
        for cell in ("rnn", "gru")
        for layers in (1, 2)
    }
    assert new_model(FEW, num_sobol=2, records=records).propose({}) is None


# ------------------------------------------------------------------- where the model fails


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelFittingError("all attempts\nfailed"), "ModelFittingError: all attempts failed"),
        (RuntimeError("x" * 5000), "RuntimeError: xxx"),
        (ValueError("NaN in the input"), "ValueError: NaN in the input"),
        (MemoryError(), "MemoryError:"),
    ],
    ids=["fit", "long", "value", "memory"],
)
def test_a_failing_model_gives_random_points_that_say_so(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model([UNIT])

    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(model._client, "get_next_trials", fails)
    proposal = model.propose({})
    assert proposal is not None
    assert proposal.source == "fallback"
    assert proposal.reason.startswith(reason)
    assert len(proposal.reason) <= 300


def test_fallback_points_are_drawn_from_the_whole_space(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(SPACE)
    monkeypatch.setattr(model._client, "get_next_trials", fails_to_fit)
    points = []
    for number in range(40):
        proposal = model.propose({})
        assert proposal is not None
        assert_in_space(proposal.point)
        points.append(proposal.point)
        model.learn({str(number): TrialRecord(proposal.point, proposal.source)})
    assert set(model.statuses().values()) == {"running"}  # Ax knows of them
    for parameter in SPACE:
        assert len({point[parameter.name] for point in points}) > 1, parameter.name
    assert 10 <= sum(point["rate"] < 0.01 for point in points) <= 30


def test_a_batch_ends_at_the_first_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model([UNIT])
    monkeypatch.setattr(model._client, "get_next_trials", fails_to_fit)
    assert [proposal.source for proposal in model.propose_several({}, 8)] == ["fallback"]


@pytest.mark.parametrize("kind", [TypeError, NameError, AttributeError, KeyError, AssertionError])
def test_a_bug_of_our_own_code_is_raised(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception comes from a module of raymeta, below Ax."""
    model = new_model([UNIT])
    run_trials(model, 3, lambda point: point["x"])

    def broken(*_: Any, **__: Any) -> None:
        raise kind("a bug")

    # As if a module of raymeta had defined it.
    ours = FunctionType(
        broken.__code__, {"__name__": "raymeta.search.x"}, None, None, broken.__closure__
    )
    monkeypatch.setattr(CategoricalGP, "construct_inputs", ours)
    for call in (lambda: model.propose({}), model.fitted):
        with pytest.raises(kind, match="a bug"):
            call()


def test_a_model_that_no_library_can_fit_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model([UNIT])
    run_trials(model, 3, lambda point: point["x"])
    monkeypatch.setattr(CategoricalGP, "construct_inputs", fails_to_fit)
    with pytest.raises(SearchError, match=r"no model can be fitted.* ModelFittingError: all att"):
        model.fitted()


def test_a_search_without_a_model_has_none_to_fit() -> None:
    with pytest.raises(SearchError, match="method sobol has no model"):
        new_model([UNIT], method="sobol").fitted()


def test_a_search_goes_on_after_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model([UNIT])
    run_trials(model, 3, lambda point: point["x"])
    with monkeypatch.context() as broken:
        broken.setattr(model._client, "get_next_trials", fails_to_fit)
        ((_, source),) = run_trials(model, 1, lambda point: point["x"], "broken")
    assert source == "fallback"
    ((_, source),) = run_trials(model, 1, lambda point: point["x"], "later")
    assert source == "bo"
    assert len(model.statuses()) == len(observations(model)) == 5
