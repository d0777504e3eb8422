"""ONNX graphs answer in onnxruntime as raymeta does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raymeta
from raymeta.data.files import read_each
from raymeta.data.readers.unipen import read_unipen
from raymeta.errors import DataError
from raymeta.evaluation.calibration import Calibration
from tests.inference.conftest import Cli, RunOf

onnxruntime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
RAGGED = [50 * RNG.normal(size=(size, 2)) for size in (6, 3, 9, 1, 4, 7)]
QUERIES = [50 * RNG.normal(size=(size, 2)) for size in (5, 9, 2, 12, 3, 1, 8)]
Y = ["c", "a", "b", "a", "c", "b"]


def assert_close(found: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def padded(xs: list[np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Makes the inputs of a graph, with padding that must not matter."""
    longest = max(len(x) for x in xs)
    full = np.full((len(xs), longest, xs[0].shape[1]), np.nan)
    for row, x in zip(full, xs, strict=True):
        row[: len(x)] = x
    return {f"{prefix}x": full, f"{prefix}lengths": np.array([len(x) for x in xs])}


def run(file: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


NETWORKS = [
    (
        f"model.cell={cell}",
        f"model.pooling={pooling}",
        f"model.bidirectional={both}",
        f"model.num_layers={layers}",
    )
    for cell in ("rnn", "gru", "lstm")
    for pooling in ("last", "mean", "attention")
    for both in ("false", "true")
    for layers in (1, 2)
] + [(f"model.pooling={pooling}", "model.stacked_steps=3") for pooling in ("last", "attention")]


@pytest.mark.parametrize("network", NETWORKS, ids=" ".join)
def test_every_adapted_network_answers_alike(
    run_of: RunOf, tmp_path: Path, network: tuple[str, ...]
) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes", *network).path))
    adapted = model.adapt(RAGGED, Y)
    adapted.export(tmp_path / "a.onnx")
    for queries in (QUERIES, QUERIES[:1], QUERIES[1:3]):
        found = run(tmp_path / "a.onnx", padded(queries))
        assert_close(found["probabilities"], adapted.predict_proba(queries))
        assert found["prediction"].tolist() == adapted.predict(queries).tolist()


LEARNERS = [
    ("learner=prototypes",),
    ("learner=prototypes", "prototypes.distance=cosine"),
    ("learner=ridge",),
    ("learner=matching",),
    ("learner=matching", "matching.full_context=false"),
    ("learner=maml",),
    ("learner=maml", "maml.adapt=head", "maml.inner_clip=0.3"),
    ("learner=maml", "maml.adapt=body", "maml.learn_inner_lr=true"),
    ("learner=maml", "maml.shared_head=true", "maml.inner_clip=0.1"),
    ("learner=meta_sgd",),
    ("learner=meta_sgd", "meta_sgd.shared_head=true"),
    ("learner=maml_plus_plus",),
    ("learner=reptile",),
    ("learner=proto_maml",),
    ("learner=imaml",),
    ("learner=cavia",),
]


@pytest.mark.parametrize("learner", LEARNERS, ids=" ".join)
def test_every_learner_is_exported_adapted_and_adapts_itself(
    run_of: RunOf, tmp_path: Path, learner: tuple[str, ...]
) -> None:
    model = raymeta.load(str(run_of("table", *learner).path))
    adapted = model.adapt(RAGGED, Y)
    wanted = adapted.predict_proba(QUERIES)
    adapted.export(tmp_path / "a.onnx")
    found = run(tmp_path / "a.onnx", padded(QUERIES))
    assert_close(found["probabilities"], wanted)
    model.export(tmp_path / "b.onnx")
    numbers = np.unique(Y, return_inverse=True)[1]
    inputs = {**padded(RAGGED, "support_"), **padded(QUERIES), "support_y": numbers}
    found = run(tmp_path / "b.onnx", inputs)
    assert_close(found["probabilities"], wanted)
    assert found["prediction"].tolist() == wanted.argmax(axis=1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    ("pooling", "more"),
    [
        ("last", ("model.bidirectional=true", "model.num_layers=2")),
        ("mean", ("model.num_layers=2",)),
        ("attention", ("model.bidirectional=true",)),
        ("attention", ("model.bidirectional=true", "model.stacked_steps=2")),
    ],
)
def test_gradients_of_every_network_are_those_of_adaptation(
    run_of: RunOf, tmp_path: Path, cell: str, pooling: str, more: tuple[str, ...]
) -> None:
    large = ("learner=maml", "maml.inner_lr=1.0")  # so that a wrong gradient would be seen
    network = (f"model.cell={cell}", f"model.pooling={pooling}", *more)
    model = raymeta.load(str(run_of("table", *large, *network).path))
    wanted = model.adapt(RAGGED, Y).predict_proba(QUERIES)
    model.export(tmp_path / "m.onnx")
    numbers = np.unique(Y, return_inverse=True)[1]
    inputs = {**padded(RAGGED, "support_"), **padded(QUERIES), "support_y": numbers}
    assert_close(run(tmp_path / "m.onnx", inputs)["probabilities"], wanted)
    # Another support set: other examples, steps and fewer ways than in training.
    few, names = [QUERIES[row] for row in (1, 2, 6)], ["x", "y", "x"]
    wanted = model.adapt(few, names).predict_proba(RAGGED)
    inputs = {**padded(few, "support_"), **padded(RAGGED), "support_y": np.array([0, 1, 0])}
    assert_close(run(tmp_path / "m.onnx", inputs)["probabilities"], wanted)
    unadapted = replace(model.trained.recipe, eval_steps=0)
    start = replace(model, trained=replace(model.trained, recipe=unadapted)).adapt(few, names)
    assert abs(start.predict_proba(RAGGED) - wanted).max() > 0.05


def test_a_learned_prior_is_exported_with_its_classes(run_of: RunOf, tmp_path: Path) -> None:
    fixed = (
        *("tasks.kind=groups", "tasks.groups=[batch]", "tasks.num_ways=12", "tasks.num_shots=1"),
        *("tasks.num_queries=1", "learner=ridge", "ridge.learned_prior=true"),
    )
    model = raymeta.load(str(run_of("table", *fixed).path))
    names = [f"kind {number}" for number in range(12)]
    support = [50 * RNG.normal(size=(size % 5 + 2, 2)) for size in range(12)]
    adapted = model.adapt(support, names)
    wanted = adapted.predict_proba(QUERIES)
    assert not model.is_open
    adapted.export(tmp_path / "a.onnx")
    assert_close(run(tmp_path / "a.onnx", padded(QUERIES))["probabilities"], wanted)
    model.export(tmp_path / "m.onnx")
    numbers = np.array([sorted(names).index(name) for name in names])
    inputs = {**padded(support, "support_"), **padded(QUERIES), "support_y": numbers}
    assert_close(run(tmp_path / "m.onnx", inputs)["probabilities"], wanted)


def test_classes_of_an_open_learner_may_be_any_number(run_of: RunOf, tmp_path: Path) -> None:
    for learner in ("prototypes", "ridge", "matching", "alignment", "proto_maml"):
        model = raymeta.load(str(run_of("table", f"learner={learner}").path))
        model.export(tmp_path / "m.onnx")
        numbers = np.array([4, 1, 2, 0, 3, 1])
        wanted = model.adapt(RAGGED, numbers).predict_proba(QUERIES)
        inputs = {**padded(RAGGED, "support_"), **padded(QUERIES), "support_y": numbers}
        found = run(tmp_path / "m.onnx", inputs)["probabilities"]
        assert_close(found, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        *([f"learner={name}"] for name in ("alpaca", "ridge", "matching", "maml", "cavia")),
        ["learner=ridge", "ridge.learned_prior=true"],
    ],
    ids=" ".join,
)
def test_a_regression_is_exported(run_of: RunOf, tmp_path: Path, settings: list[str]) -> None:
    model = raymeta.load(str(run_of("sinusoid", *settings).path))
    x, y = RNG.uniform(-5, 5, (10, 1, 1)), RNG.normal(size=(10, 1))
    queries = RNG.uniform(-5, 5, (7, 1, 1))
    adapted = model.adapt(x, y)
    adapted.export(tmp_path / "a.onnx")
    model.export(tmp_path / "m.onnx")
    wanted = adapted.predict(queries)[:, None]
    assert_close(run(tmp_path / "a.onnx", {"x": queries})["prediction"], wanted)
    inputs = {"support_x": x, "support_y": y.astype(np.float32), "x": queries}
    assert_close(run(tmp_path / "m.onnx", inputs)["prediction"], wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("learner=prototypes",),
        ("learner=alignment", "tasks.context_grid=3", "model.stacked_steps=3"),
    ],
    ids=" ".join,
)
def test_strokes_are_prepared_in_the_graph(
    run_of: RunOf, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    run_ = run_of("pen", *settings)
    model = raymeta.load(str(run_.path))
    files = run_.experiment().tasks.data_files()
    found = [x for part, _ in read_each(read_unipen, files[:1]) for x in part.x]
    support, queries = found[:5], found[5:45]
    # A pen that rests; one that never moves; two points.
    queries += [np.repeat(found[3], 2, axis=0), np.ones((4, 3)), found[7][:2]]
    adapted = model.adapt(support, list("abcde"))
    adapted.export(tmp_path / "a.onnx")
    answers = run(tmp_path / "a.onnx", padded(queries))
    assert_close(answers["probabilities"], adapted.predict_proba(queries))
    assert answers["prediction"].tolist() == adapted.predict(queries).tolist()


def test_steps_are_aligned_in_the_graph(run_of: RunOf, tmp_path: Path) -> None:
    for pooling in ("mean", "attention"):
        run_ = run_of("table", "learner=alignment", f"model.pooling={pooling}", seeds=2)
        adapted = raymeta.load(str(run_.path)).adapt(RAGGED, Y)
        adapted.export(tmp_path / "a.onnx")
        answers = run(tmp_path / "a.onnx", padded(QUERIES))
        assert_close(answers["probabilities"], adapted.predict_proba(QUERIES))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_the_graph_of_a_stream_takes_and_returns_its_state(
    run_of: RunOf, tmp_path: Path, cell: str, pooling: str
) -> None:
    network = (f"model.cell={cell}", f"model.pooling={pooling}", "model.num_layers=2")
    run_ = run_of("table", "learner=prototypes", *network, seeds=2)
    adapted = raymeta.load(str(run_.path)).adapt(RAGGED, Y)
    adapted.export(tmp_path / "s.onnx", stream=True)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]
    )
    wanted = adapted.stream(3)
    stream: dict[str, Any] = {}
    for one in session.get_inputs()[1:]:
        shape = [3 if size == "streams" else size for size in one.shape]
        stream[one.name] = np.full(shape, -3e38 * one.name.startswith("highest"), np.float32)
    names = [output.name for output in session.get_outputs()]
    for x in 50 * RNG.normal(size=(8, 3, 2)):
        found = dict(zip(names, session.run(None, {"x": x, **stream}), strict=True))
        np.testing.assert_allclose(found["probabilities"], wanted.step(x), rtol=0, atol=1e-6)
        stream = {name: found[f"next_{name}"] for name in stream}


@pytest.mark.parametrize(
    ("source", "overrides", "said"),
    [
        ("table", ("training.precision=bfloat16",), "precision bfloat16 cannot be exported"),
    ],
)
def test_what_has_no_onnx_form_is_refused_with_the_reason(
    run_of: RunOf, tmp_path: Path, source: str, overrides: tuple[str, ...], said: str
) -> None:
    model = raymeta.load(str(run_of(source, "learner=prototypes", *overrides).path))
    with pytest.raises(DataError, match=said):
        model.export(tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_bidirectional_network_has_no_stream(run_of: RunOf, tmp_path: Path) -> None:
    model = raymeta.load(str(run_of("table", "learner=ridge", "model.bidirectional=true").path))
    with pytest.raises(DataError, match="cannot be streamed: a bidirectional"):
        model.adapt(RAGGED, Y).export(tmp_path / "s.onnx", stream=True)


def test_an_absent_onnx_gets_one_message(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = raymeta.load(str(run_of("table", "learner=ridge").path))
    monkeypatch.setattr("raymeta.inference.adapted.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'raymeta\[onnx\]'"):
        model.export(tmp_path / "m.onnx")


def test_the_command_line_exports_runs_and_adapted_networks(
    run_cli: Cli, run_of: RunOf, tmp_path: Path
) -> None:
    folder = str(run_of("table", "learner=prototypes").path)
    adapted = raymeta.load(folder).adapt(RAGGED, Y)
    adapted.save(tmp_path / "mine.raymeta")
    assert run_cli("export", "mine.raymeta", "-o", "a.onnx")[0] == 0
    assert run_cli("export", folder, "--adapts", "-o", "m.onnx")[0] == 0
    assert run_cli("export", "mine.raymeta", "--stream", "-o", "s.onnx")[0] == 0
    found = run(tmp_path / "a.onnx", padded(QUERIES))
    assert_close(found["probabilities"], adapted.predict_proba(QUERIES))
    for arguments, said in (
        (["export", folder, "-o", "x.onnx"], "is a folder"),
        (["export", "mine.raymeta", "--adapts", "-o", "x.onnx"], "no run folder"),
        (["export", folder, "--adapts", "--stream", "-o", "x.onnx"], "--stream"),
    ):
        code, _, error = run_cli(*arguments)
        assert code == 1
        assert said in error.replace("\n", " ")
        assert not (tmp_path / "x.onnx").exists()


def test_the_temperature_is_part_of_every_graph(run_of: RunOf, tmp_path: Path) -> None:
    model = raymeta.load(str(run_of("table", "learner=ridge").path))
    model = replace(model, calibration=Calibration(3.0))
    adapted = model.adapt(RAGGED, Y)
    wanted = adapted.predict_proba(QUERIES)
    adapted.export(tmp_path / "a.onnx")
    model.export(tmp_path / "m.onnx")
    assert_close(run(tmp_path / "a.onnx", padded(QUERIES))["probabilities"], wanted)
    numbers = np.unique(Y, return_inverse=True)[1]
    inputs = {**padded(RAGGED, "support_"), **padded(QUERIES), "support_y": numbers}
    assert_close(run(tmp_path / "m.onnx", inputs)["probabilities"], wanted)
