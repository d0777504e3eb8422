"""The run's record of trials: gaps are noticed, and Tune's files fill them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from raymeta.errors import RunError
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.saved import SavedSearch, write_state
from raymeta.search.trial_log import TrialLog, logged_trials
from tests.search.helpers import tiny_experiment

RECORDS = {
    "a": TrialRecord({"x": 1}, "given", "completed", [(1, 0.1, None), (2, 0.2, None)]),
    "b": TrialRecord({"x": 2}, "sobol", "early_stopped", [(1, 0.3, 0.1)]),
    "c": TrialRecord(
        {"x": 3}, "fallback", "running", [(1, 0.4, None), (2, 0.5, None)], reason="NanError: no fit"
    ),
}


def start(root: Path) -> Run:
    run = Run.create(root, tiny_experiment())
    log = TrialLog(run)
    log.begin([])
    for trial_id, record in RECORDS.items():
        log.set(trial_id, replace(record, status="running", curve=[]))
        for count in range(1, len(record.curve) + 1):
            log.report(trial_id, replace(record, curve=record.curve[:count]))
        if record.status != "running":
            log.set(trial_id, record)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Makes a run of two ended trials and a running one, which Tune's files hold as well."""
    run = start(tmp_path)
    save(run, RECORDS)
    return run


def save(run: Run, records: dict[str, TrialRecord]) -> None:
    folder = Path(str(run.tune_dir))
    folder.mkdir(exist_ok=True)
    write_state(folder / "searcher-state-1.pkl", SavedSearch([], records))


def log_file(run: Run) -> Path:
    return Path(str(run.path)) / "trials.jsonl"


def test_the_scores_on_halves_of_the_validation_are_those_of_the_last_end(run: Run) -> None:
    assert logged_trials(run).halves == {}
    for halves in ((0.1, 0.2), (0.3, 0.4)):
        TrialLog(run).set("a", RECORDS["a"], halves=halves)
    assert logged_trials(run).halves == {"a": (0.3, 0.4)}
    TrialLog(run).set("a", RECORDS["a"])
    assert logged_trials(run).halves == {}


def test_a_whole_record_needs_nothing_of_tunes(run: Run) -> None:
    found = logged_trials(run)
    assert (found.records, found.notes) == (RECORDS, [])


def test_whole_lines_missing_at_the_end_are_reported_and_lose_no_trial(run: Run) -> None:
    lines = log_file(run).read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        log_file(run).write_bytes(b"".join(lines[:count]))
        found = logged_trials(run)
        assert found.records == RECORDS
        assert "lines are missing at the end of" in found.notes[0]
        assert any("is taken from Tune's files" in note for note in found.notes)


def test_any_missing_lines_are_reported_and_lose_no_trial(run: Run) -> None:
    lines = log_file(run).read_bytes().splitlines(keepends=True)
    for begin in range(len(lines) - 1):
        for end in range(begin + 1, len(lines)):
            log_file(run).write_bytes(b"".join([*lines[:begin], *lines[end:]]))
            found = logged_trials(run)
            assert "lines are missing or out of place" in found.notes[0]
            for trial_id in ("a", "b"):
                assert found.records[trial_id] == RECORDS[trial_id]


def test_repeated_lines_are_reported_and_change_nothing(run: Run) -> None:
    """A repeated start would otherwise make an ended trial a running one."""
    content = log_file(run).read_bytes()
    for line in content.splitlines(keepends=True)[:-1]:
        log_file(run).write_bytes(content + line)
        found = logged_trials(run)
        assert "repeats an earlier one" in found.notes[0]
        assert found.records == RECORDS


def test_the_record_of_another_run_does_not_count(run: Run, tmp_path: Path) -> None:
    other = start(tmp_path / "others")
    log_file(run).write_bytes(log_file(other).read_bytes())
    found = logged_trials(run)
    assert "checksum is wrong" in found.notes[0]
    assert found.records == RECORDS  # from this run's own files of Tune's
    assert found.earlier is None


def test_damaged_files_of_tunes_are_no_matter_while_the_record_is_whole(run: Run) -> None:
    (file,) = Path(str(run.tune_dir)).iterdir()
    file.write_bytes(b"{")
    assert logged_trials(run).notes == []


def test_a_trial_of_tunes_whose_name_is_no_folder_is_left_out(run: Run) -> None:
    save(run, {**RECORDS, "../../x": RECORDS["a"]})
    assert logged_trials(run).records == RECORDS


def test_a_run_without_an_identity_is_refused(run: Run) -> None:
    (Path(str(run.path)) / "run.json").unlink()
    with pytest.raises(RunError, match=r"run\.json is missing; put back a copy of it"):
        logged_trials(run)


@pytest.mark.parametrize(
    "name", ["run.json", "results.json", "trials.jsonl", "tune/searcher-state-1.pkl"]
)
def test_a_pipe_in_a_run_folder_keeps_nobody_waiting(run: Run, name: str) -> None:
    file = Path(str(run.path)) / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    if name == "results.json":
        with pytest.raises(RunError, match="it is not a regular file"):
            run.read_json(name)
    elif name.startswith("tune/"):
        assert logged_trials(run).records == RECORDS
    else:
        with pytest.raises(RunError, match="it is not a regular file"):
            logged_trials(run)
