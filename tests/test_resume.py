"""SIGKILL ends a search's driver; `tune(resume=…)` finishes the search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run, runs
from raymeta.search.progress import TrialEvent
from raymeta.search.records import TrialRecord
from raymeta.search.results import read_trials
from tests.search.helpers import SPACE, TINY, kill_driver, local_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = 4
META_STEPS, EVAL_EVERY = 96, 6
OVERRIDES = [
    *TINY,
    *SPACE,
    f"training.meta_steps={META_STEPS}",
    f"training.eval_every={EVAL_EVERY}",
    f"search.num_trials={NUM_TRIALS}",
    "search.num_sobol=2",
    "search.model=gp-ensemble",
]
DRIVER = """
import sys
from raymeta import api
api.tune("pen-maml", overrides=sys.argv[2:], runs_dir=sys.argv[1])
"""
TIMEOUT_S = 240


@dataclass
class Watcher:
    """Records the reports of trials."""

    reports: list[tuple[str, int]] = field(default_factory=list)  # trial_id, meta-steps
    started_trials: set[str] = field(default_factory=set)

    def started(self, run: Run, experiment: Experiment) -> None: ...

    def trial(self, event: TrialEvent) -> None:
        if event.kind == "started":
            self.started_trials.add(event.trial_id)
        if event.kind == "result":
            self.reports.append((event.trial_id, event.result["meta_steps"]))

    def phase(self, text: str) -> None: ...


@dataclass
class Resumed:
    """A search before and after its interruption."""

    run: Run
    before: dict[str, TrialRecord]
    files_before: dict[str, tuple[int, bytes]]  # of each trial, its results as Tune wrote them
    watcher: Watcher
    report: api.Report
    refusal: str  # of another process that would go on with it meanwhile

    def finished(self) -> list[str]:
        """Returns the trials that had finished before the interruption."""
        return [i for i, record in self.before.items() if record.status == "completed"]

    def unfinished(self) -> list[str]:
        """Returns the trials that had reported without finishing."""
        return [i for i, r in self.before.items() if r.status == "running" and r.curve]


def results_files(run: Run) -> dict[str, tuple[int, bytes]]:
    """Returns time of change and content of each trial's results."""
    files = sorted(Path(str(run.tune_dir)).glob("*/result.json"))
    return {f.parent.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def is_midway(run: Run) -> bool:
    """Tells whether two trials are done and a third has begun, by all of the run's files."""
    records = read_trials(run)
    done = [i for i, record in records.items() if record.status == "completed"]
    begun = [r for r in records.values() if r.status == "running" and len(r.curve) > 2]
    return len(done) >= 2 and len(begun) == 1 and tunes_trials(run) == (list(records), done)


def tunes_trials(run: Run) -> tuple[list[str], list[str]]:
    """Returns all and the finished trials in Tune's own file."""
    (file,) = Path(str(run.tune_dir)).glob("experiment_state-*.json")
    trials = [json.loads(static) for static, _ in json.loads(file.read_text())["trial_data"]]
    finished = [trial["trial_id"] for trial in trials if trial["status"] == "TERMINATED"]
    return [trial["trial_id"] for trial in trials], finished


def freeze_midway(driver: subprocess.Popen[bytes], runs_dir: Path) -> Run:
    """Stops the driver in the middle of its search, so that its files stay unchanged."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and driver.poll() is None:
        os.kill(driver.pid, signal.SIGSTOP)
        for run in runs(runs_dir):
            if is_midway(run):
                return run
        os.kill(driver.pid, signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail("the search did not come to its middle")


def refusal_of_a_second(run: Run) -> str:
    """Returns the message of `tune(resume=…)` while the frozen driver exists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymeta.run_folder.LOCK_S", 0.5)
        with pytest.raises(RunError) as refused:
            api.tune(resume=str(run.path))
    return str(refused.value)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    runs_dir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-c", DRIVER, str(runs_dir), *OVERRIDES]
    driver = subprocess.Popen(command, start_new_session=True)
    try:
        run = freeze_midway(driver, runs_dir)
        refusal = refusal_of_a_second(run)
    finally:
        kill_driver(driver)
    assert run.status == "unfinished"
    before, files_before = read_trials(run), results_files(run)
    watcher = Watcher()
    with local_ray(num_cpus=2):
        report = api.tune(resume=run.path.name, runs_dir=runs_dir, watcher=watcher)
    return Resumed(run, before, files_before, watcher, report, refusal)


def test_the_search_was_interrupted_midway(resumed: Resumed) -> None:
    assert len(resumed.finished()) >= 2
    assert len(resumed.unfinished()) == 1
    assert len(resumed.finished()) + len(resumed.unfinished()) < NUM_TRIALS


def test_a_second_driver_was_refused_as_long_as_the_first_one_was_there(resumed: Resumed) -> None:
    assert "another process searches in this run" in resumed.refusal


def test_finished_trials_are_kept_and_not_run_again(resumed: Resumed) -> None:
    files = results_files(resumed.run)
    for trial_id in resumed.finished():
        assert resumed.report.trials[trial_id] == resumed.before[trial_id]
        assert files[trial_id] == resumed.files_before[trial_id]
    assert resumed.watcher.started_trials.isdisjoint(resumed.finished())


def test_a_running_trial_goes_on_from_its_checkpoint(resumed: Resumed) -> None:
    (trial_id,) = resumed.unfinished()
    known = [step for step, _, _ in resumed.before[trial_id].curve]
    after = [steps for trial, steps in resumed.watcher.reports if trial == trial_id]
    # The trial may have written checkpoints that its frozen driver had not heard of.
    folder = Path(str(resumed.run.tune_dir)) / trial_id
    newest = max(int(path.parent.name[-6:]) for path in folder.glob("checkpoint_*/*"))
    assert after[0] == (newest + 2) * EVAL_EVERY >= known[-1]
    assert after == list(range(after[0], META_STEPS + 1, EVAL_EVERY))
    curve = resumed.report.trials[trial_id].curve
    assert curve[: len(known)] == resumed.before[trial_id].curve
    steps = [step for step, _, _ in curve]
    assert steps == sorted({*known, *after})


def test_no_trial_is_lost_or_run_twice(resumed: Resumed) -> None:
    trials = resumed.report.trials
    assert len(trials) == NUM_TRIALS
    assert list(trials)[: len(resumed.before)] == list(resumed.before)
    assert {record.status for record in trials.values()} == {"completed"}
    points = {tuple(record.point.values()) for record in trials.values()}
    assert len(points) == NUM_TRIALS
    # A resumed trial has a folder for each session: ID, ID-2, ...
    folders = {p.parent.name.split("-")[0] for p in resumed.run.tune_dir.glob("*/result.json")}
    assert folders == set(trials)
    written = resumed.run.read_json("trials.json")
    assert [trial["trial_id"] for trial in written] == list(trials)


def test_the_search_remembers_what_it_knew(resumed: Resumed) -> None:
    sources = [record.source for record in resumed.report.trials.values()]
    assert sources[:2] == ["given", "sobol"]
    assert sources[2:] == ["bo", "bo"]


def test_the_run_is_finished_by_the_resumed_search(resumed: Resumed) -> None:
    assert resumed.run.status == "done"
    again = api.tune(resume=str(resumed.run.path))
    assert again.trials == resumed.report.trials
    assert again.meta_test == resumed.report.meta_test
