"""ONNX graphs prepare what there is beside numbers: categories, texts, spectra, gaps, times."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError, DataWarning
from raymeta.experiment.file import shipped_experiments
from raymeta.experiment.schema import Experiment
from raymeta.tasks.table import deal_table
from raymeta.tasks.table_settings import TableTasks
from tests.inference.conftest import TABLE, RunOf, make_run, write_signals
from tests.inference.test_categories import write_modes
from tests.inference.test_contract import RAW, encoder_run
from tests.inference.test_export import QUERIES, RAGGED, Y, assert_close, onnxruntime, padded, run

Arrays = dict[str, np.ndarray]


def notes_of(file: Path) -> dict[str, Any]:
    """Reads the metadata that say how inputs are made, as a device does."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(notes[name]) for name in INPUT_NOTES if name in notes}


INPUT_NOTES = (
    *("channels", "categories", "times"),
    *("tokens", "vocabulary", "unknown", "max_tokens", "encoder"),
)


def rows_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The sequences in the order in which raymeta reads them."""
    parts = frame.groupby("recording", sort=False)
    return [part.sort_values("second") for _, part in parts]


def encoded(frame: pd.DataFrame, notes: dict[str, Any], prefix: str = "") -> Arrays:
    """Makes the inputs of a graph of a table by the graph's metadata alone."""
    parts, levels = rows_of(frame), notes.get("categories", {})
    numbers = [part[notes["channels"]].to_numpy() for part in parts]
    found = padded(numbers, prefix)
    codes = np.full((*found[f"{prefix}x"].shape[:2], len(levels)), 99)  # what pads matters not
    for row, part in zip(codes, parts, strict=True):
        for place, (name, own) in enumerate(levels.items()):
            texts = [None if pd.isna(v) else str(v).lower() for v in part[name]]
            row[: len(part), place] = [own.index(t) if t in own else -1 for t in texts]
    if not notes["channels"]:
        del found[f"{prefix}x"]
    return {**found, f"{prefix}categories": codes} if levels else found


def modes_run(folder: Path, learner: str, features: str = "volt, ampere") -> pd.DataFrame:
    """Makes a run in `folder`; returns its data."""
    frame = write_modes(folder)
    text = TABLE.format(folder=folder / "data", features=features)
    (folder / "modes.yaml").write_text(text + "  categories: [switch, mode]\n")
    make_run(folder, str(folder / "modes.yaml"), f"learner={learner}")
    return frame


@pytest.mark.parametrize("learner", ["maml", "prototypes", "alignment", "cavia"])
def test_categories_are_codes_that_the_metadata_name(tmp_path: Path, learner: str) -> None:
    frame = modes_run(tmp_path, learner)
    (folder,) = (tmp_path / "runs").iterdir()
    model = raymeta.load(str(folder))
    kinds = sorted(frame["kind"].unique())
    support = frame[frame["kind"].isin(kinds[:3])]
    queries = frame[frame["kind"].isin(kinds[3:])].drop(columns="kind")
    place = np.arange(len(queries))
    queries["mode"] = queries["mode"].where(place % 5 > 0, "odd")  # unknown
    # Never missing in training.
    queries["switch"] = queries["switch"].astype(str).where(place % 7 > 0, None)
    adapted = model.adapt(support)
    with pytest.warns(DataWarning, match="did not occur"):
        wanted = adapted.predict_proba(queries)
    adapted.export(tmp_path / "a.onnx")
    notes = notes_of(tmp_path / "a.onnx")
    assert notes["channels"] == ["volt", "ampere"]
    assert notes["categories"] == {"switch": ["false", "true"], "mode": ["high", "low", None]}
    found = run(tmp_path / "a.onnx", encoded(queries, notes))
    assert_close(found["probabilities"], wanted)
    model.export(tmp_path / "m.onnx")
    y = [kinds.index(part["kind"].iloc[0]) for part in rows_of(support)]
    inputs = {**encoded(support, notes, "support_"), **encoded(queries, notes)}
    found = run(tmp_path / "m.onnx", {**inputs, "support_y": np.array(y)})
    assert_close(found["probabilities"], wanted)
    with pytest.raises(DataError, match=r"cannot be streamed: .*tasks\.categories"):
        adapted.export(tmp_path / "s.onnx", stream=True)


def test_a_table_of_categories_alone_has_no_numbers(tmp_path: Path) -> None:
    frame = modes_run(tmp_path, "ridge", features="")
    (folder,) = (tmp_path / "runs").iterdir()
    kinds = sorted(frame["kind"].unique())[:3]
    support = frame[frame["kind"].isin(kinds)]
    adapted = raymeta.load(str(folder)).adapt(support)
    adapted.export(tmp_path / "a.onnx")
    inputs = encoded(support, notes_of(tmp_path / "a.onnx"))
    assert set(inputs) == {"lengths", "categories"}
    found = run(tmp_path / "a.onnx", inputs)
    assert_close(found["probabilities"], adapted.predict_proba(support))


def numbered(texts: list[str], notes: dict[str, Any], prefix: str = "") -> Arrays:
    """Makes the inputs of a graph of texts by the graph's metadata alone."""
    tokens = [re.findall(notes["tokens"], text.lower()) for text in texts]
    known, unknown = notes["vocabulary"], notes["unknown"]
    x = np.full((len(texts), max(map(len, tokens))), 10**9)  # what pads matters not
    for row, own in zip(x, tokens, strict=True):
        row[: len(own)] = [known.get(token, unknown) for token in own]
    return {f"{prefix}x": x, f"{prefix}lengths": np.array([len(own) for own in tokens])}


TEXTS = ["word1 word2 fine", "WORD3 poor!", "word4 word5, word6 word7 fine fine", "word8 poor"]
ASKED = [
    *("word9", "nobody's word10 is fine?", "poor word11 word1", "strange"),
    " ".join(f"word{number}" for number in range(20)),  # more than max_tokens
]
MOODS = ["fine", "poor", "fine", "poor"]


@pytest.mark.parametrize(
    "settings",
    [
        ("learner=prototypes", "model.bidirectional=true"),
        ("learner=alignment", "model.pooling=attention"),
        ("learner=ridge", "model.stacked_steps=3"),
        ("learner=maml", "maml.inner_lr=1.0", "model.pooling=mean", "model.bidirectional=true"),
        ("learner=maml", "maml.inner_lr=1.0", "model.stacked_steps=3", "maml.inner_clip=0.5"),
        ("learner=maml", "maml.adapt=head"),
        ("learner=meta_sgd", "model.cell=lstm"),
        ("learner=imaml",),
        ("learner=cavia",),
    ],
    ids=" ".join,
)
def test_texts_are_tokens_that_the_metadata_number(
    run_of: RunOf, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    model = raymeta.load(str(run_of("text", *settings).path))
    adapted = model.adapt(TEXTS, MOODS)
    wanted = adapted.predict_proba(ASKED)
    adapted.export(tmp_path / "a.onnx")
    notes = notes_of(tmp_path / "a.onnx")
    assert notes["max_tokens"] == 12
    found = run(tmp_path / "a.onnx", numbered(ASKED, notes))
    assert_close(found["probabilities"], wanted)
    assert found["prediction"].tolist() == adapted.predict(ASKED).tolist()
    model.export(tmp_path / "m.onnx")
    inputs = {**numbered(TEXTS, notes, "support_"), **numbered(ASKED, notes)}
    found = run(tmp_path / "m.onnx", {**inputs, "support_y": np.array([0, 1, 0, 1])})
    assert_close(found["probabilities"], wanted)


def test_steps_move_the_vectors_of_tokens(run_of: RunOf, tmp_path: Path) -> None:
    settings = ("learner=maml", "maml.inner_lr=1.0", "model.pooling=mean")
    model = raymeta.load(str(run_of("text", *settings, "model.bidirectional=true").path))
    adapted = model.adapt(TEXTS, MOODS)
    wanted = adapted.predict_proba(ASKED)
    own = {**adapted.params[0], "embedding.weight": model.networks[0]["embedding.weight"][None]}
    unmoved = replace(adapted, params=(own,)).predict_proba(ASKED)
    assert abs(unmoved - wanted).max() > 1e-4  # so that a wrong gradient would be seen above
    with pytest.raises(DataError, match="cannot be streamed"):
        adapted.export(tmp_path / "s.onnx", stream=True)


def test_the_vectors_of_an_encoder_are_inputs(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, encoder = encoder_run(run_of, tmp_path, monkeypatch, "learner=maml")
    model = raymeta.load(str(trained.path))
    texts, asked = ["good films!", "bad phones"], ["bad bad red books", "good", "blue films"]
    adapted = model.adapt(texts, [1, 0])
    wanted = adapted.predict_proba(asked)
    adapted.export(tmp_path / "a.onnx")
    named = notes_of(tmp_path / "a.onnx")["encoder"]
    assert named == {"name": encoder.name, "digest": model.trained.identity.facts["encoder"]}
    support, queries = (model.trained.inputs.prepare(one, one) for one in (texts, asked))
    inputs = as_float(padded(queries))
    assert_close(run(tmp_path / "a.onnx", inputs)["probabilities"], wanted)
    model.export(tmp_path / "m.onnx")
    inputs |= as_float(padded(support, "support_")) | {"support_y": np.array([1, 0])}
    assert_close(run(tmp_path / "m.onnx", inputs)["probabilities"], wanted)


def as_float(inputs: Arrays) -> Arrays:
    """The inputs in single precision where they are not lengths."""
    return {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in inputs.items()}


@pytest.mark.parametrize(
    ("learner", "max_steps", "spectrum"),
    [
        ("maml", 16, "{frequencies: 4}"),
        ("alignment", 13, "{frequencies: 6, per_step: 3}"),
        ("prototypes", 12, "{frequencies: 7}"),
    ],
)
def test_spectra_are_taken_in_the_graph(
    run_of: RunOf, tmp_path: Path, learner: str, max_steps: int, spectrum: str
) -> None:
    settings = (f"tasks.spectrum={spectrum}", f"tasks.max_steps={max_steps}")
    model = raymeta.load(str(run_of("table", f"learner={learner}", *settings).path))
    adapted = model.adapt(RAGGED, Y)
    wanted = adapted.predict_proba(QUERIES)
    adapted.export(tmp_path / "a.onnx")
    assert_close(run(tmp_path / "a.onnx", padded(QUERIES))["probabilities"], wanted)
    model.export(tmp_path / "m.onnx")
    inputs = {**padded(RAGGED, "support_"), **padded(QUERIES)}
    numbers = np.unique(Y, return_inverse=True)[1]
    found = run(tmp_path / "m.onnx", {**inputs, "support_y": numbers})
    assert_close(found["probabilities"], wanted)
    with pytest.raises(DataError, match=r"cannot be streamed: .*tasks\.spectrum"):
        adapted.export(tmp_path / "s.onnx", stream=True)
    with pytest.raises(DataError, match="preparation of its examples has no such form"):
        adapted.export(tmp_path / "a.pt2")


def gaps_in(frame: pd.DataFrame) -> pd.DataFrame:
    """Removes volts at the beginning, within and at the end of recordings, and adds a mode."""
    step = frame.groupby("recording").cumcount()
    left = frame.groupby("recording").cumcount(ascending=False)
    number = frame["recording"].str[-1].astype(int)
    is_gap = ((number == 0) & (step < 2)) | ((number == 1) & (left < 2)) | step.isin([3, 4])
    mode = np.where(step % 2 == 0, "low", "high")
    return frame.assign(volt=frame["volt"].where(~is_gap), mode=mode)


@pytest.mark.parametrize("learner", ["maml", "prototypes"])
@pytest.mark.parametrize(
    ("missing", "more", "time"),
    [
        ("interpolate", "spectrum: {frequencies: 4}, max_steps: 12", "plain"),
        ("interpolate", "time_differences: true, categories: [mode]", "dates"),
        ("mask", "categories: [mode]", "plain"),
        ("mask", "time_differences: true", "dates"),
        ("mask", "max_steps: 12", "none"),
        ("refuse", "time_differences: true", "plain"),
    ],
)
def test_gaps_are_filled_in_and_times_read_in_the_graph(
    tmp_path: Path, learner: str, missing: str, more: str, time: str
) -> None:
    write_signals(tmp_path / "data", ("volt", "ampere"))
    file = tmp_path / "data" / "signals.csv"
    frame = pd.read_csv(file).sort_values(["recording", "second"])
    frame = frame.assign(mode="low") if missing == "refuse" else gaps_in(frame)
    frame["second"] = frame["second"] ** 2  # irregular
    seconds = frame["second"].astype(float)
    if time == "dates":
        seconds = 3600 * seconds
        frame["second"] = [f"2026-01-{2 + s // 24:02}T{s % 24:02}:00" for s in frame["second"]]
    frame.to_csv(file, index=False)
    text = TABLE.format(folder=tmp_path / "data", features="volt, ampere")
    if time == "none":
        text = text.replace("  time: second\n", "")
    settings = "".join(f"  {one}\n" for one in re.split(r", (?=\w+:)", more))
    (tmp_path / "gaps.yaml").write_text(text + f"  missing: {missing}\n" + settings)
    made = make_run(tmp_path, str(tmp_path / "gaps.yaml"), f"learner={learner}")
    model = raymeta.load(str(made.path))
    kinds = sorted(frame["kind"].unique())
    support = frame[frame["kind"].isin(kinds[:3])]
    queries = frame[frame["kind"].isin(kinds[3:])].drop(columns="kind")
    adapted = model.adapt(support)
    wanted = adapted.predict_proba(queries)
    assert np.ptp(wanted, axis=0).max() > 1e-3
    adapted.export(tmp_path / "a.onnx")
    notes = notes_of(tmp_path / "a.onnx")
    tasks, is_timed = model.trained.experiment.tasks, model.trained.inputs.is_timed
    assert isinstance(tasks, TableTasks)
    assert is_timed == (time != "none")
    if is_timed:
        # Lines are the same in all units.
        are_dates = time == "dates" if tasks.reads_times else None
        assert notes["times"] == {"column": "second", "are_dates": are_dates}

    def inputs_of(part: pd.DataFrame, prefix: str = "") -> Arrays:
        found = encoded(part, notes, prefix)
        if is_timed:
            own = part.assign(second=seconds[part.index])
            numbers = [one[["second"]].to_numpy() for one in rows_of(own)]
            found[f"{prefix}times"] = padded(numbers)["x"][:, :, 0]
        return found

    asked = inputs_of(queries)
    assert_close(run(tmp_path / "a.onnx", asked)["probabilities"], wanted)
    model.export(tmp_path / "m.onnx")
    y = [kinds.index(part["kind"].iloc[0]) for part in rows_of(support)]
    both = {**inputs_of(support, "support_"), **asked, "support_y": np.array(y)}
    assert_close(run(tmp_path / "m.onnx", both)["probabilities"], wanted)


# Forecasters have no graph.
SHIPPED = sorted(set(shipped_experiments()) - {"employment"})


def raw_examples(experiment: Experiment) -> list[Any]:
    """Some examples of a shipped experiment, as users have them."""
    tasks = experiment.tasks
    if tasks.source == "sinusoid":
        return list(np.random.default_rng(0).uniform(-5, 5, (40, 1, 1)))
    if isinstance(tasks, TableTasks):
        return [x[: tasks.example_steps] for x in deal_table(tasks).chosen["test"].x[:40]]
    return RAW[tasks.source](experiment)[:40]


def as_inputs(raw: list[Any], notes: dict[str, Any], prefix: str = "") -> Arrays:
    """Makes the inputs of a graph of texts, of one time step, or of sequences."""
    if isinstance(raw[0], str):
        return numbered(raw, notes, prefix)
    found = padded(raw, prefix)
    if len(notes["channels"]) == 1 and {len(x) for x in raw} == {1}:
        del found[f"{prefix}lengths"]
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_is_exported(run_of: RunOf, tmp_path: Path, name: str) -> None:
    trained = run_of(name)
    model = raymeta.load(str(trained.path))
    raw, outputs = raw_examples(trained.experiment()), model.trained.recipe.spec.num_outputs
    y: Any = np.random.default_rng(1).normal(size=(14, 1)) * 20
    numbers: Any = y.astype(np.float32)
    if model.trained.is_classification:
        numbers = np.arange(14) % outputs
        y = np.array(model.trained.inputs.classes or range(outputs))[numbers]
    support, queries = raw[:14], raw[14:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of another number of examples
        adapted = model.adapt(support, y)
    adapted.export(tmp_path / "a.onnx")
    model.export(tmp_path / "m.onnx")
    notes = notes_of(tmp_path / "a.onnx")
    asked = as_inputs(queries, notes)
    both = {**as_inputs(support, notes, "support_"), **asked, "support_y": numbers}
    for found in (run(tmp_path / "a.onnx", asked), run(tmp_path / "m.onnx", both)):
        if model.trained.is_classification:
            assert_close(found["probabilities"], adapted.predict_proba(queries))
        else:
            wanted = adapted.predict(queries).reshape(found["prediction"].shape)
            np.testing.assert_allclose(found["prediction"], wanted, rtol=1e-5, atol=1e-5)
