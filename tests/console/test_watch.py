"""`watch` shows a run from its folder while another process works in it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raymeta.console.terminal import Terminal
from raymeta.console.watch import SILENT_S, watch
from raymeta.errors import RunError
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import TrialLog
from raymeta.storage.paths import path_at
from tests.report.runs import meta_test, query_scores

# Holds the run's lock as a search does, says so, and ends when its input ends.
DRIVER = """
import sys
from pathlib import Path
from raymeta.run_folder import Run
with Run(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, load_experiment("pen-maml"), "watched")


@contextmanager
def driving(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def driver(run: Run) -> Iterator[subprocess.Popen[str]]:
    with driving(run) as process:
        yield process


class Watching(threading.Thread):
    """Runs `watch` in a thread and collects what it prints."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self.output = io.StringIO()
        self.is_finished: bool | None = None
        self.error = ""
        self.now = 0.0  # seconds, of the clock that tells how long nothing new has come
        self._run_folder = run
        self.start()

    def run(self) -> None:
        console = Terminal(file=self.output, width=300)
        try:
            self.is_finished = watch(
                self._run_folder, console, verbose=True, poll_s=0.05, clock=lambda: self.now
            )
        except RunError as error:
            self.error = str(error)

    def until(self, text: str) -> None:
        for _ in range(600):
            if text in self.output.getvalue():
                return
            self.join(0.05)
        pytest.fail(f"{text!r} is not in {self.output.getvalue()!r}")


@pytest.mark.slow
def test_what_another_process_does_is_shown_until_its_results(
    run: Run, driver: subprocess.Popen[str]
) -> None:
    assert run.is_locked
    log = TrialLog(run)
    record = TrialRecord({"maml.inner_lr": 0.5}, "given", began_s=0.0)
    log.set("a", record)
    watching = Watching(run)
    watching.until("trial 1 started  inner_lr=0.5")
    record.curve.append((100, 0.61, 0.02))
    record.latest_s = 10.0
    log.report("a", record)
    watching.until("trial 1 running at step 100: 0.610 ± 0.020  10.0 meta-steps/s")
    record.status = "abandoned"
    log.set("a", record, error="Traceback\nlower maml.inner_lr")
    watching.until("trial 1 diverged at step 100")
    watching.until("trial 1: lower maml.inner_lr")
    run.keep_best({"maml.inner_lr": 0.5})
    watching.until("meta-test")
    run.write_json("results.json", {"meta_test": meta_test(query_scores()).to_json()})
    watching.join(1)
    assert watching.is_finished is None  # its process is still at work
    driver.kill()
    driver.wait()
    watching.join(30)
    assert watching.is_finished is True


@pytest.mark.slow
def test_watching_ends_when_the_process_of_the_run_is_gone(
    run: Run, driver: subprocess.Popen[str]
) -> None:
    watching = Watching(run)
    watching.join(1)
    assert watching.is_alive()
    driver.kill()  # as by SIGKILL: nothing is tidied up
    driver.wait()
    watching.join(30)
    assert watching.is_finished is False
    assert run.is_locked is False


@pytest.mark.slow
def test_in_a_bucket_watching_ends_when_nothing_new_comes_for_long(bucket: str) -> None:
    run = Run.create(path_at(bucket) / "runs", load_experiment("pen-maml"), "watched")
    assert run.is_locked is None
    log = TrialLog(run)
    record = TrialRecord({"maml.inner_lr": 0.5}, "given", began_s=0.0)
    log.set("a", record)
    watching = Watching(run)
    watching.until("trial 1 started")
    watching.now = SILENT_S - 1
    record.curve.append((100, 0.61, 0.02))
    record.latest_s = 10.0
    record.status = "abandoned"
    log.set("a", record)
    watching.until("trial 1 diverged at step 100")
    watching.now += SILENT_S - 1  # since the last record
    watching.join(2)
    assert watching.is_alive()
    watching.now += 2
    watching.join(30)
    assert not watching.is_alive()
    assert watching.error.startswith(f"{run.path}: nothing new for 15 minutes")
    assert "which is unfinished" in watching.error
    assert f"raymeta watch '{run.path}'" in watching.error
    assert f"raymeta tune --resume '{run.path}'" in watching.error


def test_in_a_bucket_watching_ends_with_the_results(bucket: str) -> None:
    run = Run.create(path_at(bucket) / "runs", load_experiment("pen-maml"), "watched")
    watching = Watching(run)
    run.keep_best({"maml.inner_lr": 0.5})
    watching.until("meta-test")
    run.write_json("results.json", {"meta_test": meta_test(query_scores()).to_json()})
    watching.join(30)
    assert watching.is_finished is True
