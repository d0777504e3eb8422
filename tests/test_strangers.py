"""Hostile run folders: no command follows their links, or takes gigabytes for them."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raymeta import api
from raymeta.cli import app
from raymeta.console.tables import print_runs
from raymeta.data.readers.archives import read_tsf
from raymeta.data.readers.python import ALLOW_CODE
from raymeta.deploy.jobs import client
from raymeta.deploy.jobs.client import Job
from raymeta.errors import DataError, RaymetaError, RunError
from raymeta.evaluation.familiarity import Reference
from raymeta.evaluation.query_scores import QueryScores
from raymeta.inference.files import load
from raymeta.nn.networks import NetworkSpec
from raymeta.report.facts import read_facts
from raymeta.run_folder import Run, runs
from raymeta.search.trial_log import TRIALS_FILE, TrialLog, logged_trials
from raymeta.storage import bounds
from raymeta.storage.journal import Journal
from raymeta.training.checkpoint import CHECKPOINT_NAME
from tests.evaluation.test_sealed import run_of as untrained_run
from tests.report.runs import finished_run

DEADLINE_S = 10
COMMANDS: dict[str, Callable[[str], object]] = {
    "evaluate": api.evaluate,
    "explain": api.explain,
    "report": api.write_report,
    "compare": lambda run: api.compare([run, run]),
    "load": load,
    "resume": lambda run: api.tune(resume=run),
    "train": lambda run: api.train(resume=run),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(str(finished_run(tmp_path / "runs").path))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("SECRET: [1]\n")
    return tmp_path / "outside"


def put(link: Path, target: str | Path) -> None:
    """Replaces whatever is there by a link."""
    if link.is_dir():
        link.rename(link.with_name("moved"))
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def listed(folder: Path) -> str:
    shown = StringIO()
    print_runs(Console(file=shown, width=200), runs(folder.parent))
    return shown.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search", "models", "experiment.yaml", "sealed.jsonl"])
def test_no_command_reads_or_writes_through_a_link_out_of_the_folder(
    folder: Path, outside: Path, name: str
) -> None:
    put(folder / name, outside if name in ("search", "models") else outside / "secret")
    for command in COMMANDS.values():
        with pytest.raises(RunError, match="leads out of the run folder") as error:
            command(str(folder))
        assert "SECRET" not in str(error.value)
    assert [file.name for file in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "SECRET: [1]\n"
    assert "damaged" in listed(folder)
    assert "SECRET" not in listed(folder)


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """Whatever Python opens or lists meanwhile, with links resolved."""
    found: list[Path] = []
    is_over = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not is_over and event in ("open", "os.scandir", "os.listdir"):
            found.append(Path(os.path.realpath(str(arguments[0]))))

    sys.addaudithook(hook)  # for good
    yield found
    is_over = True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "link"),
    [("tune", "checkpoint_000001"), ("refit/tune", f"checkpoint_000000/{CHECKPOINT_NAME}")],
)
def test_links_in_the_folders_of_trials_are_never_followed(
    folder: Path, outside: Path, opened: list[Path], part: str, link: str
) -> None:
    """A resumed search, which reads those folders, is refused; other commands leave them alone."""
    (outside / CHECKPOINT_NAME).write_text("SECRET")
    trial = folder / part / "trial0"
    (trial / "checkpoint_000000").mkdir(parents=True)
    is_folder = link == "checkpoint_000001"
    (trial / link).symlink_to(outside if is_folder else outside / CHECKPOINT_NAME)
    opened.clear()
    for name, command in COMMANDS.items():
        if name in ("resume", "train"):
            with pytest.raises(RunError, match=f"{link}: a link that leads out of the run folder"):
                command(str(folder))
        else:
            with suppress(RaymetaError):
                command(str(folder))
    assert "done" in listed(folder)
    assert folder / "results.json" in opened
    assert not [path for path in opened if path.is_relative_to(outside)]
    assert sorted(file.name for file in outside.iterdir()) == sorted([CHECKPOINT_NAME, "secret"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.yaml", "models", ".lock"])
@pytest.mark.parametrize("kind", ["circle", "pipe"])
def test_circles_and_pipes_are_refused_by_name(folder: Path, name: str, kind: str) -> None:
    put(folder / name, name)
    if kind == "pipe":
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(RunError, match=f"{folder / name}: .*; remove it"):
        Run.open(str(folder), folder.parent)
    assert Run(folder).is_locked in (False, None)  # asks without waiting for a pipe's other end


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "results.json").rename(folder / "kept.json")
    (folder / "results.json").symlink_to("kept.json")
    assert Run.open(str(folder), folder.parent).read_json("results.json")


def test_the_experiment_of_a_run_builds_on_no_other_file(folder: Path, outside: Path) -> None:
    for name in ("experiment.yaml", "best.yaml"):
        (folder / name).write_text(f"base: {outside / 'secret'}\n")
    run = Run.open(str(folder), folder.parent)
    for read in (run.experiment, run.best_experiment):
        with pytest.raises(RunError, match="names a base, which may be any file") as error:
            read()
        assert "SECRET" not in str(error.value)


CODE = """
name: theirs
tasks: {source: python, data_dir: FOLDER, function: own:load, kind: groups, groups: [b],
  num_ways: 2, sequence: a, target: c, features: [x]}
search: {space: {maml.inner_lr: {low: 0.1, high: 0.3}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("allowed", ["", "own.py", "own", "1"])
def test_no_command_runs_the_code_of_a_strangers_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nload = dict")
    monkeypatch.setenv(ALLOW_CODE, allowed)
    for place in ("data", str(folder / "data")):
        text = CODE.replace("FOLDER", place)
        for name in ("experiment.yaml", "best.yaml"):
            (folder / name).write_text(text)
        for command in COMMANDS.values():
            with suppress(RaymetaError):
                command(str(folder))
        assert "done" in listed(folder)
        for command in (api.tune, api.train, api.check_experiment):
            (tmp_path / "theirs.yaml").write_text(CODE.replace("FOLDER", str(folder / "data")))
            with pytest.raises(DataError, match="asks to run the code in this file"):
                command(str(tmp_path / "theirs.yaml"))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(ALLOW_CODE, str(folder / "data" / "own.py"))  # the mark is made if it runs
    with pytest.raises(DataError, match="has no column"):
        api.check_experiment(str(tmp_path / "theirs.yaml"))
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_evaluating_a_strangers_run_tells_no_server_and_writes_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    asked: list[str | None] = []

    class Theirs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_error(404)

        do_POST = do_GET  # noqa: N815  (named by the library)

    with ThreadingHTTPServer(("127.0.0.1", 0), Theirs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for place in (f"http://127.0.0.1:{server.server_port}", str(tmp_path / "mine")):
            run = untrained_run(tmp_path, "evaluation.sealed=false", f"trackers.mlflow={place}")
            api.evaluate(str(run.path))
            assert run.status == "done"
        server.shutdown()
    assert asked == []
    assert not (tmp_path / "mine").exists()


BOMB = b"[" + b"[]," * 5_000_000 + b"[]]"  # 15 MB that stand for half a GB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("results.json", lambda run: run.read_json("results.json")),
        ("run.json", lambda run: run.origin),
        ("calibration.json", lambda run: run.read_json("calibration.json")),
    ],
)
def test_json_that_unfolds_to_gigabytes_is_refused_at_once(
    folder: Path, name: str, read: Callable[[Run], object]
) -> None:
    (folder / name).write_bytes(BOMB)
    began = time.monotonic()
    with pytest.raises(RunError, match="5000002 lists and mappings, more than are read"):
        read(Run(folder))
    assert time.monotonic() - began < DEADLINE_S
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="at most 67108864 are read"):
        read(Run(folder))


def test_a_record_of_trials_takes_neither_time_nor_memory(folder: Path) -> None:
    lines = (folder / "trials.jsonl").read_bytes()
    known = logged_trials(Run(folder)).records
    (folder / "trials.jsonl").write_bytes(lines + BOMB + b"\n")
    began = time.monotonic()
    assert logged_trials(Run(folder)).records == known
    assert time.monotonic() - began < DEADLINE_S
    with (folder / "trials.jsonl").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="at most 268435456 are read"):
        logged_trials(Run(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"others": 5},
        {"status": "unknown"},
        {"point": {"bogus": 1}},
        {"point": {"maml.inner_lr": "fast"}},
        {"point": {"maml.inner_lr": 1e300}},
        {"curve": [[1, 1e308, 1e308]], "latest_s": 1e10, "began_s": -1e10},
    ],
    ids=str,
)
def test_no_trial_that_a_stranger_noted_is_a_defect(
    folder: Path, change: dict[str, object]
) -> None:
    run = Run(folder)
    assert run.origin is not None
    journal = Journal(run.trials_dir / TRIALS_FILE, run.origin.id)
    for number, known in enumerate(logged_trials(run).records.values()):
        journal.append({"trial": f"forged{number}", "record": {**asdict(known), **change}})
    for command in (api.explain, api.write_report):
        with suppress(RaymetaError):
            command(str(folder))


def test_the_headers_of_arrays_are_bounded(folder: Path) -> None:
    header = b"{" + b" " * 40_000_000 + b"}"
    (folder / "scores.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError, match="its header must have at most 1,000,000 bytes"):
        QueryScores.read(Run(folder))
    (folder / "familiarity.safetensors").write_bytes((folder / "scores.safetensors").read_bytes())
    spec = NetworkSpec(cell="gru", hidden_size=2, num_outputs=2, num_features=1)
    with pytest.raises(RunError, match="its header must have at most 1,000,000 bytes"):
        Reference.read(Run(folder), spec, "classification")
    assert any("its header must have" in line for line in read_facts(Run(folder)).missing)


def test_a_model_file_of_any_size_is_refused_before_it_is_read(folder: Path) -> None:
    (folder / "models").mkdir(exist_ok=True)
    with (folder / "models" / "tuned.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RaymetaError, match=f"at most {bounds.TENSOR_BYTES} are read"):
        load(str(folder))


def test_many_attributes_of_a_series_archive_are_compared_in_linear_time(tmp_path: Path) -> None:
    names = "".join(f"@attribute a{number} string\n" for number in range(20_000))
    (tmp_path / "m.tsf").write_text(f"@relation x\n{names}@data\n1,2\n")
    began = time.monotonic()
    with pytest.raises(DataError, match="must have 20000 attributes"):
        read_tsf(tmp_path / "m.tsf")
    assert time.monotonic() - began < DEADLINE_S


def test_too_little_memory_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymeta import cli  # noqa: PLC0415

    def exhausted() -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "app", exhausted)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1


@pytest.mark.slow
def test_a_run_of_a_stranger_does_not_hide_others_in_the_list(folder: Path, outside: Path) -> None:
    finished_run(folder.parent, name="two")
    put(folder / "results.json", outside / "secret")
    found = CliRunner().invoke(app, ["list", "--runs-dir", str(folder.parent)])
    assert found.exit_code == 0
    assert "damaged" in found.output
    assert "accuracy" in found.output


ESCAPE = "acc\x1b]0;PWNED\x07\x1b[2J\x9b31m"
CONTROLS = {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\n", "\t"}


class TheirJobs:
    """A cluster whose log and reasons command the terminal."""

    job = Job("pen-1", "pen-1", "", "FAILED", ESCAPE, datetime.now(), datetime.now(), 1)

    def all(self) -> list[Job]:
        return [self.job]

    def find(self, _: str) -> Job:
        return self.job

    def log(self, _: Job) -> str:
        return f"first\tline\n{ESCAPE}\n"

    def follow(self, job: Job, show: Callable[[str], None]) -> Job:
        show(self.log(job))
        return job


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "watch", "status", "logs"])
def test_no_text_of_a_stranger_commands_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    run = Run(folder)
    results = run.read_json("results.json")
    results["meta_test"]["metric"] = ESCAPE
    run.write_json("results.json", results)
    TrialLog(run).end(ESCAPE)
    TrialLog(run).fail(next(iter(logged_trials(run).records)), ESCAPE)
    monkeypatch.setattr(client, "connect", lambda *_: nullcontext(TheirJobs()))
    place = ["--runs-dir", str(folder.parent)]
    arguments = {"list": place, "status": ["pen-1"], "logs": ["pen-1"]}
    found = CliRunner().invoke(app, [command, *arguments.get(command, [folder.name, *place])])
    assert "]0;PWNED" in found.output
    assert not CONTROLS & set(found.output)
    assert command in ("list", "watch") or re.search(r"first\s+line\n", found.output)
