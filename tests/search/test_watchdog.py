"""Hung trials, a dead raylet, storage that goes away, signals and orphans: real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from raymeta.run_folder import Run, runs
from raymeta.search.results import read_trials
from tests.search.helpers import SPACE, TINY, kill_driver
from tests.storage.test_outage import take_away

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = [
    *TINY,
    "training.meta_steps=100000",
    "training.eval_every=20",
    "resources.max_failures=1",
]
RARE_REPORTS = ["training.eval_every=100"]
REPORT_TIMEOUT_S, START_TIMEOUT_S = 10, 30
START_S = 150  # Ray and the first report, on busy cores
RAYLET_S, ORPHANS_S, FOLDER_S, SIGNAL_S = 60, 30, 60, 60  # stated in cluster/README.md
AWAY_S, AFTER_OUTAGE_S = 6, 60


class Driver:
    """`raymeta COMMAND pen` with a tiny experiment, in a process of its own."""

    def __init__(self, folder: Path, *overrides: str, command: str = "train") -> None:
        self.runs_dir = folder / "runs"
        self.log = folder / "log.txt"
        sets = [word for override in [*LONG, *overrides] for word in ("--set", override)]
        # Whoever runs the tests may ignore signals, and children inherit that.
        heeding = ["env", "--default-signal=HUP,INT,TERM"]
        arguments = [*heeding, sys.executable, "-m", "raymeta", command, "pen-maml", "-v", *sets]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*arguments, "--runs-dir", str(self.runs_dir)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "200", "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0"},
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def run(self) -> Run:
        (run,) = runs(self.runs_dir)
        return run

    def reports(self, part: str = "tune") -> list[int]:
        """Returns the meta-steps of each report of the (first) trial."""
        for file in self.runs_dir.glob(f"*/{part}/*/result.json"):
            whole = file.read_text().split("\n")[:-1]
            return [json.loads(line)["meta_steps"] for line in whole]
        return []

    def steps(self, part: str = "tune") -> int:
        reports = self.reports(part)
        return reports[-1] if reports else 0

    def children(self, title: str = "") -> list[psutil.Process]:
        """Returns the descendants whose title contains a text."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # it ended meanwhile
                continue
        return found

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = START_S) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.process.poll() is None, self.text()
            time.sleep(0.2)
        pytest.fail(f"{what} within {timeout_s} s: {self.text()}")

    def wait_for_exit(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the driver is still there after {timeout_s} s: {self.text()}")


@contextmanager
def driver(folder: Path, *overrides: str, command: str = "train") -> Iterator[Driver]:
    started = Driver(folder, *overrides, command=command)
    try:
        started.wait_for(started.steps, "a report")
        yield started
    finally:
        kill_driver(started.process, grace_s=0)


def assert_gone(processes: list[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in processes if is_alive(process)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def is_alive(process: psutil.Process) -> bool:
    """Tells whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("num_workers", "title"),
    [(1, "ray::ResourceTrainable"), (2, "ray::Worker")],
    ids=["trial", "rank"],
)
def test_hung_process_costs_a_restart_from_the_last_checkpoint(
    num_workers: int, title: str, tmp_path: Path
) -> None:
    timeout = f"resources.report_timeout_s={REPORT_TIMEOUT_S}"
    with driver(tmp_path, timeout, f"resources.num_workers={num_workers}") as started:
        hung = started.wait_for(lambda: started.children(title), title)[0]
        hung.suspend()
        time.sleep(1)
        at = started.steps()
        began = time.monotonic()
        started.wait_for(lambda: started.steps() > at, "the trial goes on", START_S)
        assert time.monotonic() - began > REPORT_TIMEOUT_S / 2  # it did hang
        text = started.text()
        assert "no report for" in text
        assert f"after {REPORT_TIMEOUT_S} s it restarts" in text
        assert_gone([hung], 30)
        steps = started.reports()
        assert len(set(steps)) >= len(steps) - 1  # not from the start


@pytest.mark.parametrize(
    ("num_workers", "title"),
    [(1, "ray::ResourceTrainable.train"), (2, "ray::Worker")],
    ids=["trial", "rank"],
)
def test_a_process_that_hangs_at_its_start_is_replaced(
    num_workers: int, title: str, tmp_path: Path
) -> None:
    timeout = f"resources.start_timeout_s={START_TIMEOUT_S}"
    started = Driver(tmp_path, timeout, f"resources.num_workers={num_workers}")
    try:
        hung = started.wait_for(lambda: started.children(title), title)[0]
        hung.suspend()
        assert not started.steps()
        began = time.monotonic()
        started.wait_for(started.steps, "a report")
        assert time.monotonic() - began > START_TIMEOUT_S / 2  # it did hang
        assert "last checkpoint (resources.start_timeout_s)" in started.text()
        assert_gone([hung], 30)
    finally:
        kill_driver(started.process, grace_s=0)


def test_driver_ends_with_a_remedy_when_its_raylet_dies(tmp_path: Path) -> None:
    with driver(tmp_path) as started:
        raylet = next(p for p in started.children("/raylet/raylet") if p.name() == "raylet")
        raylet.kill()
        assert started.wait_for_exit(RAYLET_S) != 0
        assert f"--resume {started.run().path}" in started.text().replace("\n", "")


def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    with driver(tmp_path, *SPACE, "search.num_trials=2", command="tune") as started:
        started.wait_for(lambda: started.children("ray::_Ax"), "Ax runs")
        # Two agents of Ray's own report the raylet's end for 60 s, which Ray 2.60 fixes.
        agents = {
            *started.children("ray::DashboardAgent"),
            *started.children("ray::RuntimeEnvAgent"),
        }
        everything = [process for process in started.children() if process not in agents]
        started.process.kill()
        started.process.wait()
        assert_gone(everything, ORPHANS_S)


def test_search_ends_when_its_run_folder_is_deleted(tmp_path: Path) -> None:
    with driver(tmp_path) as started:
        path = started.run().path
        shutil.rmtree(str(path), ignore_errors=True)
        shutil.rmtree(str(path), ignore_errors=True)  # what a report wrote meanwhile
        assert started.wait_for_exit(FOLDER_S) == 1
        assert f"{path}: the run folder is gone" in started.text().replace("\n", "")


def test_search_waits_for_storage_that_is_away_and_counts_no_failure(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    with driver(share, "resources.max_failures=0") as started:
        at = started.steps()
        take_away(share, AWAY_S).join()
        started.wait_for(lambda: started.steps() > at, "a report", AFTER_OUTAGE_S)
        assert "its storage is away" in started.text()
        (record,) = read_trials(started.run()).values()
        assert record.status == "running"


def test_signal_during_the_refit_saves_its_trainings(tmp_path: Path) -> None:
    refit = ("training.meta_steps=100", *RARE_REPORTS, "search.refit={steps: 1000, seeds: 1}")
    with driver(tmp_path, *refit) as started:
        at = started.wait_for(lambda: started.steps("refit/tune"), "a report of the refit")
        everything = started.children()
        started.process.send_signal(signal.SIGTERM)
        assert started.wait_for_exit(SIGNAL_S) == 128 + signal.SIGTERM
        text = started.text().replace("\n", "")
        assert "ended by SIGTERM; go on with `raymeta train --resume" in text
        assert "Traceback" not in text
        assert_gone(everything, ORPHANS_S)
        run = started.run()
        assert run.status == "refitting"
        (searched,) = read_trials(run).values()
        assert searched.status == "completed"
        (training,) = read_trials(run.refit).values()
        assert training.status == "running"
        assert training.curve[-1][0] > at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_signal_saves_the_search_and_names_the_command_that_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    with driver(tmp_path, *RARE_REPORTS) as started:
        everything, at = started.children(), started.steps()
        started.process.send_signal(number)
        assert started.wait_for_exit(SIGNAL_S) == 128 + number
        text = started.text().replace("\n", "")
        assert f"ended by {number.name}; go on with `raymeta train --resume" in text
        assert "Stack trace" not in text
        assert "Traceback" not in text
        assert_gone(everything, ORPHANS_S)
        (record,) = read_trials(started.run()).values()
        assert record.curve[-1][0] > at  # it has reported once more
