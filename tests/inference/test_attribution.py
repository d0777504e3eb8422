"""Every learner and source: what an adapted network's answers are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raymeta
from raymeta.data import token_vectors
from raymeta.errors import DataError, DataWarning
from raymeta.inference.attribution import Attribution
from raymeta.inference.model import Adapted, Model
from raymeta.meta.learners import LEARNERS
from raymeta.tasks.load import SOURCES
from tests.encoders import MAX_TOKENS, write_encoder
from tests.inference.conftest import RunOf

WORDS = ("good", "bad", "not", "really", "film", "phone", "waste")
CELLS = ("rnn", "gru", "lstm")
SERVED = [
    (source, learner)
    for source in SOURCES
    for learner, kind in LEARNERS.items()
    if ("regression" if source == "sinusoid" else "classification") not in kind.refuses
]


def task_of(source: str, num: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Examples of a new task, of several lengths where the source has them, and their targets."""
    rng = np.random.default_rng(seed)
    match source:
        case "table":
            x: list[Any] = [80 * rng.normal(size=(4 + n % 4, 2)) for n in range(num)]
            return x, [f"kind {n % 3}" for n in range(num)]
        case "table-1":
            return [80 * rng.normal(size=(4 + n % 4, 1)) for n in range(num)], [
                f"kind {n % 3}" for n in range(num)
            ]
        case "pen":
            points = [rng.normal(size=(9 + n, 2)).cumsum(axis=0) for n in range(num)]
            x = [np.c_[p, np.arange(len(p)) > 5] for p in points]
            return x, [n % 5 for n in range(num)]
        case "sinusoid":
            at = rng.uniform(-5, 5, (num, 1, 1))
            return list(at), [2 * np.sin(one[0, 0]) for one in at]
        case "sentiment":
            return [" ".join(rng.choice(WORDS, 3 + n % 4)) for n in range(num)], [
                n % 2 for n in range(num)
            ]
        case _:
            words = [f"word{n}" for n in range(40)]
            return [" ".join(rng.choice(words, 3 + n % 4)) for n in range(num)], [
                ("fine", "poor")[n % 2] for n in range(num)
            ]


def adapted_of(model: Model, source: str) -> Adapted:
    num = {"pen": 5, "table": 6, "table-1": 6, "sinusoid": 10}.get(source, 10)
    return model.adapt(*task_of(source, num))


def answers(adapted: Adapted, x: Any) -> np.ndarray:
    """All answers `[N, K]` or `[N, O]`."""
    if adapted.labels is None:
        found = adapted.predict(x)
        return found[:, None] if found.ndim == 1 else found
    return adapted.predict_proba(x)


def assert_complete(found: Attribution) -> None:
    scale = np.maximum(1, np.abs(found.outputs - found.baseline_outputs))
    assert (np.abs(found.residuals) <= 1e-6 * scale).all()


@pytest.mark.parametrize(("source", "learner"), SERVED)
def test_attributions_add_up_to_what_the_answer_differs_from_the_baselines(
    run_of: RunOf, tmp_path: Path, source: str, learner: str
) -> None:
    model = raymeta.load(str(run_of(source, f"learner={learner}").path))
    adapted = adapted_of(model, source)
    x, _ = task_of(source, 4, seed=1)
    found = adapted.attribute(x)
    all_answers = answers(adapted, x)
    np.testing.assert_allclose(
        found.outputs, all_answers.max(axis=1) if adapted.labels is not None else all_answers[:, 0],
        rtol=1e-9,
    )
    assert_complete(found)
    assert found.values.any()
    assert found.values.shape == (4, found.lengths.max(), len(found.channels))
    beyond = np.arange(found.values.shape[1]) >= found.lengths[:, None]
    assert (found.values[beyond] == 0).all()
    if adapted.labels is not None:
        # Probabilities of all classes add up to one: what one gains the others lose.
        each = [adapted.attribute(x, label) for label in adapted.labels]
        np.testing.assert_allclose(sum(one.values for one in each), 0, atol=2e-6)
        for number, one in enumerate(each):
            np.testing.assert_allclose(one.outputs, all_answers[:, number], rtol=1e-9)
    lost = adapted.attribute(x, method="occlusion", window=99)
    if len(lost.channels) == 1:  # all of an example is the baseline
        np.testing.assert_allclose(
            lost.values[:, 0, 0], lost.outputs - lost.baseline_outputs, atol=1e-12
        )
    adapted.save(tmp_path / "mine.raymeta")
    again = raymeta.load_adapted(tmp_path / "mine.raymeta").attribute(x)
    np.testing.assert_array_equal(again.values, found.values)
