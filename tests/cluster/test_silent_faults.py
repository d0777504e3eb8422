"""Silent faults: a hung process, a dead raylet, absent storage, a moved or damaged run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raymeta.search.results import checkpoints, read_trials
from tests.cluster.hosts import SHARED
from tests.cluster.onprem import (
    FOUR_TRIALS,
    MIDWAY,
    NO_RETRIES,
    RETRIES,
    OnPrem,
    Search,
    Start,
    repeats,
)

# From the fault, or from the command that resumes, to the next report.
REPORT_TIMEOUT_S = 20
HUNG_RECOVERY_S = REPORT_TIMEOUT_S + 60
RAYLET_RECOVERY_S = 60
RESUME_S = 90
OUTAGE_S = 10  # a trial that does not wait fails within a second
AFTER_OUTAGE_S = 60
SIGTERM_EXIT = 128 + 15
STATE_OF_TUNE = ("experiment_state-*.json", "search_gen_state-*.json", "tuner.pkl")
KEPT = f"{SHARED}/kept"


def test_a_hung_trial_goes_on_from_its_checkpoint(undisturbed: Search, start: Start) -> None:
    search = start(RETRIES, f"resources.report_timeout_s={REPORT_TIMEOUT_S}")
    search.wait_for_reports(MIDWAY)
    search.kill_trial("STOP")
    search.wait_for_new_process(HUNG_RECOVERY_S)
    search.wait_for_end_of_trials()
    assert_continued(search, undisturbed)


def test_a_trial_outlives_the_raylet_of_its_host(
    onprem: OnPrem, undisturbed: Search, start: Start
) -> None:
    search = start(RETRIES)
    search.wait_for_reports(MIDWAY)
    search.trial_host().kill("raylet/raylet ")
    search.wait_for_new_process(RAYLET_RECOVERY_S)
    search.wait_for_end_of_trials()
    assert_continued(search, undisturbed)
    search.stop()
    onprem.wait_until_ready()  # the host is used again


def test_storage_that_is_away_from_all_hosts_fails_no_trial(onprem: OnPrem, start: Start) -> None:
    search = start(NO_RETRIES, *FOUR_TRIALS, command="tune")
    search.wait_for_reports(MIDWAY)
    away = onprem.runs.with_name("away")
    onprem.runs.rename(away)
    time.sleep(OUTAGE_S)
    away.rename(onprem.runs)
    search.wait_for_reports(len(search.results()) + 1, AFTER_OUTAGE_S)
    trials = search.wait_for_trials()
    assert [trial["status"] for trial in trials] == ["completed"] * 4
    assert "its storage is away" in search.log.read_text()


def test_a_moved_run_resumes(onprem: OnPrem, interrupted: dict[str, str], start: Start) -> None:
    onprem.head.run(f"cp -a {KEPT} {SHARED}/runs/moved")
    search = start(name="moved", command="resume")
    search.wait_for_reports(len(search.results()) + 1, RESUME_S)
    search.wait_for_best_trial()
    search.assert_nothing_lost_or_run_again(interrupted)


def test_a_damaged_run_loses_no_finished_trial(
    onprem: OnPrem, interrupted: dict[str, str], start: Start
) -> None:
    onprem.head.run(f"cp -a {KEPT} {SHARED}/runs/damaged")
    damage(Search(onprem, "damaged", Path()), finished=next(iter(interrupted)))
    search = start(name="damaged", command="resume")
    search.wait_for_reports(len(search.results()) + 1, RESUME_S)
    search.wait_for_best_trial()
    search.assert_nothing_lost_or_run_again(interrupted)
    assert "trials.jsonl is damaged" in search.log.read_text()


@pytest.fixture(scope="module")
def interrupted(onprem: OnPrem) -> dict[str, str]:
    """Leaves a run that SIGTERM ended midway in a folder; returns the finished trials' results."""
    onprem.wait_until_ready()
    search = onprem.start("interrupted", command="tune")
    search.wait_for_saved_trials(2)
    assert search.terminate() == SIGTERM_EXIT, search.tail()
    finished = search.wait_for_saved_trials(2)
    assert len(finished) < 4
    onprem.head.run(f"mv {SHARED}/runs/interrupted {KEPT}")
    return finished


def damage(search: Search, *, finished: str) -> None:
    """Empties Tune's state, and flips a byte in a trial's record and in another's checkpoint."""
    for pattern in STATE_OF_TUNE:
        for file in Path(str(search.run.tune_dir)).glob(pattern):
            file.write_bytes(b"")
    for trial, record in read_trials(search.run).items():
        if record.status == "running" and len(files := checkpoints(search.run, trial)) > 1:
            flip_byte(Path(str(files[0])), Path(str(files[0])).stat().st_size // 2)
    log = Path(str(search.run.path)) / "trials.jsonl"
    lines = log.read_text().splitlines()
    (completed,) = [line for line in lines if finished in line and '"completed"' in line]
    flip_byte(log, log.read_text().index(completed) + len(completed) // 2)


def flip_byte(file: Path, at: int) -> None:
    """Flips one bit of a byte."""
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def assert_continued(search: Search, undisturbed: Search) -> None:
    """Checks that the trial repeated only what was unsaved, and ended as without a fault."""
    assert repeats(search.steps()) <= 1
    assert set(search.curve()) == set(undisturbed.curve())
