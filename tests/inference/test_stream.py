"""A stream answers after every step as for the whole sequence so far."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError
from tests.inference.conftest import RunOf

X = [50 * np.random.default_rng(n).normal(size=(6, 2)) for n in range(6)]
Y = ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("learner", ["prototypes", "maml", "cavia", "matching"])
def test_every_step_is_answered_as_the_sequence_so_far(run_of: RunOf, learner: str) -> None:
    seeds = 2 if learner == "prototypes" else 1
    adapted = raymeta.load(str(run_of("table", f"learner={learner}", seeds=seeds).path)).adapt(X, Y)
    stream = adapted.stream(6)
    for step in range(6):
        found = stream.step(np.stack([x[step] for x in X]))
        wanted = adapted.predict_proba([x[: step + 1] for x in X])
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
        assert stream.num_steps == step + 1
    alone = adapted.stream()
    np.testing.assert_allclose(alone.step(X[0][0]), adapted.predict_proba([X[0][:1]]), atol=1e-9)


def test_a_step_that_is_refused_changes_nothing(run_of: RunOf) -> None:
    adapted = raymeta.load(str(run_of("table", "learner=prototypes").path)).adapt(X, Y)
    stream = adapted.stream(2)
    first = stream.step([[1, 2], [3, 4]])
    for step, said in [
        ([1, 2], r"must be \[N, C\] = \[2, 2\]"),
        ([[1, 2]], "volt, ampere"),
        ([[1, np.nan], [3, 4]], "nan is not a finite number"),
        ([[1, "x"], [3, 4]], "numbers"),
        ([[1, 1e300], [3, 4]], "stream 1: holds numbers too large"),
    ]:
        with pytest.raises(DataError, match=said):
            stream.step(step)
    assert stream.num_steps == 1
    again = adapted.stream(2)
    np.testing.assert_array_equal(again.step([[1, 2], [3, 4]]), first)
    np.testing.assert_array_equal(stream.step([[5, 6], [7, 8]]), again.step([[5, 6], [7, 8]]))


def test_streams_end_where_training_ended(run_of: RunOf) -> None:
    stream = (
        raymeta.load(str(run_of("sinusoid", "learner=ridge").path))
        .adapt([[[1.0]], [[2.0]]], [3.0, 4.0])
        .stream()
    )
    assert stream.step([1.5]).shape == (1, 1)
    with pytest.raises(DataError, match="1 time steps, the most"):
        stream.step([1.5])


def test_what_needs_whole_sequences_is_refused(run_of: RunOf) -> None:
    both = run_of("table", "learner=prototypes", "model.bidirectional=true")
    said = r"from its end too \(.*trained with model\.bidirectional: false .*; use predict"
    with pytest.raises(DataError, match=said):
        raymeta.load(str(both.path)).adapt(X, Y).stream()
    aligned = raymeta.load(str(run_of("table", "learner=alignment").path)).adapt(X, Y)
    with pytest.raises(DataError, match=r"learner alignment compares whole sequences, .* predict"):
        aligned.stream()
    texts = raymeta.load(str(run_of("sentiment", "learner=maml", "tasks.num_shots=1").path))
    stacked = run_of("table", "learner=prototypes", "model.stacked_steps=3")
    said = r"reads 3 time steps at once \(.*trained with model\.stacked_steps: 1 .*; use predict"
    with pytest.raises(DataError, match=said):
        raymeta.load(str(stacked.path)).adapt(X, Y).stream()
    with pytest.raises(DataError, match=r"examples are prepared as a whole; use predict$"):
        texts.adapt(["good", "bad"], [1, 0]).stream()
    with pytest.raises(DataError, match="num_streams must be at least 1"):
        raymeta.load(str(run_of("table", "learner=prototypes").path)).adapt(X, Y).stream(0)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (["tasks.spectrum={frequencies: 4, per_step: 2}"], "tasks.spectrum"),
        (
            ["tasks.missing=mask", "tasks.time_differences=true"],
            "tasks.missing and tasks.time_differences",
        ),
    ],
)
def test_the_settings_that_need_whole_sequences_are_named(
    run_of: RunOf, settings: list[str], keys: str
) -> None:
    run = run_of("table", "learner=prototypes", *settings)
    frame = pd.DataFrame(
        {
            "recording": np.repeat(range(6), 6),
            "second": list(range(6)) * 6,
            "volt": np.concatenate(X)[:, 0],
            "ampere": np.concatenate(X)[:, 1],
        }
    )
    adapted = raymeta.load(str(run.path)).adapt(frame, Y)
    said = rf"prepared as a whole \({keys}\); use predict, or a network that was trained without$"
    with pytest.raises(DataError, match=said):
        adapted.stream()
