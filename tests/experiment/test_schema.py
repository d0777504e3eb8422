"""The schema of experiments: allowed values, and what an experiment derives from them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raymeta.experiment.schema import Dimension, Experiment

SOURCES = ("pen", "sentiment", "sinusoid")


def experiment(source: str = "pen", /, **sections: Any) -> Experiment:
    tasks = {"source": source} | sections.pop("tasks", {})
    return Experiment.model_validate({"name": "a", "tasks": tasks} | sections)


def refusal(**sections: Any) -> str:
    """Returns pydantic's message about the only mistake."""
    with pytest.raises(ValidationError) as error:
        experiment(**sections)
    (finding,) = error.value.errors()
    return f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"


@pytest.mark.parametrize("source", SOURCES)
def test_a_name_and_a_source_are_enough(source: str) -> None:
    found = experiment(source)
    assert found.tasks.source == source
    assert found.search.space == {}


@pytest.mark.parametrize(
    ("source", "kind", "metric", "mode"),
    [
        ("pen", "classification", "val_accuracy", "max"),
        ("sentiment", "classification", "val_accuracy", "max"),
        ("sinusoid", "regression", "val_loss", "min"),
    ],
)
def test_the_source_determines_the_metric(source: str, kind: str, metric: str, mode: str) -> None:
    found = experiment(source)
    assert (found.problem.name, found.metric, found.mode) == (kind, metric, mode)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "hidden_size", "64"),
        ("model", "hidden_size", 64.0),
        ("model", "bidirectional", 1),
        ("maml", "inner_lr", "0.1"),
        ("maml", "first_order", "yes"),
        ("training", "meta_steps", True),
        ("tasks", "num_points", 24.5),
    ],
)
def test_values_are_never_coerced(section: str, key: str, value: object) -> None:
    assert key in refusal(**{section: {key: value}})


@pytest.mark.parametrize(
    ("section", "key", "inside", "outside"),
    [
        ("maml", "inner_lr", 1e-9, 0.0),
        ("maml", "adaptation_steps", 1, 0),
        ("maml", "inner_clip", None, 0.0),
        ("training", "outer_lr", 1e-9, -1e-9),
        ("training", "outer_clip", None, -1.0),
        ("training", "outer_lr", 1e9, float("inf")),
        ("training", "weight_decay", 0.0, float("nan")),
        ("training", "val_episodes", 2, 1),
        ("training", "max_skipped", 0, -1),
        ("model", "dropout", 0.999, 1.0),
        ("model", "hidden_size", 8192, 8193),
        ("model", "cell", "lstm", "LSTM"),
        ("tasks", "num_ways", 2, 1),
        ("tasks", "num_points", 4, 3),
        ("tasks", "augmentation", {"class_mirror": 1.0}, {"class_mirror": 1.1}),
        ("tasks", "augmentation", {"class_rotation_deg": 180}, {"class_rotation_deg": 181}),
        ("search", "reduction_factor", 1.1, 1.0),
        ("search", "early_stopping", "none", None),
        ("resources", "num_workers", 1, 0),
        ("evaluation", "num_episodes", 2, 1),
    ],
)
def test_ranges_hold_at_their_ends(section: str, key: str, inside: object, outside: object) -> None:
    found = experiment(**{section: {key: inside}})
    if not isinstance(inside, dict):
        assert found.value(f"{section}.{key}") == inside
    assert key in refusal(**{section: {key: outside}})


def test_a_seed_is_one_that_torch_takes() -> None:
    assert experiment(seed=2**64 - 1).seed == 2**64 - 1
    for seed in (-1, 2**64):
        assert refusal(seed=seed).startswith("seed: ")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b", "a\n", "-a"])
def test_names_are_plain_file_names(name: str) -> None:
    assert refusal(name=name).startswith("name: ")


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2, 2.0])
def test_gpus_are_a_fraction_up_to_one_or_whole(gpus: float) -> None:
    assert experiment(resources={"gpus_per_worker": gpus}).resources.gpus_per_worker == gpus


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_a_fraction_of_gpus_above_one_is_refused(gpus: float) -> None:
    message = refusal(resources={"gpus_per_worker": gpus})
    assert "gpus_per_worker must be a fraction up to 1 or a whole number" in message
    assert message.endswith(f"but got {gpus}")


def test_nothing_can_be_changed_later() -> None:
    found = experiment()
    with pytest.raises(ValidationError, match="frozen"):
        found.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        found.maml.inner_lr = 1.0


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"trainin": {}}, "trainin"),
        ({"maml": {"outer_lr": 0.1}}, "outer_lr"),
        ({"tasks": {"max_tokens": 10}}, "max_tokens"),  # of another source
        ({"search": {"space": {"maml.inner_lr": {"lo": 1, "low": 0.1, "high": 1}}}}, "lo"),
    ],
)
def test_unknown_keys_are_refused(sections: dict[str, Any], key: str) -> None:
    message = refusal(**sections)
    assert key in message
    assert message.endswith("Extra inputs are not permitted")


# Dotted keys


def test_values_are_found_by_dotted_key() -> None:
    found = experiment(maml={"inner_lr": 0.25}, tasks={"augmentation": {"class_shear": 0.5}})
    assert found.value("seed") == 0
    assert found.value("maml.inner_lr") == 0.25
    assert found.value("tasks.augmentation.class_shear") == 0.5
    assert found.value("model") is found.model


@pytest.mark.parametrize(
    "key", ["", "sed", "maml.", "maml.inner", "maml.inner_lr.x", "maml.copy", "tasks.max_tokens"]
)
def test_a_key_that_does_not_exist_is_a_key_error(key: str) -> None:
    with pytest.raises(KeyError) as error:
        experiment().value(key)
    assert error.value.args == (key,)


@pytest.mark.parametrize(
    ("key", "is_integer"),
    [
        ("model.hidden_size", True),
        ("tasks.num_points", True),
        ("maml.inner_lr", False),
        ("maml.first_order", False),
        ("maml.inner_clip", False),
        ("model.cell", False),
        ("tasks.augmentation.class_shear", False),
    ],
)
def test_the_schema_knows_which_keys_are_whole_numbers(key: str, is_integer: bool) -> None:
    assert experiment().is_integer(key) is is_integer


# Dimensions of a search


@pytest.mark.parametrize(
    ("dimension", "rule"),
    [
        ({}, "give `low` and `high`, or `choices`"),
        ({"low": 1}, "give `low` and `high`, or `choices`"),
        ({"high": 1}, "give `low` and `high`, or `choices`"),
        ({"low": 1, "high": 1}, "`low < high` must hold, but got (low=1.0, high=1.0)"),
        ({"low": 2, "high": 1}, "`low < high` must hold, but got (low=2.0, high=1.0)"),
        (
            {"low": 0, "high": 1, "log": True},
            "`low > 0` must hold for `log: true`, but got (low=0.0)",
        ),
        (
            {"low": 1, "high": 3, "log": True, "step": 1},
            "`step` goes with a linear scale; remove `log: true` or `step`",
        ),
        (
            {"low": 0, "high": 1, "step": 0.3},
            "`step` must divide high - low, but got (low=0.0, high=1.0, step=0.3)",
        ),
        ({"low": 0, "high": 1, "step": 2}, "`step` must divide high - low"),
        ({"low": 0, "high": 1, "step": 0}, "greater than 0"),
        ({"low": 0, "high": float("inf")}, "finite number"),
        ({"low": "a", "high": 1}, "valid number"),
        ({"choices": [1]}, "at least 2 items"),
        ({"choices": [1, 2, 1]}, "`choices` must differ, but got [1, 2, 1]"),
        ({"choices": ["a", 1]}, "`choices` must be of one type, but got ['a', 1]"),
        ({"choices": [True, 2]}, "`choices` must be of one type, but got [True, 2]"),
        ({"choices": [1, 2], "low": 0}, "`choices` stands alone"),
        ({"choices": [1, 2], "high": 0}, "`choices` stands alone"),
        ({"choices": [1, 2], "step": 1}, "`choices` stands alone"),
        ({"choices": [1, 2], "log": True}, "`choices` stands alone"),
    ],
)
def test_broken_dimensions_are_refused_with_their_rule(
    dimension: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValidationError) as error:
        Dimension.model_validate(dimension)
    assert rule in error.value.errors()[0]["msg"]


finite = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(low=finite, width=st.floats(1e-3, 1e6), share=st.floats(0, 1))
def test_a_range_contains_its_ends_and_what_lies_between(
    low: float, width: float, share: float
) -> None:
    high = low + width
    dimension = Dimension(low=low, high=high)
    assert dimension.ends == [low, high]
    for value in (low, high, min(low + share * width, high)):
        assert dimension.contains(value)
    for other in (low - width, high + width, float("nan"), "a", None, True):
        assert not dimension.contains(other)


@settings(deadline=None)
@given(
    low=st.integers(-1000, 1000),
    step=st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 1.0, 8.0]),
    num_steps=st.integers(1, 200),
    data=st.data(),
)
def test_a_stepped_range_contains_its_steps_only(
    low: int, step: float, num_steps: int, data: st.DataObject
) -> None:
    dimension = Dimension(low=low, high=low + num_steps * step, step=step)
    number = data.draw(st.integers(0, num_steps - 1))
    assert dimension.contains(low + number * step)
    assert not dimension.contains(low + (number + 0.5) * step)


def test_choices_contain_themselves_and_no_look_alike() -> None:
    names, numbers, flags = (
        Dimension(choices=["gru", "lstm"]),
        Dimension(choices=[1, 2]),
        Dimension(choices=[True, False]),
    )
    assert names.ends == ["gru", "lstm"]
    assert names.contains("gru")
    assert not names.contains("rnn")
    assert numbers.contains(1)
    assert not numbers.contains(True)
    assert flags.contains(False)
    assert not flags.contains(0)


def test_there_is_no_refit_unless_it_is_asked_for() -> None:
    found = experiment(training={"meta_steps": 500})
    assert found.search.refit is None
    assert found.refit_meta_steps == 500
    found = experiment(training={"meta_steps": 500}, search={"refit": {"steps": 1.501}})
    assert found.search.refit is not None
    assert found.search.refit.seeds == 2
    assert found.refit_meta_steps == 750


@pytest.mark.parametrize(
    ("refit", "message"),
    [
        ({"steps": 0.5}, "search.refit.steps: Input should be greater than or equal to 1"),
        ({"steps": 1001}, "search.refit.steps: Input should be less than or equal to 1000"),
        ({"seeds": 0}, "search.refit.seeds: Input should be greater than or equal to 1"),
        ({"seeds": 101}, "search.refit.seeds: Input should be less than or equal to 100"),
        ({"seeds": 1.5}, "search.refit.seeds: Input should be a valid integer"),
        ({"step": 2}, "search.refit.step: Extra inputs are not permitted"),
    ],
)
def test_a_refit_out_of_range_is_refused(refit: dict[str, Any], message: str) -> None:
    assert refusal(search={"refit": refit}) == message
