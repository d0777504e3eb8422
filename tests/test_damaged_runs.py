"""Damage to any file of an interrupted run loses no finished trial and runs none again."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import pytest

from raymeta import api
from raymeta.errors import RunError, SearchError
from raymeta.experiment.schema import Experiment
from raymeta.nn.networks import Params
from raymeta.run_folder import Run, runs
from raymeta.search.preflight import prepare
from raymeta.search.progress import TrialEvent
from raymeta.search.records import TrialRecord
from raymeta.search.results import TrialSummary, checkpoints, read_trials
from raymeta.search.trial_log import TrialLog, logged_trials
from raymeta.search.tuner import is_damaged, run_search
from raymeta.storage.paths import path_at
from raymeta.training.checkpoint import read_state
from tests.search.helpers import assert_same_bits, local_ray, search, tiny_experiment
from tests.storage.test_outage import take_away

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = 3
MIDWAY = 6  # the meta-step at which the last trial is interrupted

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 0x10])
        + content[len(content) // 2 + 1 :]
    ),
}
every_damage = pytest.mark.parametrize("damage", DAMAGE)


@dataclass
class Journal:
    """Records the trials that start, and interrupts the search at a step of the last one."""

    interrupt: bool = False
    started: set[str] = field(default_factory=set)
    steps: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __call__(self, event: TrialEvent) -> None:
        if event.kind == "started":
            self.started.add(event.trial_id)
        if event.kind == "result":
            step = event.result["meta_steps"]
            self.steps.setdefault(event.trial_id, []).append(step)
            if "note" in event.result:
                self.notes.append(event.result["note"])
            if self.interrupt and len(self.started) == NUM_TRIALS and step == MIDWAY:
                os.kill(os.getpid(), signal.SIGINT)


@dataclass
class Interrupted:
    """A run of two finished trials and an interrupted one."""

    run: Run
    experiment: Experiment
    records: dict[str, TrialRecord]
    finished: list[str]
    unfinished: str

    def copy(self, folder: Path) -> Run:
        """Copies the run to another place."""
        shutil.copytree(str(self.run.path), folder / "copy")
        return Run(folder / "copy")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    experiment = tiny_experiment(
        "training.meta_steps=12",
        "resources.max_concurrent_trials=1",
        f"search.num_trials={NUM_TRIALS}",
        f"search.num_sobol={NUM_TRIALS}",
        "search.space.maml.inner_lr={low: 0.01, high: 1, log: true}",
    )
    with local_ray(num_cpus=1):
        root = tmp_path_factory.mktemp("runs")
        prepared = prepare(experiment, root)
        run = Run.create(root, experiment, fingerprint=prepared.tasks.fingerprint)
        TrialLog(run).begin([])
        with pytest.raises(SearchError, match="interrupted; go on with `raymeta tune --resume"):
            run_search(prepared, run, observer=Journal(interrupt=True), trials_at_once=1)
        records = read_trials(run)
        finished = [i for i, record in records.items() if record.status == "completed"]
        (unfinished,) = [i for i, record in records.items() if record.status == "running"]
        assert len(finished) == NUM_TRIALS - 1
        yield Interrupted(run, experiment, records, finished, unfinished)


@pytest.fixture(scope="module")
def whole_end(interrupted: Interrupted, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The network that the interrupted trial comes to from its last checkpoint."""
    run = interrupted.copy(tmp_path_factory.mktemp("whole"))
    assert_goes_on(interrupted, run)
    return end_of(run, interrupted)


def end_of(run: Run, interrupted: Interrupted) -> Params:
    return read_state(checkpoints(run, interrupted.unfinished)[0]).meta_params


def assert_goes_on(
    found: Interrupted, run: Run, *, journal: Journal | None = None
) -> list[TrialSummary]:
    """Resumes `run`, and checks that only the unfinished trial runs."""
    journal = journal or Journal()
    files = {i: trial_bytes(run, i) for i in found.finished}
    trials = search(found.experiment, run, journal)
    assert [trial.trial_id for trial in trials] == list(found.records)
    assert {trial.record.status for trial in trials} == {"completed"}
    assert read_trials(run) == {trial.trial_id: trial.record for trial in trials}
    for trial_id in found.finished:
        assert read_trials(run)[trial_id] == found.records[trial_id]
        assert trial_bytes(run, trial_id) == files[trial_id]
    assert journal.started == {found.unfinished}
    return trials


def trial_bytes(run: Run, trial_id: str) -> dict[str, bytes]:
    folder = Path(str(run.tune_dir)) / trial_id
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def the_file(run: Run, pattern: str) -> Path:
    (file,) = Path(str(run.path)).glob(pattern)
    return file


STATE_FILES = (
    "tune/experiment_state-*.json",
    "tune/search_gen_state-*.json",
    "tune/searcher-state-*.pkl",
    "tune/tuner.pkl",
)
TRIAL_FILES = ("params.json", "params.pkl", "result.json", "progress.csv")


# ------------------------------------------------------------------- Tune's files


@pytest.mark.parametrize("shift", range(len(DAMAGE)))
def test_damaged_state_of_tune_loses_no_finished_trial(
    interrupted: Interrupted, tmp_path: Path, shift: int
) -> None:
    """Over the shifts, each file has each damage."""
    run = interrupted.copy(tmp_path)
    for pattern, damage in zip(STATE_FILES, shifted(shift), strict=False):
        file = the_file(run, pattern)
        file.write_bytes(damage(file.read_bytes()))
    assert_goes_on(interrupted, run)


def shifted(shift: int) -> Iterator[Callable[[bytes], bytes]]:
    """All kinds of damage in turn, for ever, from one on."""
    return islice(cycle(DAMAGE.values()), shift, None)


def test_missing_state_of_tune_loses_no_finished_trial(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)
    for pattern in STATE_FILES:
        the_file(run, pattern).unlink()
    assert_goes_on(interrupted, run)


@pytest.mark.parametrize("shift", range(len(DAMAGE)))
def test_damaged_files_of_trials_lose_no_finished_trial(
    interrupted: Interrupted, tmp_path: Path, shift: int
) -> None:
    """Over the shifts, each file of each trial has each damage."""
    run = interrupted.copy(tmp_path)
    files = [f"tune/{trial_id}/{name}" for name in TRIAL_FILES for trial_id in interrupted.records]
    for pattern, damage in zip(files, shifted(shift), strict=False):
        file = the_file(run, pattern)
        file.write_bytes(damage(file.read_bytes()))
    assert_goes_on(interrupted, run)


# ------------------------------------------------------------------- the record of trials


def lines_of(run: Run) -> list[bytes]:
    return (Path(str(run.path)) / "trials.jsonl").read_bytes().splitlines(keepends=True)


def write_lines(run: Run, lines: list[bytes]) -> None:
    (Path(str(run.path)) / "trials.jsonl").write_bytes(b"".join(lines))


def test_every_line_of_the_record_may_be_damaged(interrupted: Interrupted, tmp_path: Path) -> None:
    """Tune's files replace it: no finished trial becomes unfinished."""
    run = interrupted.copy(tmp_path)
    lines = lines_of(run)
    for number, line in enumerate(lines):
        for damage in ("cut", "flipped"):
            broken = DAMAGE[damage](line.rstrip(b"\n")) + b"\n"
            write_lines(run, [*lines[:number], broken, *lines[number + 1 :]])
            found = logged_trials(run)
            assert f"line {number + 1} of" in found.notes[0]
            assert "checksum is wrong" in found.notes[0]
            for trial_id in interrupted.finished:
                assert found.records[trial_id] == interrupted.records[trial_id]


def test_a_search_goes_on_with_a_damaged_end_of_a_trial(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)
    lines = lines_of(run)
    (number,) = [
        n
        for n, line in enumerate(lines)
        if b'"completed"' in line and interrupted.finished[0].encode() in line
    ]
    lines[number] = DAMAGE["flipped"](lines[number])
    write_lines(run, lines)
    said: list[str] = []
    prepared = prepare(interrupted.experiment, tmp_path)
    trials = run_search(prepared, run, observer=Journal(), trials_at_once=1, say=said.append)
    assert {trial.record.status for trial in trials} == {"completed"}
    assert any(f"line {number + 1} of" in text for text in said)
    assert f"trial {interrupted.finished[0]} is taken from Tune's files" in said


def test_an_unfinished_last_line_is_said_and_tolerated(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)
    lines = lines_of(run)
    write_lines(run, [*lines, lines[-1][:40]])
    assert "is unfinished" in logged_trials(run).notes[0]
    assert_goes_on(interrupted, run)
    assert any(line.startswith(lines[-1][:40]) for line in lines_of(run)[len(lines) :])  # kept


@pytest.mark.parametrize("content", [None, b"", b"nothing of ours\n"])
def test_without_its_record_a_run_goes_on_from_tunes_files(
    interrupted: Interrupted, tmp_path: Path, content: bytes | None
) -> None:
    run = interrupted.copy(tmp_path)
    file = Path(str(run.path)) / "trials.jsonl"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    found = logged_trials(run)
    assert found.notes
    assert found.records.keys() >= set(interrupted.finished)


def test_a_run_that_lost_both_is_refused_and_left_as_it_is(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)
    file, state = Path(str(run.path)) / "trials.jsonl", the_file(run, "tune/searcher-state-*.pkl")
    contents = file.read_bytes(), state.read_bytes()
    file.write_bytes(b"")
    state.write_bytes(b"")
    before = snapshot(run)
    with pytest.raises(RunError, match="put back a copy of the file"):
        api.tune(resume=str(run.path))
    assert snapshot(run) == before
    file.write_bytes(contents[0])
    assert logged_trials(run).records == interrupted.records


def snapshot(run: Run) -> dict[str, bytes]:
    top = Path(str(run.path))
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# ------------------------------------------------------------------- checkpoints


@every_damage
def test_a_trial_goes_on_from_the_checkpoint_before_a_damaged_one(
    interrupted: Interrupted, whole_end: Params, tmp_path: Path, damage: str
) -> None:
    run, journal = interrupted.copy(tmp_path), Journal()
    last, before = (Path(str(f)) for f in checkpoints(run, interrupted.unfinished)[:2])
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    assert_goes_on(interrupted, run, journal=journal)
    (note,) = journal.notes
    assert str(last) in note
    assert f"the trial goes on from {before}" in note
    assert_same_bits(end_of(run, interrupted), whole_end)


def test_a_trial_without_a_whole_checkpoint_begins_anew(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run, journal = interrupted.copy(tmp_path), Journal()
    for file in checkpoints(run, interrupted.unfinished):
        Path(str(file)).write_bytes(b"")
    assert_goes_on(interrupted, run, journal=journal)
    assert "the trial begins anew" in journal.notes[0]
    assert journal.steps[interrupted.unfinished] == [3, 6, 9, 12]


def test_the_best_trial_goes_on_if_its_last_checkpoint_is_damaged(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run, journal = interrupted.copy(tmp_path), Journal()
    for trial_id in interrupted.finished:
        last = Path(str(checkpoints(run, trial_id)[0]))
        whole = last.read_bytes()
        assert not is_damaged(run, trial_id, [])
        for damage in DAMAGE.values():
            last.write_bytes(damage(whole))
            assert is_damaged(run, trial_id, [])
    trials = search(interrupted.experiment, run, journal)
    assert {trial.record.status for trial in trials} == {"completed"}
    assert read_trials(run).keys() == interrupted.records.keys()
    best = max(interrupted.finished, key=lambda i: interrupted.records[i].curve[-1][1])
    assert journal.steps[best] == [12]  # only its last steps
    for trial_id in interrupted.finished:
        assert read_trials(run)[trial_id] == interrupted.records[trial_id]


# ------------------------------------------------------------------- pickles of strangers


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._mark,)


def test_nothing_in_a_run_folder_is_unpickled(interrupted: Interrupted, tmp_path: Path) -> None:
    run, mark = interrupted.copy(tmp_path), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)  # noqa: S301  (our own)
    assert mark.exists(), "the bomb works"
    mark.unlink()
    top = Path(str(run.path))
    planted = [
        *top.glob("tune/*.pkl"),
        *top.glob("tune/search_gen_state*"),
        *top.rglob("params.pkl"),
    ]
    for file in planted:
        file.write_bytes(bomb)
    for folder in top.glob("tune/*/"):
        for name in ("error.pkl", "trial_metadata.json"):
            (folder / name).write_bytes(bomb)
        for checkpoint in folder.glob("checkpoint_*"):
            for name in (".tune_metadata", ".metadata.json", "_dict_checkpoint.pkl"):
                (checkpoint / name).write_bytes(bomb)
    assert len(planted) > 4
    assert [r.path for r in runs(tmp_path)] == [run.path]
    assert run.experiment() == interrupted.experiment
    with pytest.raises(SearchError, match="trials"):  # too few for an explanation
        api.explain(top)
    report = api.tune(resume=str(run.path))
    assert {record.status for record in report.trials.values()} == {"completed"}
    for file in planted:
        file.write_bytes(bomb)
    assert api.evaluate(top).meta_test.rows[0].score == report.meta_test.rows[0].score
    api.load_report(run)
    assert not mark.exists()


# ------------------------------------------------------------------- runs that move


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """Takes a folder away for a while."""
    aside = folder.rename(folder.with_name("aside"))
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


@pytest.mark.parametrize("place", ["moved", "parent renamed", "link", "bucket"])
def test_a_run_goes_on_wherever_it_is_now(
    interrupted: Interrupted, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "first").mkdir()
    run = interrupted.copy(tmp_path / "first")
    if place == "moved":
        shutil.move(str(run.path), tmp_path / "there")
        run = Run(tmp_path / "there")
    elif place == "parent renamed":
        (tmp_path / "first").rename(tmp_path / "second")
        run = Run(tmp_path / "second" / "copy")
    elif place == "link":
        (tmp_path / "link").symlink_to(str(run.path))
        run = Run.open(str(tmp_path / "link"), tmp_path)
    else:
        there = path_at(request.getfixturevalue("bucket")) / "prefix" / "copy"
        for file in Path(str(run.path)).rglob("*"):
            if file.is_file():
                (there / str(file.relative_to(str(run.path)))).write_bytes(file.read_bytes())
        shutil.rmtree(str(run.path))
        run = Run(there)
    journal = Journal()
    began_in = Path(str(interrupted.run.path))
    with gone(began_in):
        trials = search(interrupted.experiment, run, journal)
        assert not began_in.exists()
    assert [trial.trial_id for trial in trials] == list(interrupted.records)
    assert {trial.record.status for trial in trials} == {"completed"}
    assert all(trial.error is None for trial in trials)
    assert journal.started == {interrupted.unfinished}
    assert journal.steps[interrupted.unfinished][0] > MIDWAY - 3  # not from its beginning


# ------------------------------------------------------------------- outages and failures


def test_a_search_outlasts_storage_that_is_away(interrupted: Interrupted, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    run = interrupted.copy(share)
    said: list[str] = []
    thread: list[threading.Thread] = []

    def observer(event: TrialEvent) -> None:
        if event.kind == "started" and not thread:
            thread.append(take_away(share, 5))

    prepared = prepare(interrupted.experiment, share)
    trials = run_search(prepared, run, observer=observer, trials_at_once=1, say=said.append)
    thread[0].join()
    assert {trial.record.status for trial in trials} == {"completed"}
    assert any("its storage is away" in text for text in said)
    # As undisturbed: no failure of the trial was counted.
    assert not list(Path(str(run.tune_dir)).glob("*/error.txt"))


def test_a_search_whose_folder_is_removed_ends_at_once(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)

    def observer(event: TrialEvent) -> None:
        if event.kind == "started":
            shutil.rmtree(str(run.path))

    prepared = prepare(interrupted.experiment, tmp_path)
    with pytest.raises(RunError, match=rf"^{run.path}: the run folder is gone"):
        run_search(prepared, run, observer=observer, trials_at_once=1)


def test_failed_trials_run_again_even_if_there_is_a_best_one(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    run = interrupted.copy(tmp_path)
    api.tune(resume=str(run.path))
    first = read_trials(run)
    failed, other = list(first)[-1], next(iter(first))
    log = TrialLog(run)
    log.set(failed, replace(first[failed], status="failed", curve=first[failed].curve[:2]))
    log.fail(failed, "OSError: no space left")
    assert run.has_best
    report = api.tune(resume=str(run.path))
    assert report.trials[failed].status == "completed"
    # From its newest checkpoint, so that reports before that may be missing.
    assert report.trials[failed].curve[-1] == first[failed].curve[-1]
    assert report.trials[other] == first[other]
    assert logged_trials(run).errors == {}
