"""Damaged files of every kind: raymeta succeeds or gives one short message, soon.

Each case is a shipped file with a few random damages.  `RAYMETA_FUZZ=SEED:CASES` runs other or more
of them; a failure names its case, which `damaged(CONTENT, SEED, CASE)` makes again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from raymeta.data.readers.python import ALLOW_CODE
from raymeta.deploy.check import growth, job_environment
from raymeta.deploy.files.load import load_cluster
from raymeta.errors import MAX_MESSAGE, RaymetaError
from raymeta.experiment.file import load_experiment, shipped_experiments, to_yaml
from raymeta.experiment.schema import Experiment
from raymeta.tasks.load import load_tasks
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

SEED, _, CASES = os.environ.get("RAYMETA_FUZZ", "0:300").partition(":")
DEADLINE_S = 5
# What a value is replaced by: other types, ends of ranges, and what once went through unseen.
VALUES = [
    "", "~", "true", "no", "0", "-1", "1", "2", "1.5", "-0.0", "1e-400", "1e400", ".inf", "-.inf",
    ".nan", "9" * 25, "9" * 5000, "-" + "9" * 5000, "0x" + "f" * 4000, "1" + ":1" * 3000, "0o8",
    "2020-01-01", "2020-13-45", "2020-01-01T00:00:00Z", "a", "'1'", '"\\u202e\\x1b[31m"',
    '"\\ud800"', "é" * 3000, "x" * 5000, "x" * 300_000, "[]", "{}", "[1]", "[[1]]", "{a: 1}",
    "{1: 2}", "{~: ~}", "{[1]: 2}", "[~]", "[a, 1, ~, {}]", "[.nan, 1]", "[1, true]", "*x",
    "&x [*x]", "!!binary aGVsbG8=", "!!set {a}", "!!python/name:os.system", "!!int x", "!x y",
    "<<: 1",
    "| \n  text", "[" * 60, "{a: " * 60, "@", "`", "%", "=", "<<", "../../x", "/", "a\\0b",
    "s3://", "s3://a:b@c/d", "file:///x", "://[", "$HOME", "~nobody/x", "{{", "'", '"',
    "{low: 1, high: 2}", "{choices: [1, 2]}", "{low: -1e308, high: 1e308, step: 1e-308}",
]  # fmt: skip


def damaged(content: bytes, seed: str, case: int) -> bytes:
    """Damages a file one to four times, always the same for a seed and a case."""
    rng = random.Random(f"{seed} {case}")  # noqa: S311
    for _ in range(rng.choice([1, 1, 2, 4])):
        content = rng.choice(DAMAGES)(content, rng)
    return content


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def change_lines(content: bytes, rng: random.Random) -> bytes:
    """Deletes, repeats, swaps or indents lines."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice([1, 2, 5])):
        if not lines:
            break
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                lines[at] = b" " * rng.randrange(5) + lines[at].lstrip()
    return b"".join(lines)


def replace_value(content: bytes, rng: random.Random) -> bytes:
    """Replaces the value of a `key: value`, an item of a list or a word."""
    places = [*re.finditer(rb"(?m)(?<=: )[^\s#{\[&][^#\n]*|(?<=- )\S+|[\w.]+", content)]
    if not places:
        return content
    place = rng.choice(places)
    return content[: place.start()] + rng.choice(VALUES).encode() + content[place.end() :]


def insert_key(content: bytes, rng: random.Random) -> bytes:
    line = f"{rng.choice(VALUES)[:50]}: {rng.choice(VALUES)}\n".encode()
    lines = content.splitlines(keepends=True)
    indent = b" " * rng.choice([0, 2, 4, 6])
    lines.insert(rng.randrange(len(lines) + 1), indent + line)
    return b"".join(lines)


def insert_text(content: bytes, rng: random.Random) -> bytes:
    odd = [
        "\x00", "\x07", "\x1b[2J", "\ufeff", "\u2028", "\x85", "\r", "\t", "\u200b", "{", "}", "[",
        "]", ":", "- ", "&a ", "*a", "!!str ", "---\n", "...\n", "? ", "| ", "> ", '"', "'", "\\",
        "[" * 200, "x" * 10_000, "\n" * 1000, "<<: *a\n", "%YAML 9.9\n", "FILL_IN_X", "<name>",
    ]  # fmt: skip
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(odd).encode() + content[at:]


def insert_bomb(content: bytes, rng: random.Random) -> bytes:
    names = [f"b{n}" for n in range(rng.choice([3, 10]))]
    lines = [f"{names[0]}: &{names[0]} [1, 2, 3]"]
    for below, name in pairwise(names):
        form = rng.choice(["{{<<: [{}]}}", "[{}]"])
        lines.append(f"{name}: &{name} {form.format(', '.join(['*' + below] * 9))}")
    return content + b"\n" + "\n".join(lines).encode() + b"\n"


DAMAGES = [
    flip_bytes, truncate, change_lines, replace_value, replace_value, replace_value, insert_key,
    insert_text, insert_bomb,
]  # fmt: skip


def problem(read: Callable[[], object]) -> str | None:
    """Returns what is wrong with how a file is read; None for success or a short message, soon."""
    began = time.monotonic()
    try:
        read()
    except RaymetaError as error:
        if not 0 < len(str(error)) <= MAX_MESSAGE:
            return f"a message of {len(str(error))} characters"
    except Exception as error:  # noqa: BLE001  (which is what this test looks for)
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.300} ({place.filename}, line {place.lineno})"
    seconds = time.monotonic() - began
    return f"took {seconds:.1f} s" if seconds > DEADLINE_S else None


def check(files: dict[str, bytes], share: float, read: Callable[[str, bytes], object]) -> None:
    """Reads damaged files, and fails with the cases that had a problem."""
    names, failed = sorted(files), []
    for case in range(round(int(CASES or 300) * share)):
        name = names[case % len(names)]
        content = damaged(files[name], SEED, case)
        if told := problem(partial(read, name, content)):
            failed.append(f"{name}, seed {SEED}, case {case}: {told}")
    assert not failed, "\n".join(failed[:30])


def test_damaged_experiments_are_read_or_refused(tmp_path: Path) -> None:
    files = {
        name: to_yaml(load_experiment(name)).encode() if form == "written" else text
        for name in shipped_experiments()
        for form, text in (
            ("written", b""),
            ("shipped", (ROOT / f"raymeta/experiment/shipped/{name}.yaml").read_bytes()),
        )
    }
    path = tmp_path / "own.yaml"

    def read(_: str, content: bytes) -> None:
        path.write_bytes(content)
        experiment = load_experiment(str(path))
        path.write_text(to_yaml(experiment), encoding="utf-8")
        assert load_experiment(str(path)) == experiment

    check(files, 1, read)


def test_damaged_overrides_are_taken_or_refused() -> None:
    overrides = {
        text: text.encode()
        for text in (
            "maml.inner_lr=0.1",
            "search.space={maml.inner_lr: {low: 0.01, high: 1.0, log: true}}",
            "search.space.model.cell={choices: [gru, lstm]}",
            "tasks={source: pen, num_ways: 3, augmentation: {class_mirror: 0.5}}",
            "training.meta_steps=100",
            "search.constraints=[maml.inner_lr + training.outer_lr <= 1]",
            "resources={num_workers: 2, gpus_per_worker: 0.5}",
            "name=own",
        )
    }

    def read(_: str, content: bytes) -> None:
        load_experiment("pen", [content.decode(errors="surrogateescape")])

    check(overrides, 1, read)


def test_damaged_cluster_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_laptop(tmp_path / "home", monkeypatch)
    names = [path.name for path in (ROOT / "cluster").iterdir()]
    files = {
        name: filled_in(name).encode() for name in names if name.endswith((".yaml", ".sbatch"))
    }

    def read(name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        cluster = load_cluster(path)
        growth(cluster)
        job_environment(cluster)

    check(files, 1, read)


TABLES = ("csv", "tsv", "jsonl", "parquet", "feather", "ts", "tsf", "text", "python")


@pytest.mark.parametrize("source", ["pen", "sentiment", *TABLES])
def test_damaged_data_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    folder = tmp_path / "data"
    if source in ("pen", "sentiment"):
        shipped = load_experiment(source).tasks.data_files()
        shutil.copytree(Path(str(shipped[0])).parent, folder)
        experiment = load_experiment(source, [f"tasks.data_dir={folder}"])
    else:
        folder.mkdir()
        experiment = table(folder, source)
        monkeypatch.setenv(ALLOW_CODE, str(folder / "own.py"))
    paths = [Path(str(file)) for file in experiment.tasks.data_files()]
    assert all(path.is_relative_to(folder) for path in paths)
    files = {path.name: path.read_bytes() for path in paths}
    read_whole = 0

    def read(name: str, content: bytes) -> None:
        nonlocal read_whole
        path = folder / name
        path.write_bytes(content)
        try:
            load_tasks(experiment).episodes("train", [0])
            read_whole += 1
        finally:
            path.write_bytes(files[name])

    load_tasks(experiment).episodes("train", [0])  # what is whole is read
    check(files, 1 if source in TABLES else 0.1, read)
    assert read_whole > 0, "every damage was refused, so that what is read was never tried"


def table(folder: Path, form: str) -> Experiment:
    """Writes a table of twelve classes with four examples each, and an experiment on it.

    A `.tsf` file has twelve series to forecast, a text file judgements in three domains.
    """
    rows = [
        (c * 4 + n, f"class {c}", t, c + 0.1 * n * t)
        for c, n, t in product(range(12), range(4), range(5))
    ]
    columns = dict(zip(("id", "kind", "step", "x"), zip(*rows, strict=True), strict=True))
    path = folder / f"rows.{'csv' if form == 'text' else form}"
    settings = (
        f"data_dir: '{folder}', files: '*{path.suffix}', sequence: id, target: kind, time: step, "
        "features: [x], num_ways: 2, num_queries: 1, val_classes: 3, test_classes: 3"
    )
    source = "table"
    match form:
        case "csv" | "tsv":
            mark = "," if form == "csv" else "\t"
            lines = [mark.join(columns), *(mark.join(map(str, row)) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        case "jsonl":
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
            path.write_text("\n".join(lines) + "\n")
        case "parquet":
            pq.write_table(pa.table(columns), path)
        case "feather":
            feather.write_feather(pa.table(columns), path)
        case "ts":
            cases = [
                f"{','.join(str(x) for *_, x in rows[5 * n : 5 * n + 5])}:{rows[5 * n][1]}"
                for n in range(48)
            ]
            labels = " ".join(f"class_{c}" for c in range(12))
            head = f"@problemName rows\n@timeStamps false\n@classLabel true {labels}\n@data\n"
            path.write_text(head + "\n".join(cases).replace("class ", "class_") + "\n")
            named = {"id": "case_id", "kind": "class", "step": "timepoint", "[x]": "[dim_0]"}
            for ours, theirs in named.items():
                settings = settings.replace(f": {ours},", f": {theirs},")
        case "tsf":
            rng = random.Random("series")  # noqa: S311
            series = [
                f"T{n}:shop {n % 6}:{','.join(str(rng.randrange(100)) for _ in range(40))}"
                for n in range(12)
            ]
            head = (
                "@relation rows\n@attribute series_name string\n@attribute shop string\n"
                "@frequency quarterly\n@data\n"
            )
            path.write_text(head + "\n".join(series) + "\n")
            settings = (
                f"data_dir: '{folder}', files: '*.tsf', kind: forecast, sequence: series_name, "
                "target: target, time: time_idx, groups: [shop], season: 4, horizon: 3, "
                "context: 4, num_shots: 1, num_queries: 1, val_groups: 2, test_groups: 2"
            )
        case "text":
            texts = [
                f"we say {n} of thing {c},{('good', 'bad')[n % 2]},shop {c}"
                for c, n in product(range(3), range(160))
            ]
            path.write_text("\n".join(["said,judged,where", *texts]) + "\n")
            source = "text"
            settings = (
                f"data_dir: '{folder}', files: '*.csv', text: said, label: judged, domain: where, "
                "num_shots: 1, num_queries: 1, max_tokens: 8"
            )
        case _:
            # Nothing but plain values, so that damage does not make it a program that never ends.
            lists = {name: list(values) for name, values in columns.items()}
            (folder / "own.py").write_text(f"def load():\n    return {lists!r}\n")
            source = "python"
            settings = settings.replace("files: '*.python'", "function: own:load")
    return load_experiment(
        "pen", ["search.space={}", f"tasks={{source: {source}, {settings}}}", *own(form)]
    )


def own(form: str) -> list[str]:
    """Overrides that a form needs beside its tasks."""
    return ["learner=maml", "model.stacked_steps=1"] if form in ("tsf", "text") else []
