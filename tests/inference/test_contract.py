"""Every learner and source: a network in use answers as in the meta-test."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raymeta
from raymeta.data import token_vectors
from raymeta.data.files import read_each
from raymeta.data.readers.python import ALLOW_CODE
from raymeta.data.readers.sentences import TextReader, read_sentences
from raymeta.data.readers.table import TableReader
from raymeta.data.readers.unipen import read_unipen
from raymeta.errors import DataError, RunError
from raymeta.experiment.schema import Experiment
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.meta.learners import LEARNERS
from raymeta.run_folder import Run
from raymeta.tasks.load import SOURCES, load_tasks
from raymeta.training.checkpoint import read_state
from raymeta.training.recipe import build_recipe
from tests.encoders import MAX_TOKENS, write_encoder
from tests.inference.conftest import RunOf, raw_of

CPU = torch.device("cpu")


def recordings(experiment: Experiment) -> list[Any]:
    return [
        x for found, _ in read_each(read_unipen, experiment.tasks.data_files()) for x in found.x
    ]


def sentences(experiment: Experiment) -> list[Any]:
    files = experiment.tasks.data_files()
    return [text for found in read_each(read_sentences, files) for text in found.texts]


def texts(experiment: Experiment) -> list[Any]:
    reader = TextReader("text", "label", "domain")
    files = experiment.tasks.data_files()
    return [text for found in read_each(reader, files) for text in found.texts]


def signals(experiment: Experiment) -> list[Any]:
    (file,) = (path for path in experiment.tasks.data_files() if path.name == "signals.csv")
    reader = TableReader("recording", "kind", ("volt", "ampere"), "second")
    return list(reader(file).x)


# Source -> all its raw examples; those of `sinusoid` are drawn.
RAW: dict[str, Callable[[Experiment], list[Any]]] = {
    "pen": recordings,
    "python": signals,
    "sentiment": sentences,
    "table": signals,
    "text": texts,
}
SERVED = [
    (source, learner)
    for source in SOURCES
    for learner, kind in LEARNERS.items()
    if ("regression" if source == "sinusoid" else "classification") not in kind.refuses
]


def test_every_source_says_what_its_inputs_are() -> None:
    assert set(SOURCES) == {*RAW, "sinusoid"}
    assert all(source.inputs for source in SOURCES.values())


def test_a_network_on_a_users_own_code_is_used_without_that_code(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("python")
    episode = Episode(run, raymeta.load(str(run.path)), 0)
    monkeypatch.delenv(ALLOW_CODE)
    adapted = raymeta.load(str(run.path)).adapt(episode.support_x, episode.support_y)
    assert_answers(adapted, episode)


class Episode:
    """A meta-test episode as raw examples, with the answers of the meta-test's networks."""

    def __init__(self, run: Run, model: Model, number: int) -> None:
        tasks = load_tasks(run.best_experiment())
        recipe = build_recipe(run.best_experiment(), tasks)
        episode = tasks.episode("test", number)
        source = tasks.name
        if source == "sinusoid":
            self.support_x: Any = episode.support_x.astype(np.float64)
            self.query_x: Any = episode.query_x.astype(np.float64)
        else:
            raw = RAW[source](run.experiment())
            names = [str(n) for n in range(len(raw))]
            prepared = {
                x.tobytes(): one
                for x, one in zip(model.trained.inputs.prepare(raw, names), raw, strict=True)
            }
            self.support_x = raw_of(prepared, episode.support_x, episode.support_lengths)
            self.query_x = raw_of(prepared, episode.query_x, episode.query_lengths)
        self.ways = episode.support_y
        # What the ways are called where the source names them by text.
        self.called = np.array(model.trained.inputs.classes if source == "text" else range(99))
        is_named = tasks.input_spec.problem == "classification"
        self.support_y, self.query_y = (
            self.called[y] if is_named else y for y in (episode.support_y, episode.query_y)
        )
        self.problem = recipe.problem
        answers = []
        episodes = tasks.episodes("test", [number]).to(CPU, recipe.dtype)
        for file in sorted(Path(str(run.path)).glob("models/tuned*.safetensors")):
            *_, last = recipe.learner.query_outputs(
                recipe.spec,
                recipe.problem,
                read_state(file).meta_params,
                episodes.support,
                episodes.query,
                recipe.num_steps,
            )
            answers.append(last)
        self.answers = self.problem.mean_outputs(torch.stack(answers))[0].numpy()
        self.score = self.problem.score(
            torch.from_numpy(self.answers)[None], episodes.query.y
        ).item()


def assert_answers(adapted: Adapted, episode: Episode) -> None:
    if adapted.labels is None:
        found = adapted.predict(episode.query_x)
        np.testing.assert_allclose(found, episode.answers[:, 0], rtol=1e-9, atol=1e-9)
    else:
        found = adapted.predict_proba(episode.query_x)
        np.testing.assert_allclose(found, episode.answers, rtol=1e-9, atol=1e-9)
        wanted = episode.called[episode.answers.argmax(axis=1)]
        np.testing.assert_array_equal(adapted.predict(episode.query_x), wanted)
    score = adapted.score(episode.query_x, episode.query_y)
    assert score == pytest.approx(episode.score, abs=1e-9)


@pytest.mark.parametrize(("source", "learner"), SERVED)
def test_a_used_network_answers_as_in_the_meta_test(
    run_of: RunOf, tmp_path: Path, source: str, learner: str
) -> None:
    run = run_of(source, f"learner={learner}")
    model = raymeta.load(str(run.path))
    episode = Episode(run, model, 1)
    adapted = model.adapt(episode.support_x, episode.support_y)
    assert_answers(adapted, episode)
    # Whatever the order of the classes, which some learners read one after another.
    if adapted.labels is not None:
        num_shots = run.experiment().tasks.num_shots
        order = np.lexsort((-episode.ways, np.arange(len(episode.ways)) % num_shots))
        mixed = [episode.support_x[row] for row in order]
        assert_answers(model.adapt(mixed, episode.support_y[order]), episode)
    adapted.save(tmp_path / "mine.raymeta")
    assert_answers(raymeta.load_adapted(tmp_path / "mine.raymeta"), episode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "learner"), [("table", "prototypes"), ("sinusoid", "cavia"), ("table", "maml")]
)
def test_the_networks_of_a_refit_answer_as_the_ensemble_of_the_meta_test(
    run_of: RunOf, tmp_path: Path, source: str, learner: str
) -> None:
    run = run_of(source, f"learner={learner}", seeds=2)
    model = raymeta.load(str(run.path))
    episode = Episode(run, model, 0)
    adapted = model.adapt(episode.support_x, episode.support_y)
    assert len(adapted.params) == 2
    assert_answers(adapted, episode)
    adapted.save(tmp_path / "both.raymeta")
    assert_answers(raymeta.load_adapted(tmp_path / "both.raymeta"), episode)
    first = raymeta.load(str(run.path), ensemble=False)
    alone = first.adapt(episode.support_x, episode.support_y)
    assert len(alone.params) == 1
    file = Path(str(run.model_file("tuned-1")))
    second = file.read_bytes()
    try:
        file.unlink()
        assert raymeta.load(str(run.path), ensemble=False).networks[0].keys()
        with pytest.raises(RunError, match="tuned-1"):
            raymeta.load(str(run.path))
    finally:
        file.write_bytes(second)


def encoder_run(
    run_of: RunOf, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[Run, Path]:
    """Makes a run on sentences that an encoder in `folder` reads, and that encoder."""
    monkeypatch.setattr(token_vectors, "cache_folder", lambda _: folder / "cache")
    encoder = write_encoder(folder / "encoder")
    (folder / "sentences").mkdir()
    colours = ["red", "green", "blue"]
    for domain in ("books", "films", "phones"):
        rows = [
            {"text": f"{domain} {judgement} {one} {other} {third}", "class": label}
            for label, judgement in enumerate(("bad", "good"))
            for one, other, third in product(colours, colours, colours)
        ]
        (folder / "sentences" / f"{domain}.json").write_text(json.dumps(rows))
    run = run_of(
        "sentiment",
        f"tasks.data_dir={folder / 'sentences'}",
        "tasks.test_domain=phones",
        "tasks.num_queries=1",
        f"tasks.encoder={encoder}",
        f"tasks.max_tokens={MAX_TOKENS}",
        "tasks.num_shots=1",
        *overrides,
    )
    return run, encoder


def test_texts_go_through_the_encoder_of_the_training_and_no_other(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, encoder = encoder_run(run_of, tmp_path, monkeypatch, "learner=prototypes")
    model = raymeta.load(str(run.path))
    texts = ["good films!", "bad phones", "bad bad red books"]
    tasks = load_tasks(run.best_experiment())
    assert model.trained.recipe.spec.num_features == tasks.input_spec.num_features
    raw = RAW["sentiment"](run.experiment())
    known = token_vectors.token_vectors(str(encoder), raw, MAX_TOKENS)
    for text, found in zip(raw, model.trained.inputs.prepare(raw, raw), strict=True):
        wanted = known.vectors[known.rows(text)].astype(np.float32)
        np.testing.assert_allclose(found, wanted, atol=2e-3)  # float16, of other batches
    adapted = model.adapt(texts[:2], [1, 0])
    wanted = adapted.predict_proba(texts)
    adapted.save(tmp_path / "mine.raymeta")
    again = raymeta.load_adapted(tmp_path / "mine.raymeta")
    np.testing.assert_array_equal(again.predict_proba(texts), wanted)
    write_encoder(encoder, seed=1)
    with pytest.raises(DataError, match="files are not those that the network was trained with"):
        again.predict(texts)
