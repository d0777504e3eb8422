"""The inputs that a network accepts for a task, and the messages about others."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import raymeta
from raymeta.errors import DataError, DataWarning
from raymeta.evaluation.calibration import Calibration
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.meta.learners.maml import Maml
from tests.inference.conftest import RunOf

PROTOTYPES, MAML = "learner=prototypes", "learner=maml"


@pytest.fixture
def model(run_of: RunOf) -> Model:
    """A network of two channels, 3 ways and 2 shots; it takes any number of classes."""
    return raymeta.load(str(run_of("table", PROTOTYPES).path))


def ragged(num: int, channels: int = 2, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [50 * rng.normal(size=(4 + n % 3, channels)) for n in range(num)]


@pytest.fixture
def adapted(model: Model) -> Adapted:
    return model.adapt(ragged(6), ["b", "a", "c", "c", "a", "b"])


def test_labels_are_sorted_and_come_back_as_they_were_given(model: Model) -> None:
    x = ragged(6)
    for y in (["b", "a", "c", "c", "a", "b"], [30, 10, 20, 20, 10, 30]):
        found = model.adapt(x, y)
        assert found.labels is not None
        assert found.labels.tolist() == np.unique(np.array(y)).tolist()
        assert set(found.predict(x).tolist()) <= set(y)
        proba = found.predict_proba(x)
        assert proba.shape == (6, 3)
        assert proba.dtype == np.float64
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        right = np.mean(found.predict(x) == np.array(y))
        assert found.score(x, y) == pytest.approx(right)


def test_arrays_lists_tensors_and_both_orders_of_axes_say_the_same(adapted: Adapted) -> None:
    x = np.stack([one[:4] for one in ragged(5)])
    wanted = adapted.predict_proba(list(x))
    np.testing.assert_array_equal(adapted.predict_proba(x), wanted)
    np.testing.assert_array_equal(adapted.predict_proba(torch.from_numpy(x)), wanted)
    np.testing.assert_array_equal(adapted.predict_proba(x.swapaxes(1, 2), axes="NCT"), wanted)
    np.testing.assert_array_equal(
        adapted.predict_proba([one.T for one in ragged(5)], axes="NCT"),
        adapted.predict_proba(ragged(5)),
    )
    np.testing.assert_array_equal(
        adapted.predict_proba([one[:2] for one in ragged(5)]),
        adapted.predict_proba(x[:, :2], axes="NTC"),
    )
    # An example's answer depends on no other, however long and however many they are.
    alone = np.concatenate([adapted.predict_proba([one]) for one in ragged(300)[-5:]])
    np.testing.assert_allclose(adapted.predict_proba(ragged(300))[-5:], alone, atol=1e-12)


def test_one_channel_needs_no_axis_of_its_own(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table-1", PROTOTYPES).path))
    x = 100 * np.random.default_rng(0).normal(size=(4, 7))
    adapted = model.adapt(x, [0, 0, 1, 1])
    wanted = adapted.predict_proba(x)
    np.testing.assert_array_equal(adapted.predict_proba(x[:, :, None]), wanted)
    np.testing.assert_array_equal(adapted.predict_proba(x[:, None, :], axes="NCT"), wanted)
    np.testing.assert_array_equal(adapted.predict_proba(list(x), axes="NCT"), wanted)


@pytest.mark.parametrize(
    ("x", "axes", "said"),
    [
        (np.zeros((3, 2, 2)), None, "say axes='NTC' for time steps before channels"),
        (np.zeros((3, 2, 5)), None, "if so, say axes='NCT'"),
        (np.zeros((3, 5, 3)), None, r"C = 2 channels \(volt, ampere\), but has the shape \[5, 3\]"),
        (np.zeros((3, 5, 2)), "NCT", r"must be numbers \[C, T\]"),
        (np.zeros((3, 5, 2)), "TNC", "axes must be 'NTC' or 'NCT', but got 'TNC'"),
        (np.zeros((3, 5)), None, r"example 1: must be numbers \[T, C\] with C = 2"),
        (np.zeros(3), None, r"an array \[N, T, C\]"),
        (np.zeros((0, 5, 2)), None, "one example at least"),
        ([], None, "one example at least"),
        ([np.zeros((0, 2))], None, "T ≥ 1"),
        ([np.zeros((3, 2)), np.array([[1, 2], [np.nan, 3]])], None, "example 2, time step 2, chan"),
        ([np.array([[1, np.inf]] * 3)], None, "channel ampere: inf is not a finite number"),
        ([np.array([["1", "2"]] * 3)], None, "example 1: must be numbers"),
        ([np.array([["1", "2"]] * 3, dtype=object)], None, "holds text"),
        ([np.zeros((3, 2)) * 1j], None, "example 1: must be numbers"),
        ([np.full((3, 2), 1e300)], None, "example 1: holds numbers too large"),
        ([np.zeros((513, 2))], None, r"513 time steps.*512 at most \(tasks.max_steps\)"),
        ("text", None, "x must be a list of arrays"),
        (7, None, "but got int"),
    ],
)
def test_examples_that_do_not_fit_get_one_message(
    adapted: Adapted, x: Any, axes: Any, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        adapted.predict(x, axes=axes)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (["a"] * 6, "2 classes at least, but has one class: 'a'"),
        (["a", "b"], "one class for each of the 6 examples"),
        ([0.5, 1, 2, 0, 1, 2], "text or whole numbers, but holds float64"),
        (["a", None, "b", "a", "b", "a"], "y, example 2: must be a class"),
        (np.array(["a", 1] * 3, dtype=object), "text and numbers mixed"),
        (None, "y is missing"),
    ],
)
def test_classes_that_do_not_fit_get_one_message(model: Model, y: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        model.adapt(ragged(6), y)


def test_a_class_that_the_network_is_not_adapted_to_is_refused_at_the_score(
    adapted: Adapted,
) -> None:
    with pytest.raises(DataError, match=r"example 2: 'd' is none of the classes.*'a', 'b', 'c'"):
        adapted.score(ragged(3), ["a", "d", "b"])


def test_fewer_examples_of_a_class_than_in_training_are_warned_of(model: Model) -> None:
    with pytest.warns(DataWarning, match=r"class 'b' has 1 support examples.*with 2: "):
        model.adapt(ragged(3), ["a", "a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.adapt(ragged(5), ["a", "a", "b", "b", "b"])


def test_prototypes_take_more_classes_and_fixed_outputs_do_not(run_of: RunOf, model: Model) -> None:
    y = list("abcdefgh")
    with pytest.warns(DataWarning):
        assert model.adapt(ragged(8), y).predict_proba(ragged(3)).shape == (3, 8)
    maml = raymeta.load(str(run_of("table", MAML).path))
    with pytest.raises(DataError, match=r"at most 3 classes.*but has 8"):
        maml.adapt(ragged(8), y)
    two = maml.adapt(ragged(4), ["a", "a", "b", "b"])
    proba = two.predict_proba(ragged(3))
    assert proba.shape == (3, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    shared = raymeta.load(str(run_of("table", MAML, "maml.shared_head=true").path))
    with pytest.warns(DataWarning):
        assert shared.adapt(ragged(8), y).predict_proba(ragged(3)).shape == (3, 8)


def test_a_network_that_adaptation_makes_infinite_is_refused(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sinusoid", MAML).path))
    recipe = model.trained.recipe
    assert isinstance(recipe.learner, Maml)
    recipe = replace(recipe, learner=replace(recipe.learner, inner_lr=1e300, inner_clip=None))
    model = replace(model, trained=replace(model.trained, recipe=recipe))
    with pytest.raises(DataError, match="not finite after 3 adaptation steps"):
        model.adapt(np.ones((4, 1, 1)), [1.0, 2.0, 3.0, 4.0])


def test_a_frame_has_the_columns_of_the_experiment(model: Model) -> None:
    x, kinds = ragged(6), [7, 5, 5, 7, 6, 6]
    rows = [
        {"recording": f"r{n}", "second": t, "kind": kinds[n], "volt": v, "ampere": a, "more": "?"}
        for n, one in enumerate(x)
        for t, (v, a) in enumerate(one)
    ]
    frame = pd.DataFrame(rows)
    wanted = model.adapt(x, kinds)
    found = model.adapt(frame)
    assert found.labels is not None
    assert found.labels.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(found.predict_proba(frame), wanted.predict_proba(x))
    assert found.score(frame) == wanted.score(x, kinds)
    # Time orders the steps; without a target the targets come beside the frame.
    backwards = frame.drop(columns="kind").sort_values(["recording", "second"], ascending=[1, 0])
    again = model.adapt(backwards, kinds)
    np.testing.assert_allclose(again.predict_proba(x), wanted.predict_proba(x), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="volt"), "no column 'volt'"),
        (lambda f: f.rename(columns={"volt": "Volt"}), "did you mean 'Volt'"),
        (lambda f: f.assign(volt=[1.0, np.nan]), "row 2, column volt: the value is missing"),
        (lambda f: f.assign(volt=["a", "b"]), "row 1, column volt: 'a' is not a finite number"),
        (lambda f: f.assign(second=1), "has the time of row 1 again"),
        (lambda f: f.assign(volt=[{}, 1]), "cannot be read"),
        (lambda f: f[:0], "has no rows"),
    ],
)
def test_a_frame_that_does_not_fit_gets_one_message(
    adapted: Adapted, change: Any, said: str
) -> None:
    frame = pd.DataFrame({"recording": 1, "second": [1, 2], "volt": [1.0, 2.0], "ampere": 0.5})
    assert len(adapted.predict(frame)) == 1
    with pytest.raises(DataError, match=said) as error:
        adapted.predict(change(frame))
    assert "the DataFrame" in str(error.value)
    with pytest.raises(DataError, match="axes are for arrays"):
        adapted.predict(frame, axes="NTC")


def test_a_list_of_frames_is_read_by_the_names_of_their_columns(model: Model) -> None:
    x, kinds = ragged(6), [0, 0, 1, 1, 2, 2]
    adapted = model.adapt(x, kinds)
    wanted = adapted.predict_proba(x)
    swapped = [pd.DataFrame({"ampere": a, "more": "?", "volt": v}) for v, a in (o.T for o in x)]
    np.testing.assert_array_equal(adapted.predict_proba(swapped), wanted)
    np.testing.assert_array_equal(model.adapt(swapped, kinds).predict_proba(x), wanted)
    # Columns without names stand in the order of the channels.
    np.testing.assert_array_equal(adapted.predict_proba([pd.DataFrame(o) for o in x]), wanted)
    bad = [*swapped[:1], swapped[1].rename(columns={"volt": "Volt"})]
    with pytest.raises(DataError, match=r"example 2.*no column 'volt'.*did you mean 'Volt'"):
        adapted.predict(bad)
    with pytest.raises(DataError, match="example 1 is a DataFrame"):
        adapted.predict(swapped, axes="NCT")


def test_sentences_keep_the_classes_of_training(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sentiment", MAML, "tasks.num_shots=1").path))
    texts = ["Truly great phone!", "It broke after a day."]
    given: list[Any] = [[1, 0], ["1", "0"]]
    for y in given:
        found = model.adapt(texts, y)
        assert found.predict(texts).dtype == np.array(y).dtype
    frame = pd.DataFrame({"text": texts, "class": [1, 0]})
    np.testing.assert_array_equal(
        model.adapt(frame).predict_proba(frame), model.adapt(texts, [1, 0]).predict_proba(texts)
    )
    for x, y, said in [
        (texts, ["good", "bad"], "one of the classes of meta-training, 0, 1, but got 'bad'"),
        (texts, [1, 1], "none of class 0"),
        (["fine", ""], [1, 0], "example 2: must be a text"),
        (["fine", "…"], [1, 0], "example 2: has no word"),
        ("fine", [1], "a list of texts"),
        (frame.drop(columns="text"), None, "no column 'text'"),
    ]:
        with pytest.raises(DataError, match=said):
            model.adapt(x, y)


def test_points_of_a_wave_are_regressed(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=ridge").path))
    x = np.linspace(-5, 5, 10)
    frame = pd.DataFrame({"x": x, "y": np.sin(x)})
    adapted = model.adapt(x[:, None], np.sin(x))
    found = adapted.predict(x[:, None, None])
    assert found.shape == (10,)
    np.testing.assert_array_equal(model.adapt(frame).predict(frame), found)
    error = np.square(found - np.sin(x)).mean()
    assert adapted.score(frame) == pytest.approx(error, abs=1e-9)
    with pytest.warns(DataWarning, match=r"there are 9 support examples.*with 10"):
        model.adapt(x[:9, None], np.sin(x[:9]))
    with pytest.raises(DataError, match="no class probabilities"):
        adapted.predict_proba(frame)
    with pytest.raises(DataError, match="must be one point"):
        adapted.predict(np.zeros((3, 2)))
    for y in (["a"] * 10, [np.nan] * 10, np.zeros((10, 2))):
        with pytest.raises(DataError, match="y"):
            model.adapt(x[:, None], y)


def test_strokes_are_counted_up(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("pen", PROTOTYPES).path))
    line = np.array([[0, 0, 0], [5, 5, 0], [9, 2, 1], [3, 3, 1.0]])
    circle = np.array([[0, 0, 0], [1, 1, 0], [0, 2, 0], [-1, 1, 0.0]])
    adapted = model.adapt([line, circle], ["line", "circle"])
    # Size and place do not matter, as in training.
    moved = [line * [3, 3, 1] + [7, 9, 0], circle]
    np.testing.assert_allclose(
        adapted.predict_proba(moved), adapted.predict_proba([line, circle]), atol=1e-9
    )
    with pytest.raises(DataError, match="number is smaller than the one before"):
        adapted.predict([line[::-1]])
    with pytest.raises(DataError, match="two points at least"):
        adapted.predict([line[:1]])


def test_a_temperature_and_sets_go_with_the_network_everywhere(
    run_of: RunOf, tmp_path: Path
) -> None:
    calibration = Calibration(2.5, ((0.2, 0.4), (0.1, 0.6)))
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    x = [50 * np.random.default_rng(n).normal(size=(6, 2)) for n in range(6)]
    plain = model.adapt(x, list("aabbcc"))
    adapted = replace(model, calibration=calibration).adapt(x, list("aabbcc"))
    softer = plain.predict_proba(x) ** (1 / 2.5)
    wanted = softer / softer.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adapted.predict_proba(x), wanted, rtol=1e-9)
    stream = adapted.stream(6)
    for step in range(6):
        found = stream.step(np.stack([one[step] for one in x]))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    adapted.save(tmp_path / "mine")
    again = raymeta.load_adapted(tmp_path / "mine")
    assert again.calibration == calibration
    sets = again.predict_set(x, coverage=0.5)
    for row, labels in zip(wanted, sets, strict=True):
        assert labels.tolist() == [k for k, p in zip("abc", row, strict=True) if 1 - p <= 0.4]
    with pytest.raises(DataError, match="was not calibrated"):
        plain.predict_set(x)
