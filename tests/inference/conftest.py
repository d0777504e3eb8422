"""Makes runs of every learner and source, as the command line leaves them before the meta-test."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymeta import cli
from raymeta.data.readers.python import ALLOW_CODE
from raymeta.evaluation.networks import Refitted, keep_network
from raymeta.experiment.file import load_experiment, with_values
from raymeta.run_folder import Run
from raymeta.training.trainer import build_trainer

TINY = (
    "model.hidden_size=6",
    "training.pretrain_steps=0",
    "training.meta_steps=2",
    "training.meta_batch_size=2",
    "training.val_episodes=2",
    "training.precision=float64",
    "evaluation.adaptation_steps=3",
    "resources.num_workers=1",
    "search.space={}",
)
TABLE = """name: signals
tasks:
  source: table
  data_dir: {folder}
  sequence: recording
  target: kind
  features: [{features}]
  time: second
  num_ways: 3
  num_shots: 2
  num_queries: 2
  val_classes: 3
  test_classes: 3
"""


def write_signals(folder: Path, channels: tuple[str, ...]) -> None:
    """Writes twelve kinds of noisy waves, six recordings each, of 4 to 9 steps, in any order."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in range(12):
        for copy in range(6):
            steps = np.arange(rng.integers(4, 10))
            values = [
                100 * (kind + 1) * np.sin(steps * (kind + 1) / 4 + number)
                + rng.normal(size=len(steps))
                for number, _ in enumerate(channels)
            ]
            rows += [
                f"r{kind}-{copy},kind {kind},batch {copy // 2},{second},"
                + ",".join(repr(float(value[second])) for value in values)
                for second in steps
            ]
    rng.shuffle(rows)
    folder.mkdir()
    header = ",".join(["recording", "kind", "batch", "second", *channels])
    (folder / "signals.csv").write_text("\n".join([header, *rows]))


TEXTS = """name: opinions
tasks: {{source: text, data_dir: {folder}, num_shots: 2, num_queries: 2, max_tokens: 12}}
"""


def write_texts(folder: Path) -> None:
    """Writes four domains of forty texts for each of two labels."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(40)]
    rows = [
        f"{' '.join(rng.choice(words, 6))} {mood},{mood},domain {domain}"
        for domain in range(4)
        for mood in ("fine", "poor")
        for _ in range(40)
    ]
    folder.mkdir()
    (folder / "texts.csv").write_text("\n".join(["text,label,domain", *rows]))


# A user's own code, which reads the same table.
CODE = """
from pathlib import Path

import pyarrow.csv


def load():
    return pyarrow.csv.read_csv(Path(__file__).with_name("signals.csv"))
"""
OF_CODE = "source: python\n  function: own:load\n  files: signals.csv"


@pytest.fixture(autouse=True, scope="session")
def _allowed_code() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_CODE, hashlib.sha256(CODE.encode()).hexdigest())
        yield


def make_run(folder: Path, source: str, *overrides: str, seeds: int = 1) -> Run:
    """Makes a run whose search has ended; with `seeds`, one that was refitted."""
    folder.mkdir(exist_ok=True)
    if source.startswith("table") or source == "python":
        is_code = source == "python"
        channels = ("height",) if source == "table-1" else ("volt", "ampere")
        if not (folder / "data").exists():
            write_signals(folder / "data", channels)
        text = TABLE.format(folder=folder / "data", features=", ".join(channels))
        if is_code:
            (folder / "data" / "own.py").write_text(CODE)
            text = text.replace("source: table", OF_CODE)
        (folder / "signals.yaml").write_text(text)
        source = str(folder / "signals.yaml")
    if source == "text":
        if not (folder / "data").exists():
            write_texts(folder / "data")
        (folder / "texts.yaml").write_text(TEXTS.format(folder=folder / "data"))
        source = str(folder / "texts.yaml")
    experiment = load_experiment(source, [*TINY, *overrides])
    run = Run.create(folder / "runs", experiment)
    for seed in range(seeds):
        role = f"tuned-{seed}" if seed else "tuned"
        trainer = build_trainer(with_values(experiment, {"training.seed": seed}))
        trainer.train(2)
        checkpoint = folder / f"{role}.safetensors"
        checkpoint.write_bytes(trainer.serialize())
        keep_network(run, role, checkpoint)
    if seeds > 1:
        Refitted(tuple(range(seeds)), 2).keep(run)
    run.keep_best({})
    return run


RunOf = Callable[..., Run]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """Makes a run of a source with overrides, once."""
    made: dict[tuple[str, ...], Run] = {}

    def make(source: str, *overrides: str, **options: int) -> Run:
        key = (source, *overrides, str(options))
        if key not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            made[key] = make_run(folder, source, *overrides, **options)
        return made[key]

    return make


def raw_of(
    prepared: Mapping[bytes, object], x: np.ndarray, lengths: np.ndarray | None
) -> list[object]:
    """Finds the raw examples that an episode's examples `[N, T, D]` were made of."""
    sizes = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    return [prepared[one[:size].tobytes()] for one, size in zip(x, sizes, strict=True)]


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Runs a command in this process, in an empty folder: exit code, output, error output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raymeta", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
        else:
            code = 0
        captured = capsysbinary.readouterr()
        return int(code or 0), captured.out.decode(), captured.err.decode()

    return run


def probabilities_by_cli(run_cli: Cli, run: Run, frame: pd.DataFrame) -> np.ndarray:
    """Adapts to a table and predicts it again, by `adapt` and `predict`."""
    frame.to_csv("five.csv", index=False)
    code, _, err = run_cli("adapt", str(run.path), "--support", "five.csv", "-o", "a.raymeta")
    assert (code, err) == (0, "")
    code, out, err = run_cli("predict", "a.raymeta", "five.csv")
    assert (code, err) == (0, "")
    return pd.read_csv(io.StringIO(out)).filter(like="probability").to_numpy()
