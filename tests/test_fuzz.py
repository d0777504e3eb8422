"""Damaged files and odd settings: raymeta succeeds or gives one short message, soon.

Each case is a shipped file with a few random damages.  `RAYMETA_FUZZ=SEED:CASES` runs other or more
of them; a failure names its case, which `damaged(CONTENT, SEED, CASE)` makes again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from raymeta.data.readers.python import ALLOW_CODE
from raymeta.deploy.check import growth, job_environment
from raymeta.deploy.files.load import load_cluster
from raymeta.errors import MAX_MESSAGE, RaymetaError
from raymeta.experiment.file import (
    load_experiment,
    shipped_experiments,
    to_yaml,
    with_overrides,
)
from raymeta.experiment.schema import Experiment
from raymeta.search.preflight import prepare
from raymeta.search.space import file_point
from raymeta.search.trackers import check_trackers
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import SOURCES, load_tasks
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

SEED, _, CASES = os.environ.get("RAYMETA_FUZZ", "0:300").partition(":")
DEADLINE_S = 5
OWN_FORMS = ("csv", "numbers", "rul", "text", "tsf")  # of tables small enough to be read often
HARD_STOP_S = 30  # what hangs is interrupted, so that its case is named
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


class HangError(BaseException):
    """Interrupts a case that takes too long; product code catches no `BaseException`."""


@contextmanager
def hard_stop(seconds: float) -> Iterator[None]:
    """Raises `HangError` in the block after some seconds; restores pytest-timeout's own alarm.

    A call of a C library is interrupted when it returns.
    """

    def stop(*_: object) -> None:
        raise HangError

    handler = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    # Again every second: an error raised in a finaliser is only printed.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            rest = max(0.001, left - (time.monotonic() - began))
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def problem(read: Callable[[], object]) -> str | None:
    """Returns what is wrong with how a file is read; None for success or a short message, soon."""
    began = time.monotonic()
    try:
        with hard_stop(HARD_STOP_S):
            read()
    except HangError as error:
        place = traceback.extract_tb(error.__traceback__)[-2]
        return f"hung ({place.filename}, line {place.lineno})"
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


def test_a_hang_fails_with_the_name_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "HARD_STOP_S", 0.2)
    monkeypatch.setitem(globals(), "CASES", "1")
    alarm = signal.getsignal(signal.SIGALRM)

    def hang(*_: object) -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(AssertionError, match=r"own\.yaml, seed .*, case 0: hung .*test_fuzz"):
        check({"own.yaml": b"a: 1"}, 1, hang)
    assert signal.getsignal(signal.SIGALRM) is alarm


def check_before_ray(experiment: Experiment, folder: Path) -> None:
    """Runs the checks that `tune` runs before Ray starts; those of data if they are in `folder`."""
    check_trackers(experiment)
    file_point(experiment)
    tasks = experiment.tasks
    is_own = tasks.data_dir is not None and Path(tasks.data_dir).is_relative_to(folder)
    if tasks.pretrained() is None and (is_own or tasks.source == "sinusoid"):
        prepare(experiment, folder)
        if SOURCES[tasks.source].deal is not None:
            inspect_tasks(experiment)


@pytest.mark.slow
def test_damaged_experiments_are_read_or_refused(tmp_path: Path) -> None:
    files = {
        name: to_yaml(load_experiment(name)).encode() if form == "written" else text
        for name in shipped_experiments()
        for form, text in (
            ("written", b""),
            ("shipped", (ROOT / f"raymeta/experiment/shipped/{name}.yaml").read_bytes()),
        )
    }
    for form in OWN_FORMS:
        folder = tmp_path / form
        folder.mkdir()
        files[f"own {form}"] = to_yaml(table(folder, form)).encode()
    path = tmp_path / "own.yaml"

    def read(_: str, content: bytes) -> None:
        path.write_bytes(content)
        experiment = load_experiment(str(path))
        path.write_text(to_yaml(experiment), encoding="utf-8")
        assert load_experiment(str(path)) == experiment
        check_before_ray(experiment, tmp_path)

    check(files, 1, read)


# Values that fit the type of a setting, where `odd_settings` would rarely guess them.
SETTING_VALUES: dict[str, list[Any]] = {
    "kind": ["classes", "groups", "forecast"],
    "missing": ["refuse", "interpolate", "mask"],
    "support": ["first", "random"],
    "difference": ["season", "drift", "last"],
    "small_classes": ["refuse", "leave_out"],
    "target": ["kind", "x", {"number": "x"}, {"number": "y"}, {"rul": "step", "cap": 3}],
    "spectrum": [{"frequencies": 2}, {"frequencies": 64}, {"frequencies": 4, "per_step": 2}],
    "quantiles": [[0.5], [0.1, 0.5, 0.9]],
    "calendar": [["month"], ["hour", "weekday"]],
    "window": [1, 2, 3, 5, 6, None],
}
COLUMNS = [
    "id", "kind", "step", "x", "y", "said", "judged", "where", "series_name", "shop", "target",
    "time_idx", "none",
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 4, 5, 8, 13, 40, 100, 4096, 10**6, 2**31, 2**63 - 1]


def odd_settings(tasks: dict[str, Any], rng: random.Random) -> list[str]:
    """Overrides of one to three settings of tasks, mostly by values of their types."""
    overrides = []
    for key in rng.sample(sorted(tasks), rng.choice([1, 1, 2, 3])):
        by_type: dict[type, Any] = {
            bool: rng.choice([True, False]),
            int: rng.choice(NUMBERS),
            float: rng.choice([0.5, 1e-300, 1e300, -1.0]),
            str: rng.choice(COLUMNS),
            list: rng.sample(COLUMNS, rng.choice([0, 1, 2, 3])),
            type(None): None,
        }
        value = rng.choice(SETTING_VALUES.get(key, [by_type.get(type(tasks[key]))]))
        if rng.random() < 0.15:
            value = rng.choice(list(by_type.values()))
        overrides.append(f"tasks.{key}={json.dumps(value)}")
    if rng.random() < 0.2:
        key = rng.choice([key for key, value in tasks.items() if isinstance(value, int)])
        ends = [1, rng.choice([2, 5, 100, 2**40])]
        overrides.append(f"search.space={{tasks.{key}: {{choices: {ends}}}}}")
    return overrides


def test_odd_settings_of_tasks_are_taken_or_refused(tmp_path: Path) -> None:
    experiments = {"sinusoid": load_experiment("sinusoid")}
    for form in OWN_FORMS:
        (tmp_path / form).mkdir()
        experiments[form] = table(tmp_path / form, form)
    names, failed, num_checked = sorted(experiments), [], 0

    def read(experiment: Experiment, overrides: list[str]) -> None:
        nonlocal num_checked
        changed = with_overrides(experiment, overrides)
        check_before_ray(changed, tmp_path)
        load_tasks(changed).episodes("train", [0])
        num_checked += 1

    for case in range(int(CASES or 300) // 2):
        experiment = experiments[names[case % len(names)]]
        # An encoder is looked for on the Hub.
        tasks = experiment.tasks.model_dump(exclude={"source", "data_dir", "encoder"})
        rng = random.Random(f"{SEED} {case}")  # noqa: S311
        overrides = odd_settings(tasks, rng)
        if told := problem(partial(read, experiment, overrides)):
            failed.append(f"{names[case % len(names)]}, case {case}, {overrides}: {told}")
    assert not failed, "\n".join(failed[:30])
    assert num_checked > 0


@pytest.mark.slow
def test_damaged_overrides_are_taken_or_refused(tmp_path: Path) -> None:
    overrides = {
        f"{name} {text}": text.encode()
        for name, text in product(
            shipped_experiments(),
            (
                "maml.inner_lr=0.1",
                "search.space={maml.inner_lr: {low: 0.01, high: 1.0, log: true}}",
                "search.space.model.cell={choices: [gru, lstm]}",
                "tasks={source: pen, num_ways: 3, augmentation: {class_mirror: 0.5}}",
                "training.meta_steps=100",
                "search.constraints=[maml.inner_lr + training.outer_lr <= 1]",
                "resources={num_workers: 2, gpus_per_worker: 0.5}",
                "name=own",
            ),
        )
    }

    def read(case: str, content: bytes) -> None:
        name = case.partition(" ")[0]
        experiment = load_experiment(name, [content.decode(errors="surrogateescape")])
        check_before_ray(experiment, tmp_path)

    check(overrides, 1, read)


@pytest.mark.slow
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


@pytest.mark.slow
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
    check(files, 0.7 if source in TABLES else 0.1, read)
    assert read_whole > 0, "every damage was refused, so that what is read was never tried"


def table(folder: Path, form: str) -> Experiment:
    """Writes a table of twelve classes with four examples each, and an experiment on it.

    A `.tsf` file has twelve series to forecast, a text file judgements in three domains; `numbers`
    and `rul` have a number for each sequence, and the rows that are left of it.
    """
    places = [*product(range(12), range(4), range(5))]
    rows = [(c * 4 + n, f"class {c}", t, c + 0.1 * n * t) for c, n, t in places]
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
        case "numbers" | "rul":
            lines = [f"{c * 4 + n},{c},{t},{c + 0.1 * n * t},{n}" for c, n, t in places]
            (folder / "rows.csv").write_text("\n".join(["id,kind,step,x,y", *lines]) + "\n")
            target = "number: y" if form == "numbers" else "rul: step, cap: 3"
            settings = (
                f"data_dir: '{folder}', files: '*.csv', kind: groups, groups: [kind], "
                f"sequence: id, target: {{{target}}}, time: step, features: [x], num_ways: 1, "
                "window: 3, window_step: 1, num_shots: 1, num_queries: 1, val_groups: 3, "
                "test_groups: 3"
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
    match form:
        case "numbers" | "rul":
            return ["learner=ridge"]
        case "tsf" | "text":
            return ["learner=maml", "model.stacked_steps=1"]
    return []
