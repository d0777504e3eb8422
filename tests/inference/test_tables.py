"""Tables of examples and predictions in every format, from files, streams and commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError
from raymeta.inference.examples import RawExamples
from raymeta.inference.tables import Format, predictions, table_bytes, table_of_examples
from raymeta.storage import bounds
from raymeta.tasks.inputs import Inputs
from tests.inference.conftest import Cli, RunOf

PLACE = Path("five")
BRACES = Path("{five}")  # which a format string would read


def content_of(frame: pd.DataFrame, kind: Format) -> bytes:
    match kind:
        case "csv":
            return frame.to_csv(index=False).encode()
        case "parquet":
            return frame.to_parquet(index=False)
        case "jsonl":
            return frame.to_json(orient="records", lines=True).encode()


@pytest.fixture
def parsed(tmp_path: Path) -> Callable[..., RawExamples]:
    """Reads the examples in the content of a file; messages call it `place`."""

    def parse(
        content: bytes, kind: str, inputs: Inputs, place: Path, *, with_targets: bool
    ) -> RawExamples:
        file = tmp_path / f"file.{kind}"
        file.write_bytes(content)
        return table_of_examples(file, inputs, with_targets=with_targets, place=place)

    return parse


@pytest.fixture
def signals(run_of: RunOf) -> pd.DataFrame:
    run = run_of("table", "learner=prototypes")
    return pd.read_csv(f"{run.experiment().tasks.data_dir}/signals.csv")


@pytest.fixture
def support(signals: pd.DataFrame) -> pd.DataFrame:
    """Takes two recordings of each of three kinds, with an unused column."""
    chosen = signals["kind"].isin(["kind 1", "kind 2", "kind 7"])
    chosen &= signals["recording"].str.endswith(("-0", "-1"))
    return signals[chosen].assign(comment="ümläut, quoted")


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_every_format_says_what_a_frame_says(
    run_of: RunOf, support: pd.DataFrame, kind: Format, parsed: Callable[..., RawExamples]
) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    wanted = model.adapt(support)
    raw = parsed(content_of(support, kind), kind, model.trained.inputs, PLACE, with_targets=True)
    found = model.adapt_to(raw)
    proba = wanted.predict_proba(support)
    np.testing.assert_allclose(found.predict_proba(support), proba, rtol=1e-12)
    table = predictions(found, raw)
    assert table["recording"].to_pylist() == list(dict.fromkeys(support["recording"]))
    assert table["prediction"].to_pylist() == wanted.predict(support).tolist()
    written = table_bytes(table, kind)
    match kind:
        case "csv":
            again = pd.read_csv(io.BytesIO(written))
        case "parquet":
            again = pd.read_parquet(io.BytesIO(written))
        case "jsonl":
            again = pd.DataFrame(map(json.loads, written.splitlines()))
    np.testing.assert_array_equal(again["probability_kind 7"], found.probabilities(raw)[:, 2])


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_points_and_texts_come_in_every_format(
    run_of: RunOf, kind: Format, parsed: Callable[..., RawExamples]
) -> None:
    points = pd.DataFrame({"x": [0.5, -1.25], "y": [1.5, 2.5]})
    texts = pd.DataFrame({"text": ["great, truly", 'the "worst"\nof all'], "class": [1, 0]})
    for run, frame in [
        (run_of("sinusoid", "learner=ridge"), points),
        (run_of("sentiment", "learner=maml", "tasks.num_shots=1"), texts),
    ]:
        model = raymeta.load(str(run.path))
        content = content_of(frame, kind)
        raw = parsed(content, kind, model.trained.inputs, PLACE, with_targets=True)
        assert (
            parsed(content, kind, model.trained.inputs, BRACES, with_targets=False)
            .names[0]
            .startswith("{five}")
        )
        adapted, wanted = model.adapt_to(raw), model.adapt(frame)
        found = predictions(adapted, raw)["prediction"].to_pylist()
        assert list(map(float, found)) == list(map(float, wanted.predict(frame)))


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("csv", b"", "five: cannot be read as CSV"),
        ("csv", b"\x00\xff", "five"),
        ("csv", b"recording,second,volt,ampere\n", "five: has no rows"),
        (
            "csv",
            b"recording,second,volt,amper\n1,1,1,1",
            "five: has no column 'ampere'; did you me",
        ),
        ("csv", b"recording,second,volt,volt,ampere\n1,1,1,1,1", "multiple columns named volt"),
        (
            "csv",
            b"recording,second,volt,ampere\n1,1,nan,1",
            "five, row 1, column volt: the value is missing",
        ),
        (
            "csv",
            b"recording,second,volt,ampere\n1,1,,1",
            "five, row 1, column volt: the value is m",
        ),
        ("csv", b"recording,second,volt,ampere\n1,1,1", "five: cannot be read as CSV"),
        ("parquet", b"PAR1", "five: cannot be read as Parquet"),
        ("jsonl", b"", "five: has no rows"),
        ("jsonl", b"[1]", "five: cannot be read as JSON lines: JSON parse error"),
        ("jsonl", b'{"a": 1}\n{', "five: cannot be read as JSON lines: JSON parse error"),
        ("jsonl", b"[" * 100_000, "five, row 1: has 100000 brackets"),
        ("jsonl", b"\xff", "five: cannot be read as JSON lines"),
        (
            "jsonl",
            b'{"recording": 1, "second": 1, "volt": NaN, "ampere": 1}',
            "row 1, column volt: the value is missing",
        ),
        (
            "jsonl",
            b'{"recording": 1, "second": 1, "volt": 1, "ampere": 1}\n{"recording": 2}',
            "row 2, column volt: the value is missing",
        ),
        (
            "jsonl",
            b'{"recording": 1, "second": 1, "volt": [1], "ampere": 1}',
            "column volt: must hold numbers",
        ),
    ],
)
def test_a_table_that_does_not_fit_gets_one_message(
    run_of: RunOf, kind: Format, content: bytes, said: str, parsed: Callable[..., RawExamples]
) -> None:
    inputs = raymeta.load(str(run_of("table", "learner=prototypes").path)).trained.inputs
    with pytest.raises(DataError, match=said):
        parsed(content, kind, inputs, PLACE, with_targets=False)


def test_the_command_line_adapts_and_predicts_in_files_and_streams(
    run_cli: Cli, run_of: RunOf, support: pd.DataFrame, tmp_path: Path
) -> None:
    run = str(run_of("table", "learner=prototypes").path)
    (tmp_path / "five.csv").write_bytes(content_of(support, "csv"))
    new = content_of(support.drop(columns="kind"), "jsonl")
    (tmp_path / "new.jsonl").write_bytes(new)
    code, out, _ = run_cli("adapt", run, "--support", "five.csv", "-o", "mine.raymeta")
    assert code == 0
    assert out.startswith("mine.raymeta: adapted to 6 examples of 3 classes (kind 1, kind 2, kind")
    code, shown, _ = run_cli("predict", "mine.raymeta", "new.jsonl")
    assert code == 0
    wanted = raymeta.load(run).adapt(support).predict(support)
    found = pd.read_csv(io.StringIO(shown))
    assert found["prediction"].tolist() == wanted.tolist()
    assert run_cli("predict", "mine.raymeta", "new.jsonl", "-o", "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text() == shown
    assert run_cli("predict", "mine.raymeta", "new.jsonl", "-o", "out.parquet")[0] == 0
    assert pd.read_parquet(tmp_path / "out.parquet")["prediction"].tolist() == wanted.tolist()
    code, lines, _ = run_cli("predict", "mine.raymeta", "--format", "jsonl", stdin=new)
    assert code == 0
    assert [json.loads(line)["prediction"] for line in lines.splitlines()] == wanted.tolist()
    stream = content_of(support, "csv")
    assert run_cli("adapt", run, "--support", "-", "-o", "second", stdin=stream)[0] == 0
    assert (tmp_path / "second").read_bytes() == (tmp_path / "mine.raymeta").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapt", "gone", "--support", "five.csv", "-o", "x"], "gone: no run folder"),
        (["adapt", "RUN", "--support", "gone.csv", "-o", "x"], "gone.csv: cannot be read: no such"),
        (["adapt", "RUN", "--support", "five.txt", "-o", "x"], "five.txt: must end in one of .csv"),
        (["adapt", "RUN", "--support", "new.csv", "-o", "x"], "new.csv: has no column 'kind'"),
        (["adapt", "RUN", "--support", "one.csv", "-o", "x"], "2 classes at least, but has one"),
        (["adapt", "RUN", "--support", "five.csv", "-o", "no/x\0"], "NUL"),
        (["adapt", "RUN", "--support", "five.csv", "-o", "five.csv/x"], "cannot be written"),
        (["predict", "gone", "new.csv"], "gone: cannot be read: No such file"),
        (["predict", "five.csv", "new.csv"], "five.csv: not a checkpoint of raymeta"),
        (["predict", "mine.raymeta", "new.csv", "-o", "out.txt"], "out.txt: must end in .csv"),
        (["predict", "mine.raymeta"], "standard input: cannot be read as CSV"),
    ],
)
def test_a_mistake_gives_one_message_and_leaves_nothing(
    run_cli: Cli,
    run_of: RunOf,
    support: pd.DataFrame,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    run = run_of("table", "learner=prototypes")
    raymeta.load(str(run.path)).adapt(support).save(tmp_path / "mine.raymeta")
    (tmp_path / "five.csv").write_bytes(content_of(support, "csv"))
    (tmp_path / "five.txt").write_text("")
    (tmp_path / "new.csv").write_bytes(content_of(support.drop(columns="kind"), "csv"))
    one = support[support["kind"] == "kind 1"]
    (tmp_path / "one.csv").write_bytes(content_of(one, "csv"))
    before = sorted(tmp_path.rglob("*"))
    code, out, error = run_cli(*[str(run.path) if a == "RUN" else a for a in arguments])
    assert code == 1
    assert out == ""
    assert error.startswith("error: ")
    assert said in error.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_adapt_and_predict_work_in_a_pipe_of_processes(
    run_of: RunOf, support: pd.DataFrame, tmp_path: Path
) -> None:
    run = run_of("table", "learner=prototypes")
    raymeta.load(str(run.path)).adapt(support).save(tmp_path / "mine.raymeta")
    ended = subprocess.run(
        [sys.executable, "-m", "raymeta", "predict", str(tmp_path / "mine.raymeta")],
        input=content_of(support, "csv"),
        capture_output=True,
        check=True,
    )
    assert ended.stderr == b""
    assert ended.stdout.startswith(b'"recording","prediction","probability_kind 1"')


def test_a_column_of_sequences_is_never_lost(
    run_of: RunOf, support: pd.DataFrame, parsed: Callable[..., RawExamples]
) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    adapted = model.adapt(support)
    raw = parsed(content_of(support, "csv"), "csv", model.trained.inputs, PLACE, with_targets=False)
    tasks = adapted.trained.experiment.tasks.model_copy(update={"sequence": "prediction"})
    experiment = adapted.trained.experiment.model_copy(update={"tasks": tasks})
    other = replace(adapted, trained=replace(adapted.trained, experiment=experiment))
    with pytest.raises(DataError, match="'prediction' of sequences has the name of one of"):
        predictions(other, raw)


@pytest.mark.parametrize("form", ["tsv", "feather", "arrow"])
def test_every_table_that_training_reads_can_be_predicted(
    run_cli: Cli, run_of: RunOf, support: pd.DataFrame, tmp_path: Path, form: str
) -> None:
    run = str(run_of("table", "learner=prototypes").path)
    raymeta.load(run).adapt(support).save(tmp_path / "mine.raymeta")
    if form == "tsv":
        support.to_csv(tmp_path / "new.tsv", sep="\t", index=False)
    else:
        support.reset_index(drop=True).to_feather(tmp_path / f"new.{form}")
    code, shown, _ = run_cli("predict", "mine.raymeta", f"new.{form}")
    assert code == 0
    wanted = raymeta.load(run).adapt(support).predict(support)
    assert pd.read_csv(io.StringIO(shown))["prediction"].tolist() == wanted.tolist()


def test_a_stream_without_an_end_is_refused(
    run_cli: Cli, run_of: RunOf, support: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(run_of("table", "learner=prototypes").path)
    content = content_of(support, "csv")
    monkeypatch.setattr(bounds, "TEXT_BYTES", len(content))
    arguments = ("adapt", run, "--support", "-", "-o", "mine")
    assert run_cli(*arguments, stdin=content)[0] == 0
    code, _, err = run_cli(*arguments, stdin=content + b"x")
    assert code == 1
    assert f"standard input: has more than {len(content)} bytes" in err
