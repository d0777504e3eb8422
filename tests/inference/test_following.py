"""`predict --follow` answers each row at once, as `predict` does the sequence so far."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import raymeta
from raymeta.errors import MAX_MESSAGE, DataError
from raymeta.inference import following
from raymeta.inference.adapted import Adapted
from raymeta.inference.following import follow
from tests.inference.conftest import Cli, RunOf

RNG = np.random.default_rng(0)
X = [50 * RNG.normal(size=(6, 2)) for _ in range(6)]
Y = ["a", "a", "b", "b", "c", "c"]
# Two recordings, row by row in turn; a column that nobody asked for.
ROWS = [
    {"recording": f"r{n % 2}", "step": n // 2, "volt": v, "ampere": a, "note": "x, y"}
    for n, (v, a) in enumerate(50 * RNG.normal(size=(8, 2)))
]


@pytest.fixture
def adapted(run_of: RunOf) -> Adapted:
    return raymeta.load(str(run_of("table", "learner=prototypes").path)).adapt(X, Y)


def text_of(rows: list[dict[str, Any]], kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "\ufeff" + text.getvalue()


def answers(adapted: Adapted, rows: list[dict[str, Any]], kind: Literal["csv", "jsonl"]) -> Any:
    lines = list(follow(adapted, io.StringIO(text_of(rows, kind), newline="\n"), kind))
    if kind == "jsonl":
        return [json.loads(line) for line in lines]
    return list(csv.DictReader(lines))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_each_row_is_answered_as_its_sequence_so_far(
    adapted: Adapted, kind: Literal["csv", "jsonl"]
) -> None:
    inputs = adapted.trained.inputs
    names = {"recording": str(inputs.sequence), "step": str(inputs.time)}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in ROWS]
    found = answers(adapted, rows, kind)
    assert len(found) == len(ROWS)
    for number, answer in enumerate(found):
        so_far = [[row["volt"], row["ampere"]] for row in ROWS[number % 2 : number + 1 : 2]]
        wanted = adapted.predict_proba([so_far])[0]
        assert answer[str(inputs.sequence)] == f"r{number % 2}"
        assert int(answer["step"]) == number // 2 + 1
        assert answer["prediction"] == adapted.predict([so_far])[0]
        probabilities = [float(answer[f"probability_{label}"]) for label in "abc"]
        np.testing.assert_allclose(probabilities, wanted, atol=1e-6)


def rows_of(adapted: Adapted, **changes: Any) -> list[dict[str, Any]]:
    inputs = adapted.trained.inputs
    time = str(inputs.time)
    one = {str(inputs.sequence): "r", time: 0, "volt": 1.0, "ampere": 2.0}
    return [one, {**one, time: 1, **changes}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"volt": "high"}, "line 3, column volt: must be a number, but is 'high'"),
        ({"volt": "nan"}, "line 3: .* is not a finite number"),
        ({"volt": ""}, "line 3, column volt: must be a number, but is ''"),
        ({"TIME": 0}, "line 3: column TIME must grow"),
        ({"TIME": "soon"}, "line 3, column TIME: must be a number or a date"),
        ({"SEQUENCE": ""}, "line 3: column SEQUENCE must name the row's sequence"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_with_its_line_after_the_answers_before_it(
    adapted: Adapted, changes: dict[str, Any], said: str
) -> None:
    inputs = adapted.trained.inputs
    names = {"TIME": str(inputs.time), "SEQUENCE": str(inputs.sequence)}
    rows = rows_of(adapted, **{names.get(k, k): v for k, v in changes.items()})
    for key, name in names.items():
        said = said.replace(key, name)
    found = follow(adapted, io.StringIO(text_of(rows, "csv"), newline="\n"), "csv")
    assert next(found).startswith(names["SEQUENCE"])
    assert next(found).startswith("r,1,")
    with pytest.raises(DataError, match=said) as error:
        next(found)
    assert len(str(error.value)) <= MAX_MESSAGE


def test_lines_that_are_no_rows_are_refused(
    adapted: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_MOST_LINE", 300)
    header = text_of(rows_of(adapted), "csv").splitlines(keepends=True)[0]
    for kind, text, said in (
        ("csv", "volt,ampere\n", "has no column"),
        ("csv", header + "r,0,1\n", "line 2: must have 4 columns"),
        ("csv", header + '"r,0,1,2\n', "line 2: is no line of CSV"),
        ("csv", header + "x" * 400 + "\n", "line 2: has more than 300 characters"),
        ("jsonl", "[1]\n", "line 1: must be an object"),
        ("jsonl", "{\n", "line 1: is no JSON"),
        ("jsonl", '{"volt": 1, "volt": 2}\n', "two values have one name"),
        ("jsonl", '{"volt": 1}\n', "line 1.*has no column"),
    ):
        with pytest.raises(DataError, match=said):
            list(follow(adapted, io.StringIO(text), kind))  # type: ignore[arg-type]
    source = io.TextIOWrapper(io.BytesIO(header.encode() + b"\xff\n"), encoding="utf-8")
    with pytest.raises(DataError, match="is not UTF-8"):
        list(follow(adapted, source, "csv"))


def test_a_sequence_longer_than_any_of_training_is_refused_with_its_remedy(run_of: RunOf) -> None:
    run = run_of("table", "learner=prototypes", "tasks.max_steps=9")
    adapted = raymeta.load(str(run.path)).adapt(X, Y)
    first, _ = rows_of(adapted)
    rows = [{**first, str(adapted.trained.inputs.time): step} for step in range(10)]
    found = follow(adapted, io.StringIO(text_of(rows, "jsonl")), "jsonl")
    for _ in range(9):
        next(found)
    said = "line 10: 'r' has 9 time steps already, the most .*; name its further rows otherwise in "
    with pytest.raises(DataError, match=f"{said}column {adapted.trained.inputs.sequence}"):
        next(found)


def test_more_sequences_than_are_kept_are_refused(
    adapted: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MOST_SEQUENCES", 1)
    rows = rows_of(adapted, **{str(adapted.trained.inputs.sequence): "other"})
    with pytest.raises(DataError, match="begins a sequence more than 1"):
        answers(adapted, rows, "jsonl")


def test_points_without_sequences_are_examples_each(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=ridge").path))
    adapted = model.adapt([[[1.0]], [[2.0]]], [3.0, 4.0])
    found = answers(adapted, [{"x": 1.5}, {"x": -1.0}], "jsonl")
    wanted = adapted.predict([[[1.5]], [[-1.0]]])
    np.testing.assert_allclose([row["prediction"] for row in found], wanted, rtol=1e-6)
    assert set(found[0]) == {"prediction"}


@pytest.fixture
def file(adapted: Adapted, tmp_path: Path) -> Path:
    adapted.save(tmp_path / "mine.raymeta")
    return tmp_path / "mine.raymeta"


@pytest.fixture
def following_process(file: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "raymeta", "predict", str(file), "--follow"]
    process = subprocess.Popen(
        [*command, "--format", "jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_command_answers_while_the_stream_is_open_and_ends_with_it(
    following_process: subprocess.Popen[str], adapted: Adapted
) -> None:
    process = following_process
    assert process.stdin is not None
    assert process.stdout is not None
    for number, row in enumerate(rows_of(adapted)):
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["step"] == number + 1  # before the next row
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_command_without_a_traceback(
    following_process: subprocess.Popen[str], adapted: Adapted
) -> None:
    process = following_process
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    first, second = rows_of(adapted)
    process.stdin.write(json.dumps(first) + "\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(json.dumps(second) + "\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()


def test_what_does_not_go_with_follow_is_refused(run_cli: Cli, file: Path) -> None:
    for arguments, said in (
        (["rows.csv"], "leave FILE, --output and --coverage out"),
        (["-o", "x.csv"], "leave FILE, --output and --coverage out"),
        (["--coverage", "0.9"], "leave FILE, --output and --coverage out"),
        (["--format", "parquet"], "must be csv or jsonl"),
    ):
        code, _, error = run_cli("predict", str(file), *arguments, "--follow")
        assert code == 1
        assert said in " ".join(error.split())


def test_a_network_that_needs_whole_sequences_is_refused_before_anything_is_read(
    run_of: RunOf,
) -> None:
    run = run_of("table", "learner=prototypes", "model.bidirectional=true")
    adapted = raymeta.load(str(run.path)).adapt(X, Y)
    with pytest.raises(DataError, match="cannot be streamed: a bidirectional"):
        next(follow(adapted, io.StringIO("volt\n"), "csv"))
