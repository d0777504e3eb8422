"""The choice of a learner: its section, the sections of others, and searches over both."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymeta.errors import ExperimentError
from raymeta.experiment.file import load_experiment, to_yaml, with_overrides, with_values
from raymeta.meta.learners.maml import Maml
from raymeta.meta.learners.reptile import Reptile
from raymeta.meta.learners.ridge import Ridge
from raymeta.meta.settings import ReptileSettings
from raymeta.search.space import search_space
from raymeta.tasks.load import load_tasks
from raymeta.training.recipe import build_recipe

BOTH = """
base: sinusoid
search:
  space:
    learner: {choices: [maml, reptile]}
    maml.inner_lr: {low: 0.01, high: 0.1, log: true, when: {learner: maml}}
    reptile.inner_lr: {low: 0.001, high: 0.01, log: true, when: {learner: reptile}}
"""


def file_with(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_maml_is_the_default() -> None:
    experiment = load_experiment("sinusoid")
    assert experiment.learner == "maml"
    recipe = build_recipe(experiment, load_tasks(experiment))
    assert recipe.learner == Maml(**dict(experiment.maml))


def test_another_learner_takes_its_own_section_and_drops_what_it_inherits(tmp_path: Path) -> None:
    own = file_with(
        tmp_path,
        "base: sinusoid\nlearner: reptile\nreptile: {adaptation_steps: 7}\nsearch: {space: {}}\n",
    )
    experiment = load_experiment(own)
    recipe = build_recipe(experiment, load_tasks(experiment))
    assert recipe.learner == Reptile(adaptation_steps=7)
    by_override = load_experiment("sinusoid", ["search.space={}", "learner=reptile"])
    assert by_override.learner == "reptile"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "base: sinusoid\nlearner: reptile\nmaml: {inner_lr: 0.1}\nsearch: {space: {}}\n",
            [],
            (
                r"maml\.inner_lr: is a setting of the learner maml, but learner is reptile "
                r"\(own\.yaml, line 3\); remove it, or set learner: maml"
            ),
        ),
        (
            "base: sinusoid\nreptile: {inner_lr: 0.1}\n",
            [],
            r"reptile\.inner_lr: .* learner is maml \(own\.yaml, line 2\)",
        ),
        (
            "base: sinusoid\nsearch: {space: {}}\n",
            ["maml.inner_lr=0.1", "learner=reptile"],
            r"maml\.inner_lr: .* learner is reptile \(--set\)",
        ),
        (
            "base: sinusoid\nlearner: reptile\n",
            ["search.space={maml.inner_lr: {low: 0.1, high: 0.2}}"],
            r"search\.space\.maml\.inner_lr: .* learner is reptile \(--set\)",
        ),
        (
            "base: sinusoid\nmaml: {adapt: body, shared_head: true}\n",
            [],
            r"maml\.shared_head must be false with maml\.adapt: body, but got true: .* set one",
        ),
        (
            "base: sinusoid\nlearner: protonet\n",
            [],
            r"learner must be 'maml', 'reptile', .* but got 'protonet' \(own\.yaml, line 2\)",
        ),
        (
            "base: sinusoid\nlearner: reptile\nreptile: {first_order: true}\nsearch: {space: {}}\n",
            [],
            r"reptile\.first_order: no such key",
        ),
        (
            "base: sinusoid\nlearner: reptile\nreptile: {inner_lr: -1}\nsearch: {space: {}}\n",
            [],
            r"reptile\.inner_lr must be > 0, but got -1",
        ),
    ],
)
def test_settings_of_a_learner_that_is_not_chosen_are_refused(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        load_experiment(file_with(tmp_path, text), overrides)


def test_a_search_may_choose_the_learner_and_its_own_keys(tmp_path: Path) -> None:
    experiment = load_experiment(file_with(tmp_path, BOTH))
    space = search_space(experiment)
    names = {parameter.name for parameter in space.parameters}
    assert names == {"learner", "maml.inner_lr", "reptile.inner_lr"}
    point = {"learner": "reptile", "reptile.inner_lr": 0.005}
    trial = with_values(with_values(experiment, {"search.space": {}}), point)
    recipe = build_recipe(trial, load_tasks(trial))
    assert recipe.learner == Reptile(inner_lr=0.005)


@pytest.mark.parametrize("overrides", [[], ["learner=reptile", "search.space={}"]])
def test_a_written_experiment_reads_back(tmp_path: Path, overrides: list[str]) -> None:
    for text in ("base: sinusoid\n", BOTH):
        experiment = load_experiment(file_with(tmp_path, text), overrides)
        again = load_experiment(file_with(tmp_path, to_yaml(experiment)))
        assert again == experiment
        assert with_overrides(experiment, ["training.meta_steps=3"]).training.meta_steps == 3
    point = {"learner": "reptile", "reptile.inner_lr": 0.005}
    best = with_values(load_experiment(file_with(tmp_path, BOTH)), point)
    assert load_experiment(file_with(tmp_path, to_yaml(best))) == best


def test_a_learner_that_does_not_serve_the_problem_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ReptileSettings, "refuses", {"regression": "it has no labels to compare"})
    with pytest.raises(ExperimentError, match="learner reptile does not serve regression: it has"):
        load_experiment("sinusoid", ["learner=reptile", "search.space={}"])


@pytest.mark.parametrize("name", ["pen", "vowels"])
def test_a_learned_prior_is_refused_where_labels_are_given_anew(name: str) -> None:
    sets = ["search.space={}", "learner=ridge", "ridge.learned_prior=true"]
    with pytest.raises(ExperimentError, match=r"ridge\.learned_prior must be false where every"):
        load_experiment(name, sets)


@pytest.mark.parametrize("name", ["sentiment", "exercise", "engines", "sinusoid", "employment"])
def test_a_learned_prior_is_taken_where_labels_stay(name: str) -> None:
    sets = ["search.space={}", "learner=ridge", "ridge.learned_prior=true"]
    experiment = load_experiment(name, sets)
    recipe = build_recipe(experiment, load_tasks(experiment))
    assert recipe.learner == Ridge(**dict(experiment.ridge))
