"""The `search.space` section of an experiment becomes typed parameters."""

from __future__ import annotations

from typing import Any

import pytest

from raymeta.errors import ExperimentError, SearchError
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.search import Parameter, search_space
from raymeta.search.constraints import LinearConstraint
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space, file_point

DIMENSIONS = {
    "maml.inner_lr": "{low: 0.01, high: 1, log: true}",
    "model.hidden_size": "{low: 8, high: 64, step: 8}",
    "maml.adaptation_steps": "{low: 1, high: 9}",
    "training.weight_decay": "{low: 0, high: 0.1}",
    "model.cell": "{choices: [rnn, gru, lstm]}",
    "maml.first_order": "{choices: [false, true]}",
    "model.num_layers": "{choices: [1, 2, 4]}",
}


@pytest.fixture
def experiment() -> Experiment:
    own_values = ["model.hidden_size=24", "maml.inner_lr=0.2", "maml.first_order=true"]
    space = [f"search.space.{key}={dimension}" for key, dimension in DIMENSIONS.items()]
    return load_experiment("pen-maml", ["search.space={}", *own_values, *space])


def test_every_kind_of_dimension_becomes_the_parameter_it_describes(experiment: Experiment) -> None:
    assert search_space(experiment).parameters == (
        Parameter(name="maml.inner_lr", low=0.01, high=1, log=True),
        Parameter(name="model.hidden_size", low=8, high=64, step=8, integer=True),
        Parameter(name="maml.adaptation_steps", low=1, high=9, integer=True),
        Parameter(name="training.weight_decay", low=0, high=0.1),
        Parameter(name="model.cell", choices=("rnn", "gru", "lstm")),
        Parameter(name="maml.first_order", choices=(False, True)),
        Parameter(name="model.num_layers", choices=(1, 2, 4), integer=True),
    )


def test_parameters_keep_the_order_of_the_file(experiment: Experiment) -> None:
    assert [parameter.name for parameter in search_space(experiment).parameters] == list(DIMENSIONS)


def test_choices_keep_their_types(experiment: Experiment) -> None:
    parameters = search_space(experiment).parameters
    choices = {p.name: p.choices for p in parameters if p.choices is not None}
    assert {name: {type(value) for value in values} for name, values in choices.items()} == {
        "model.cell": {str},
        "maml.first_order": {bool},
        "model.num_layers": {int},
    }


def test_the_file_point_holds_the_files_own_values(experiment: Experiment) -> None:
    point = file_point(experiment)
    assert list(point) == list(DIMENSIONS)
    assert (point["model.hidden_size"], point["maml.inner_lr"]) == (24, 0.2)
    assert point["maml.first_order"] is True


def test_an_empty_space_has_no_parameters_and_an_empty_point() -> None:
    experiment = load_experiment("pen-maml", ["search.space={}"])
    assert search_space(experiment) == Space(())
    assert file_point(experiment) == {}


@pytest.mark.parametrize(
    "dimension",
    ["{low: 0.3, high: 1}", "{low: 0.05, high: 0.75, step: 0.1}", "{choices: [0.3, 0.4]}"],
)
def test_a_space_without_the_experiments_own_point_is_refused(dimension: str) -> None:
    overrides = ["search.space={}", "maml.inner_lr=0.2", f"search.space.maml.inner_lr={dimension}"]
    experiment = load_experiment("pen-maml", overrides)
    with pytest.raises(
        ExperimentError, match=r"search\.space\.maml\.inner_lr must contain .* 0\.2"
    ):
        file_point(experiment)


# ------------------------------------------------------------------- conditions and constraints

CONDITIONAL = [
    "search.space={}",
    "model.cell=gru",
    "search.space.model.cell={choices: [rnn, gru, lstm]}",
    "search.space.model.hidden_size={low: 8, high: 64, when: {model.cell: lstm}}",
    "search.space.maml.inner_lr={low: 0.01, high: 1, when: {model.cell: [rnn, gru]}}",
]


def test_a_condition_of_the_file_is_that_of_the_parameter() -> None:
    experiment = load_experiment("pen-maml", CONDITIONAL)
    conditions = {p.name: p.when for p in search_space(experiment).parameters}
    assert conditions == {
        "model.cell": None,
        "model.hidden_size": ("model.cell", ("lstm",)),
        "maml.inner_lr": ("model.cell", ("rnn", "gru")),
    }
    assert list(file_point(experiment)) == ["model.cell", "maml.inner_lr"]


CELL = Parameter(name="cell", choices=("rnn", "lstm"))
FORGET = Parameter(name="forget", low=0, high=2, when=("cell", ("lstm",)))
X, Y = Parameter(name="x", low=0, high=1), Parameter(name="y", low=0, high=1)


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ({"cell": "lstm", "forget": 1.0, "x": 0.5}, True),
        ({"cell": "rnn", "x": 0.5}, True),
        ({"cell": "rnn", "forget": 1.0, "x": 0.5}, False),
        ({"cell": "lstm", "x": 0.5}, False),
        ({"cell": "gru", "x": 0.5}, False),
        ({"cell": "rnn", "x": 1.5}, False),
        ({"cell": "rnn", "x": True}, False),
    ],
)
def test_a_point_is_inside_with_the_parameters_that_it_must_have(
    point: dict[str, object], inside: bool
) -> None:
    assert Space((CELL, FORGET, X)).contains(point) == inside


@pytest.mark.parametrize(
    ("parameters", "constraints", "message"),
    [
        ((X, X), (), "x is twice"),
        ((FORGET, X), (), "forget depends on cell, which must be a choice"),
        (
            (CELL, Parameter(name="f", low=0, high=1, when=("cell", ("gru",)))),
            (),
            r"f depends on cell being one of \['gru'\], but its choices are \['rnn', 'lstm'\]",
        ),
        ((X, Y), ("x * y <= 1",), "must be linear"),
        ((X, Y), ("x + y",), "must be linear"),
        ((X, Y), ("x + y < 1",), "must be linear"),
        ((X, Y), ("x + z <= 1",), "names z, which is not searched"),
        ((X, CELL), ("x + cell <= 1",), "plain ranges only, but cell has"),
        ((X, CELL, FORGET), ("x + forget <= 1",), "names forget, which is conditional"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(
    parameters: tuple[Parameter, ...], constraints: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        Space(parameters, constraints)


@pytest.mark.parametrize(
    ("text", "weights", "bound"),
    [
        ("x + 2 * y <= 3", {"x": 1, "y": 2}, 3),
        ("-x+.5*y>=-1e-1", {"x": 1, "y": -0.5}, 0.1),
        ("a/b.c - a/b.c + 2e3*x <= 0", {"a/b.c": 0, "x": 2000}, 0),
    ],
)
def test_a_constraint_is_read_as_weights_and_a_bound(
    text: str, weights: dict[str, float], bound: float
) -> None:
    constraint = LinearConstraint.parse(text, {"x", "y", "a/b.c"})
    assert constraint.weights == pytest.approx(weights)
    assert constraint.bound == pytest.approx(bound)


def test_a_constraint_holds_up_to_its_bound() -> None:
    constraint = LinearConstraint.parse("x + 2 * y <= 1", {"x", "y"})
    assert constraint.holds({"x": 0.5, "y": 0.25})
    assert not constraint.holds({"x": 0.5, "y": 0.26})


@pytest.mark.parametrize(
    ("parameter", "value", "snapped"),
    [
        (Parameter(name="x", low=0, high=1, step=0.25), 0.3, 0.25),
        (Parameter(name="x", low=0.1, high=1, step=0.25), 2.0, 0.85),
        (Parameter(name="x", low=8, high=64, step=8, integer=True), 19.0, 16),
        (Parameter(name="x", low=1, high=9, integer=True), 9.4, 9),
        (X, 1.0 + 1e-12, 1.0),
    ],
)
def test_values_are_brought_to_the_nearest_step_inside(
    parameter: Parameter, value: float, snapped: float
) -> None:
    found = parameter.snapped(value)
    assert found == pytest.approx(snapped)
    assert type(found) is type(snapped)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"low": 2, "high": 2}, r"x: `low < high` must hold, but got \(low=2, high=2\)"),
        ({"low": 3, "high": 2}, "x: `low < high` must hold"),
        ({"low": 3}, "x: give `low` and `high`, or `choices`"),
    ],
)
def test_an_invalid_range_is_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Space((Parameter(name="x", **limits),))


@pytest.mark.parametrize("of", ["one", "several"])
def test_an_acquisition_function_of_another_number_of_objectives_is_refused(of: str) -> None:
    score, cost = ("score", "max"), ("cost", "min")
    objectives = (score, cost) if of == "one" else (score,)
    acquisition = "log_ei" if of == "one" else "log_ehvi"
    with pytest.raises(SearchError, match=f"acquisition {acquisition} is for {of} objective"):
        SearchSettings(objectives=objectives, acquisition=acquisition)  # type: ignore[arg-type]
