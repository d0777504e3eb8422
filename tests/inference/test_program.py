"""A .pt2 file answers in plain torch as raymeta does, for any number of examples and steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raymeta
from raymeta.errors import DataError
from raymeta.inference.export.program import NOTES_FILE
from tests.inference.conftest import Cli, RunOf

RNG = np.random.default_rng(5)
SUPPORT = [50 * RNG.normal(size=(size, 2)) for size in (6, 3, 9, 1, 4, 7)]
Y = ["c", "a", "b", "a", "c", "b"]
QUERIES = [50 * RNG.normal(size=(size, 2)) for size in (5, 9, 2, 12, 3, 1, 8)]
BATCHES = (QUERIES, QUERIES[:1], QUERIES[5:6], QUERIES[1:3])


def padded(xs: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    full = np.full((len(xs), max(map(len, xs)), xs[0].shape[1]), np.nan)
    for row, x in zip(full, xs, strict=True):
        row[: len(x)] = x
    return torch.from_numpy(full), torch.tensor([len(x) for x in xs])


def assert_alike(run_of: RunOf, file: Path, *settings: str, seeds: int = 1) -> None:
    model = raymeta.load(run_of("table", *settings, seeds=seeds).path)
    adapted = model.adapt(SUPPORT, Y)
    adapted.export(file)
    program = torch.export.load(file).module()
    for queries in BATCHES:
        wanted = adapted.predict_proba(queries)
        np.testing.assert_allclose(program(*padded(queries)), wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        ("rnn", "last", "true", 2),
        ("gru", "attention", "true", 1),
        ("lstm", "mean", "false", 1),
    ],
    ids=str,
)
def test_an_adapted_network_answers_alike(
    run_of: RunOf, tmp_path: Path, network: tuple[object, ...]
) -> None:
    keys = ("cell", "pooling", "bidirectional", "num_layers")
    settings = [f"model.{key}={value}" for key, value in zip(keys, network, strict=True)]
    assert_alike(run_of, tmp_path / "a.pt2", "learner=prototypes", *settings)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("both", ["false", "true"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_adapted_network_answers_alike(
    run_of: RunOf, tmp_path: Path, cell: str, pooling: str, both: str, layers: int
) -> None:
    settings = (f"model.cell={cell}", f"model.pooling={pooling}", f"model.num_layers={layers}")
    both = f"model.bidirectional={both}"
    assert_alike(run_of, tmp_path / "a.pt2", "learner=prototypes", *settings, both)


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner", [("learner=maml",), ("learner=prototypes", "prototypes.distance=cosine")], ids=str
)
def test_learners_with_an_affine_head_are_written(
    run_of: RunOf, tmp_path: Path, learner: tuple[str, ...]
) -> None:
    assert_alike(run_of, tmp_path / "a.pt2", *learner, "training.precision=float32", seeds=2)


@pytest.mark.slow
def test_numbers_are_written(run_of: RunOf, tmp_path: Path) -> None:
    adapted = raymeta.load(run_of("sinusoid", "learner=alpaca").path).adapt(
        RNG.uniform(-5, 5, (10, 1, 1)), RNG.normal(size=10)
    )
    adapted.export(tmp_path / "a.pt2")
    x = RNG.uniform(-5, 5, (7, 1, 1))
    found = torch.export.load(tmp_path / "a.pt2").module()(
        torch.from_numpy(x), torch.ones(7, dtype=torch.int64)
    )
    np.testing.assert_allclose(found[:, 0], adapted.predict(x), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_plain_torch_runs_a_file_without_raymeta(
    run_of: RunOf, tmp_path: Path, run_cli: Cli
) -> None:
    adapted = raymeta.load(run_of("table", "learner=prototypes").path).adapt(SUPPORT, Y)
    adapted.save(tmp_path / "a.raymeta")
    code, told, _ = run_cli("export", "a.raymeta", "-o", "a.pt2")
    assert code == 0
    assert "predicts x" in told
    script = (
        "import sys, torch; "
        f"notes = {{{NOTES_FILE!r}: ''}}; "
        "found = torch.export.load('a.pt2', extra_files=notes).module()("
        "torch.ones(2, 4, 2, dtype=torch.float64), torch.tensor([4, 2])); "
        "assert not [name for name in sys.modules if name.startswith('raymeta')]; "
        f"print(found.tolist()); print(notes[{NOTES_FILE!r}])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found, notes = map(json.loads, ended.stdout.strip().splitlines())
    wanted = adapted.predict_proba([np.ones((4, 2)), np.ones((2, 2))])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert notes["labels"] == ["a", "b", "c"]
    assert notes["channels"] == ["volt", "ampere"]


def test_what_has_no_such_form_is_refused(run_of: RunOf, tmp_path: Path) -> None:
    matching = raymeta.load(run_of("table", "learner=matching").path).adapt(SUPPORT, Y)
    with pytest.raises(DataError, match=r"learner matching cannot be written as \.pt2"):
        matching.export(tmp_path / "a.pt2")
    with pytest.raises(DataError, match=r"\.pt2 has no form for --stream"):
        matching.export(tmp_path / "a.pt2", stream=True)
    stacked = run_of("table", "learner=prototypes", "model.stacked_steps=3")
    with pytest.raises(DataError, match=r"model\.stacked_steps above 1"):
        raymeta.load(stacked.path).adapt(SUPPORT, Y).export(tmp_path / "a.pt2")
    model = raymeta.load(run_of("table", "learner=matching").path)
    with pytest.raises(DataError, match=r"\.pt2 is for an adapted network"):
        model.export(tmp_path / "a.pt2")
    assert not (tmp_path / "a.pt2").exists()
