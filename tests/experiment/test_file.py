"""Experiment files: reading, bases, overrides, and the place that each message names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.errors import ExperimentError
from raymeta.experiment.file import (
    FIXED_TRAINING_KEYS,
    load_experiment,
    shipped_experiments,
    to_yaml,
    with_values,
)
from raymeta.experiment.schema import Experiment
from raymeta.meta.settings import SETTINGS as LEARNERS
from raymeta.tasks.base_settings import SETTINGS

MINIMAL = "name: a\ntasks: {source: pen}\n"  # two lines
SEARCHED = MINIMAL + "search:\n  space:\n    maml.inner_lr: {low: 0.01, high: 1, log: true}\n"

PLAIN = Experiment.model_validate({"name": "a", "tasks": {"source": "pen"}})

Load = Callable[..., Experiment]
Refusal = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the text of a file `own.yaml`, with other files beside it."""

    def load(text: str, *overrides: str, **others: str) -> Experiment:
        for name, content in ({"own": text} | others).items():
            (tmp_path / f"{name}.yaml").write_text(content)
        return load_experiment(str(tmp_path / "own.yaml"), overrides)

    return load


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """Returns the message about such a file."""

    def refusal(text: str, *overrides: str, **others: str) -> str:
        with pytest.raises(ExperimentError) as error:
            load(text, *overrides, **others)
        return str(error.value)

    return refusal


# Reading


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped_experiments_load_by_name(name: str) -> None:
    assert load_experiment(name).name == name


def test_an_experiment_of_every_source_is_shipped() -> None:
    sources = {load_experiment(name).tasks.source for name in shipped_experiments()}
    assert sources == {"pen", "sentiment", "sinusoid", "table"}
    assert {"pen", "sentiment", "sinusoid", "vowels"} <= set(shipped_experiments())


def test_settings_of_the_file_replace_the_defaults(load: Load) -> None:
    found = load(MINIMAL + "model: {cell: lstm}\ntraining:\n  meta_steps: 7\n")
    assert (found.model.cell, found.training.meta_steps) == ("lstm", 7)
    assert found.model.hidden_size == 64


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1e+2", 100.0),
        ("2.5e-4", 2.5e-4),
        ("3.e-2", 0.03),
        ("1.0e-3", 1e-3),
        ("2", 2.0),
    ],
)
def test_numbers_are_read_as_people_write_them(load: Load, text: str, value: float) -> None:
    assert load(MINIMAL + f"maml: {{inner_lr: {text}}}\n").maml.inner_lr == value
    assert load(MINIMAL, f"maml.inner_lr={text}").maml.inner_lr == value


@pytest.mark.parametrize("value", ["[]", "{}", "[maml]", "1"])
def test_a_learner_that_is_no_name_is_refused(load: Load, value: str) -> None:
    with pytest.raises(ExperimentError, match="learner"):
        load(MINIMAL, f"learner={value}")
    with pytest.raises(ExperimentError, match="learner"):
        load(f"base: pen\nlearner: {value}\n")


def test_a_name_too_long_for_a_folder_is_refused(load: Load) -> None:
    with pytest.raises(ExperimentError, match="name must have at most 200 characters"):
        load(MINIMAL, f"name={'x' * 201}")


@settings(deadline=None, max_examples=50)
@given(value=st.floats(1e-300, 1e300), form=st.sampled_from(["{!r}", "{:e}", "{:.17g}", "{:E}"]))
def test_every_float_survives_an_override(value: float, form: str) -> None:
    text = form.format(value)
    found = load_experiment("pen-maml", ["search.space={}", f"maml.inner_lr={text}"])
    assert found.maml.inner_lr == float(text)


def test_words_that_look_like_numbers_stay_words(load: Load) -> None:
    for word in ("e5", "1e", "1e-3x"):
        assert load("name: " + word + "\ntasks: {source: pen}\n").name == word


def test_a_section_with_nothing_in_it_keeps_its_defaults(load: Load) -> None:
    assert load(MINIMAL + "maml:\ntraining:\n") == load(MINIMAL)


# Bases


def test_a_file_holds_only_what_differs_from_its_base(load: Load) -> None:
    base = MINIMAL + "seed: 5\nmodel: {cell: lstm, hidden_size: 7}\n"
    found = load("base: other.yaml\nname: b\nmodel: {hidden_size: 9}\n", other=base)
    assert (found.name, found.seed) == ("b", 5)
    assert (found.model.cell, found.model.hidden_size) == ("lstm", 9)


def test_a_base_may_be_a_shipped_experiment_or_have_a_base(load: Load) -> None:
    found = load("base: middle.yaml\nseed: 3\n", middle="base: sinusoid\nname: m\nseed: 2\n")
    assert (found.name, found.seed) == ("m", 3)
    assert found.model == load_experiment("sinusoid").model


def test_a_file_that_gives_a_space_replaces_the_inherited_one(load: Load) -> None:
    child = "base: other.yaml\nsearch: {num_trials: 4}\n"
    assert list(load(child, other=SEARCHED).search.space) == ["maml.inner_lr"]
    child = "base: other.yaml\nsearch: {space: {model.cell: {choices: [gru, rnn]}}}\n"
    assert list(load(child, other=SEARCHED).search.space) == ["model.cell"]


def test_a_section_that_is_empty_in_a_base_is_filled(load: Load) -> None:
    found = load("base: other.yaml\nsearch: {space: {}}\n", other=MINIMAL + "search:\n")
    assert found.search.space == {}


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ("base: own.yaml\n", {}),
        ("base: other.yaml\n", {"other": "base: own.yaml\n"}),
    ],
)
def test_a_loop_of_bases_is_refused(refusal: Refusal, own: str, others: dict[str, str]) -> None:
    found = refusal(own, **others)
    assert re.fullmatch(
        r"base: \S+own\.yaml -> (\S+ -> )?\S+own\.yaml never ends; remove one", found
    )


def test_a_loop_of_bases_is_found_through_other_spellings(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "sub").mkdir()
    assert "never ends" in refusal("base: sub/../own.yaml\n")


def test_an_error_in_a_base_is_located_there(refusal: Refusal) -> None:
    found = refusal("base: other.yaml\nseed: 1\n", other=MINIMAL + "maml:\n  inner_lr: 0\n")
    assert found.endswith("but got 0 (other.yaml, line 4)")


def test_an_override_of_a_base_is_located_in_the_file(refusal: Refusal) -> None:
    child = "base: other.yaml\nmaml: {inner_lr: -1}\n"
    found = refusal(child, other=MINIMAL + "maml:\n  inner_lr: 1\n")
    assert found.endswith("but got -1 (own.yaml, line 2)")


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ("nowhere", "base (own.yaml, line 3) 'nowhere' is neither"),
        ("3", "base must be a name or a path"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(refusal: Refusal, base: str, complaint: str) -> None:
    assert complaint in refusal(MINIMAL + f"base: {base}\n")


# Overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("name=b", "name", "b"),
        ("model.cell=rnn", "model.cell", "rnn"),
        ("maml.first_order=true", "maml.first_order", True),
        ("maml.inner_clip=null", "maml.inner_clip", None),
        ("tasks.augmentation.class_mirror=0", "tasks.augmentation.class_mirror", 0.0),
        ("tasks.data_dir=a=b", "tasks.data_dir", "a=b"),
        ("training={meta_steps: 9, eval_every: 3}", "training.eval_every", 3),
    ],
)
def test_overrides_replace_one_value(load: Load, override: str, key: str, value: object) -> None:
    found = load(MINIMAL + "maml: {inner_clip: 1}\n", override)
    assert found.value(key) == value
    assert found.maml.inner_lr == 0.1


def test_later_overrides_win(load: Load) -> None:
    assert load(MINIMAL, "seed=1", "seed=2").seed == 2


def test_overrides_reach_the_search_space_by_dotted_key(load: Load) -> None:
    found = load(
        SEARCHED,
        "search.space.training.outer_lr={low: 1e-4, high: 1e-2, log: true}",
        "search.space.maml.inner_lr={low: 0.1, high: 0.2}",
    )
    assert found.search.space["training.outer_lr"].ends == [1e-4, 1e-2]
    assert found.search.space["maml.inner_lr"].ends == [0.1, 0.2]
    assert load(SEARCHED, "search.space={}").search.space == {}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "--set takes KEY=VALUE, but got 'seed'"),
        ("=3", "--set takes KEY=VALUE, but got '=3'"),
        ("seed=[", "--set seed=[: the value is not valid YAML"),
        ("seed=-1", "seed must be >= 0, but got -1 (--set)"),
        ("seed=", "seed must be a valid integer, but got None (--set)"),
        ("seed.x=1", "seed must be a valid integer, but got {'x': 1} (--set)"),
        (
            "model.hiden_size=8",
            "model.hiden_size: no such key (--set); did you mean model.hidden_size?",
        ),
        ("name.x=1", "name must be a valid string, but got {'x': 1} (--set)"),
        ("model=3", "model must be a section of keys, but got 3 (--set)"),
        ("search.space=3", "search.space must be a section of keys, but got 3 (--set)"),
    ],
)
def test_broken_overrides_are_refused(refusal: Refusal, override: str, complaint: str) -> None:
    assert refusal(MINIMAL, override) == complaint


def test_a_replaced_section_is_located_at_its_override(refusal: Refusal) -> None:
    found = refusal(MINIMAL + "model:\n  hidden_size: 8\n", "model={hidden_size: -1}")
    assert found.endswith("but got -1 (--set)")


# What is wrong, and where


@pytest.mark.parametrize(
    ("line", "key", "rule", "value"),
    [
        ("maml: {inner_lr: -0.1}", "maml.inner_lr", r"be > 0(\.0)?", "-0.1"),
        ("seed: -1", "seed", "be >= 0", "-1"),
        ("model: {dropout: 1}", "model.dropout", r"be < 1(\.0)?", "1"),
        ("model: {hidden_size: 9000}", "model.hidden_size", "be <= 8192", "9000"),
        ("model: {cell: grru}", "model.cell", "be 'rnn', 'gru' or 'lstm'", "'grru'"),
        ("training: {meta_steps: 5.5}", "training.meta_steps", "be a valid integer", "5.5"),
        ("training: {meta_steps: yes}", "training.meta_steps", "be a valid integer", "True"),
        ("training: {outer_lr: 1e-3x}", "training.outer_lr", "be a valid number", "'1e-3x'"),
        ("training: {outer_lr: .inf}", "training.outer_lr", "be a finite number", "inf"),
        ("maml: {first_order: 1}", "maml.first_order", "be a valid boolean", "1"),
        ("maml: 3", "maml", "be a section of keys", "3"),
    ],
)
def test_messages_name_key_rule_value_and_place(
    refusal: Refusal, line: str, key: str, rule: str, value: str
) -> None:
    found = refusal(MINIMAL + line + "\n")
    pattern = rf"{re.escape(key)} must {rule}, but got {re.escape(value)} \(own\.yaml, line 3\)"
    assert re.fullmatch(pattern, found)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MINIMAL.replace("name: a", "name: a b"), r"^name must match "),
        (MINIMAL + "1: 2\n", r"^own\.yaml, line 3: keys must be text, but got 1; remove it"),
        (SEARCHED + "    model.cell: {choices: [gru]}\n", r"choices must have at least 2 items"),
    ],
)
def test_messages_are_sentences(refusal: Refusal, text: str, complaint: str) -> None:
    assert re.search(complaint, refusal(text))


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("4", "tasks.target must be a column, {number: COLUMN} or {rul: TIME, cap: N}, but got 4"),
        ("{cap: 3}", "tasks.target must be a column, {number: COLUMN} or {rul: TIME, cap: N}, but"),
        ("{rul: cycle, cap: -1}", "tasks.target.cap must be > 0, but got -1 (--set)"),
        ("{number: 3}", "tasks.target.number must be a valid string, but got 3 (--set)"),
        ("{number: x, rul: y}", "tasks.target.rul: no such key (--set)"),
    ],
)
def test_messages_are_about_the_form_of_target_that_was_meant(target: str, complaint: str) -> None:
    with pytest.raises(ExperimentError) as found:
        load_experiment("engines", [f"tasks.target={target}"])
    assert str(found.value).startswith(complaint)
    assert len(str(found.value).splitlines()) == 1


def test_more_points_of_a_wave_than_memory_holds_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"tasks.num_queries must be <= 100000, but got 2147"):
        load_experiment("sinusoid", ["tasks.num_queries=2147483648"])


def test_messages_give_the_line_of_the_key_itself(refusal: Refusal) -> None:
    text = MINIMAL + "\n# a remark\ntraining:\n  meta_steps: 5\n\n  outer_lr: 0\n"
    assert refusal(text).endswith("(own.yaml, line 8)")


def test_all_errors_are_reported_at_once(refusal: Refusal) -> None:
    found = refusal(MINIMAL + "seed: -1\nmodel: {hidden_size: 0}\nmal: {}\n").splitlines()
    assert [line.split()[0] for line in found] == ["seed", "model.hidden_size", "mal:"]


@pytest.mark.parametrize(
    ("line", "key", "nearest"),
    [
        ("modle: {}", "modle", "model"),
        ("maml: {iner_lr: 1}", "maml.iner_lr", "maml.inner_lr"),
        ("maml: {outer_lrr: 1}", "maml.outer_lrr", "maml.inner_lr"),
        ("meta_steps: 5", "meta_steps", "training.meta_steps"),
        ("search: {num_trial: 5}", "search.num_trial", "search.num_trials"),
        ("optimizer.meta_step: 5", "optimizer.meta_step", "training.meta_steps"),
        ("tasks.num_way: 5", "tasks.num_way", "tasks.num_ways"),
        (
            "search: {space: {maml.iner_lr: {low: 0.1, high: 1}}}",
            "search.space.maml.iner_lr",
            "maml.inner_lr",
        ),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_valid_name(
    refusal: Refusal, line: str, key: str, nearest: str
) -> None:
    expected = f"{key}: no such key (own.yaml, line 3); did you mean {nearest}?"
    assert refusal(MINIMAL + line + "\n") == expected


def test_nothing_is_suggested_for_a_key_like_no_other(refusal: Refusal) -> None:
    assert refusal(MINIMAL + "zzzzzz: 1\n") == "zzzzzz: no such key (own.yaml, line 3)"


def test_a_key_of_another_source_is_not_suggested_to_itself(refusal: Refusal) -> None:
    found = refusal("name: a\ntasks: {source: sinusoid, num_points: 3}\n")
    assert found.startswith("tasks.num_points: no such key")
    assert "did you mean tasks.num_ways" not in found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\n", "tasks is required, but is not given"),
        ("tasks: {source: pen}\n", "name is required, but is not given"),
        pytest.param(
            "name: a\ntasks: {}\n",
            "tasks.source is required: one of pen, python, sentiment, sinusoid, table, text "
            "(own.yaml, line 2)",
        ),
        pytest.param(
            "name: a\ntasks:\n  source: pne\n",
            "tasks.source must be one of pen, python, sentiment, sinusoid, table, text, but got "
            "'pne' (own.yaml, line 3)",
        ),
        pytest.param(
            "name: a\ntasks: pen\n",
            "tasks must be a section of keys, but got 'pen' (own.yaml, line 2)",
        ),
        pytest.param(
            "name: a\ntasks:\n  source: pen\n  augmentation:\n    class_mirror: x\n",
            "tasks.augmentation.class_mirror must be a valid number, but got 'x' "
            "(own.yaml, line 5)",
        ),
    ],
)
def test_incomplete_and_broken_tasks_are_refused(
    refusal: Refusal, text: str, complaint: str
) -> None:
    assert refusal(text) == complaint


def test_a_fraction_of_gpus_above_one_is_refused_with_its_place(refusal: Refusal) -> None:
    found = refusal(MINIMAL + "resources:\n  gpus_per_worker: 1.5\n")
    assert "gpus_per_worker" in found
    assert re.search(r"must be a fraction up to 1 or a whole number, but got 1\.5 \(own", found)


# Broken files


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [a\n", r"own\.yaml, line \d: not valid YAML: expected"),
        (MINIMAL + "\tseed: 1\n", r"own\.yaml, line 3: not valid YAML: found character"),
        (MINIMAL + "seed: *one\n", r"own\.yaml, line 3: not valid YAML: found undefined alias"),
        (MINIMAL + "---\nseed: 1\n", r"own\.yaml, line 3: not valid YAML: .*another document"),
        (MINIMAL + "seed: !!python/name:os.system\n", r"own\.yaml, line 3: not valid YAML: "),
        (MINIMAL + "? [1]\n: 2\n", r"own\.yaml, line 3: not valid YAML: found unhashable key"),
        ("", r"own\.yaml: expected a mapping of sections, but got None$"),
        ("- a\n", r"own\.yaml: expected a mapping of sections, but got \['a'\]$"),
        (MINIMAL + "name: b\n", r"name is given twice \(own\.yaml, line 3\); remove one$"),
        (
            MINIMAL + "maml:\n  inner_lr: 1\n  inner_lr: 1\n",
            r"maml\.inner_lr is given twice \(own\.yaml, line 5\); remove one$",
        ),
        pytest.param(MINIMAL + "seed: 2020-13-45\n", r"own\.yaml"),
        pytest.param(MINIMAL + "model: &self {x: *self}\n", r".*own\.yaml"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(refusal: Refusal, text: str, complaint: str) -> None:
    assert re.match(complaint, refusal(text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExperimentError, match=r"own\.yaml.*not UTF-8 text"):
        load_experiment(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere.yaml", "(No such file or directory)"),
        (".", "(Is a directory)"),
        ("sinusiod", "Did you mean sinusoid?"),
    ],
)
def test_an_experiment_that_does_not_exist_is_refused(source: str, complaint: str) -> None:
    with pytest.raises(ExperimentError) as error:
        load_experiment(source)
    message = str(error.value)
    assert message.startswith(f"experiment {source!r} is neither a readable file")
    assert ", ".join(shipped_experiments()) in message
    assert complaint in message


def test_a_base_that_does_not_exist_is_refused_with_the_line_that_names_it(load: Load) -> None:
    with pytest.raises(ExperimentError, match=r"^base \(own\.yaml, line 2\) 'nowhere' is neither"):
        load("name: a\nbase: nowhere\n")


@pytest.mark.parametrize("key", ["~", "1", "2020-01-01", "true"])
def test_a_key_that_is_no_text_is_refused_with_its_place(load: Load, key: str) -> None:
    with pytest.raises(ExperimentError, match=r"^own\.yaml, line 2: keys must be text, but got "):
        load(f"base: pen\n{key}: 1\n")


# Search spaces


def space(line: str) -> str:
    return MINIMAL + f"search:\n  space:\n    {line}\n"


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("maml.inner_lr: {low: 0.01, high: 1, log: true}", [0.01, 1.0]),
        ("maml.inner_lr: {low: 0.1, high: 1, step: 0.1}", [0.1, 1.0]),
        ("maml.first_order: {choices: [true, false]}", [True, False]),
        ("model.cell: {choices: [gru, lstm]}", ["gru", "lstm"]),
        ("model.hidden_size: {low: 16, high: 128, step: 16}", [16.0, 128.0]),
        ("model.hidden_size: {low: 16, high: 256, log: true}", [16.0, 256.0]),
        ("tasks.augmentation.class_shear: {low: 0, high: 1}", [0.0, 1.0]),
        ("training.outer_clip: {low: 1, high: 100, log: true}", [1.0, 100.0]),
    ],
)
def test_ranges_and_choices_of_existing_keys_can_be_searched(
    load: Load, line: str, ends: list[object]
) -> None:
    (dimension,) = load(space(line)).search.space.values()
    assert dimension.ends == ends


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "maml.inner_lr: {low: 1, high: 0.1}",
            "`low < high` must hold, but got (low=1.0, high=0.1)",
        ),
        ("maml.inner_lr: {low: 0, high: 1, log: true}", "`low > 0` must hold for `log: true`"),
        ("maml.inner_lr: {low: 0.1, high: 1, step: 0.2}", "`step` must divide high - low"),
        ("maml.inner_lr: {low: 0.1}", "give `low` and `high`, or `choices`"),
        ("maml.inner_lr: {choices: [0.1, 0.1]}", "`choices` must differ"),
        ("maml.inner_lr: {choices: [a, 0.1]}", "`choices` must be of one type"),
        ("maml.inner_lr: {choices: [0.1, 1.0], low: 0}", "`choices` stands alone"),
        ("maml.inner_lr: [0.1, 1]", "must be a section of keys, but got [0.1, 1]"),
        ("maml.inner_lr: {low: 0, high: 1}", "is not allowed"),
        ("maml.inner_lr: {choices: [0.1, -0.2]}", "-0.2 is not allowed"),
        ("model.cell: {choices: [gru, grru]}", "'grru' is not allowed"),
        ("model.hidden_size: {low: 16, high: 9000}", "is not allowed"),
        ("model.hidden_size: {low: 16.5, high: 128}", "is not allowed"),
        ("model.hidden_size: {low: 16, high: 128, step: 0.5}", "takes whole numbers"),
        ("maml.first_order: {low: 0, high: 1}", "is not allowed"),
        ("tasks.num_ways: {low: 2, high: 5}", "cannot be compared; set tasks.num_ways itself"),
        ("maml.inner_lrr: {low: 0.01, high: 1}", "did you mean maml.inner_lr?"),
        (
            "model: {low: 0, high: 1}",
            "only single values of tasks, model, learner, maml, ",
        ),
        (
            "search.num_trials: {low: 1, high: 20}",
            "only single values of tasks, model, learner, maml",
        ),
        (
            "resources.num_workers: {low: 1, high: 2}",
            "only single values of tasks, model, learner, maml",
        ),
        (
            "seed: {low: 0, high: 2}",
            "only single values of tasks, model, learner, maml, ",
        ),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused_with_key_and_line(
    refusal: Refusal, line: str, complaint: str
) -> None:
    found = refusal(space(line))
    assert found.startswith(f"search.space.{line.partition(':')[0]}")
    assert complaint in found
    assert "(own.yaml, line 5)" in found


@pytest.mark.parametrize(
    ("source", "key"),
    [("pen", key) for key in sorted(FIXED_TRAINING_KEYS)]
    + [
        (source, f"tasks.{key}")
        for source in ("pen", "sentiment", "sinusoid")
        for key in sorted(SETTINGS[source].FIXED)
    ],
)
def test_keys_that_make_trials_incomparable_cannot_be_searched(
    refusal: Refusal, source: str, key: str
) -> None:
    found = refusal(
        space(f"{key}: {{low: 1, high: 2}}").replace("source: pen", f"source: {source}")
    )
    assert found == (
        f"search.space.{key}: cannot be searched, since trials that differ in it cannot be "
        f"compared; set {key} itself (own.yaml, line 5)"
    )


@pytest.mark.parametrize(
    "line",
    ["training.outer_clip: {choices: [10, 20]}", "training.weight_decay: {choices: [0, 1e-4]}"],
)
def test_whole_numbers_are_choices_of_a_real_value(load: Load, line: str) -> None:
    assert len(load(space(line)).search.space) == 1


# Writing


plain_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,8}", fullmatch=True)
rates = st.floats(1e-12, 1e6)
experiments = st.builds(
    lambda source, values: with_values(PLAIN, {"tasks": {"source": source}} | values),
    st.sampled_from(["pen", "sentiment", "sinusoid"]),
    st.fixed_dictionaries(
        {"name": plain_names, "seed": st.integers(0, 2**63), "maml.inner_lr": rates},
        optional={
            "maml.inner_clip": st.none() | rates,
            "training.outer_lr": rates,
            "training.precision": st.sampled_from(["float32", "float64"]),
            "model.bidirectional": st.booleans(),
            "resources.gpus_per_worker": st.sampled_from([0, 0.25, 1, 2]),
            "search.space": st.just(
                {
                    "maml.first_order": {"choices": [True, False]},
                    "model.hidden_size": {"low": 16, "high": 64, "step": 16},
                }
            ),
        },
    ),
)


@settings(deadline=None, max_examples=40)
@given(experiment=experiments)
def test_a_written_experiment_is_read_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment
) -> None:
    path = tmp_path_factory.mktemp("written") / "experiment.yaml"
    path.write_text(to_yaml(experiment), encoding="utf-8")
    assert load_experiment(str(path)) == experiment


@pytest.mark.parametrize(
    "name",
    [
        "no",
        "1",
        "1.5",
        "2020-01-01",
        "null",
        "1e5",
    ],
)
def test_a_name_that_looks_like_something_else_stays_a_name(load: Load, name: str) -> None:
    experiment = with_values(PLAIN, {"name": name})
    assert load(to_yaml(experiment)) == experiment


def test_a_written_experiment_shows_every_default() -> None:
    written = yaml.safe_load(to_yaml(PLAIN))
    assert written == PLAIN.model_dump(exclude=LEARNERS.keys() - {"maml"})  # those not chosen
    assert written["maml"]["inner_lr"] == 0.1


# Values of a trial


def test_with_values_replaces_dotted_keys_and_leaves_the_rest() -> None:
    values: dict[str, Any] = {
        "maml.inner_lr": 0.5,
        "model.hidden_size": 32,
        "tasks.augmentation.class_shear": 0.0,
    }
    after = with_values(PLAIN, values)
    assert {key: after.value(key) for key in values} == values
    assert PLAIN.maml.inner_lr == 0.1
    assert with_values(after, {key: PLAIN.value(key) for key in values}) == PLAIN


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"maml.inner_lrr": 1}, r"^maml.inner_lrr: no such key; did you mean maml.inner_lr\?$"),
        ({"maml.inner_lr": -1}, r"^maml.inner_lr must be > 0(\.0)?, but got -1$"),
        ({"model.hidden_size": 8.5}, r"^model.hidden_size must be a valid integer, but got 8.5$"),
    ],
)
def test_with_values_checks_anew(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ExperimentError, match=complaint):
        with_values(PLAIN, values)
