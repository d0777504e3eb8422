"""From the `search.space` section of an experiment to typed parameters."""

from __future__ import annotations

import pytest

from raymeta.errors import ExperimentError
from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment
from raymeta.search import Parameter, search_space
from raymeta.search.space import file_point

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
    return load_experiment("pen", ["search.space={}", *own_values, *space])


def test_every_kind_of_dimension_becomes_the_parameter_it_describes(experiment: Experiment) -> None:
    assert search_space(experiment) == [
        Parameter(name="maml.inner_lr", low=0.01, high=1, log=True),
        Parameter(name="model.hidden_size", low=8, high=64, step=8, integer=True),
        Parameter(name="maml.adaptation_steps", low=1, high=9, integer=True),
        Parameter(name="training.weight_decay", low=0, high=0.1),
        Parameter(name="model.cell", choices=("rnn", "gru", "lstm")),
        Parameter(name="maml.first_order", choices=(False, True)),
        Parameter(name="model.num_layers", choices=(1, 2, 4), integer=True),
    ]


def test_parameters_keep_the_order_of_the_file(experiment: Experiment) -> None:
    assert [parameter.name for parameter in search_space(experiment)] == list(DIMENSIONS)


def test_choices_keep_their_types(experiment: Experiment) -> None:
    choices = {p.name: p.choices for p in search_space(experiment) if p.choices is not None}
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
    experiment = load_experiment("pen", ["search.space={}"])
    assert search_space(experiment) == []
    assert file_point(experiment) == {}


@pytest.mark.parametrize(
    "dimension",
    ["{low: 0.3, high: 1}", "{low: 0.05, high: 0.75, step: 0.1}", "{choices: [0.3, 0.4]}"],
)
def test_a_space_without_the_experiments_own_point_is_refused(dimension: str) -> None:
    overrides = ["search.space={}", "maml.inner_lr=0.2", f"search.space.maml.inner_lr={dimension}"]
    experiment = load_experiment("pen", overrides)
    with pytest.raises(
        ExperimentError, match=r"search\.space\.maml\.inner_lr must contain .* 0\.2"
    ):
        file_point(experiment)
