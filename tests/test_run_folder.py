"""Run folders are made once, written whole or not at all, and found again."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raymeta.errors import RunError
from raymeta.experiment.file import to_yaml, with_values
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run, runs
from raymeta.storage.atomic import write_file


@pytest.fixture
def experiment() -> Experiment:
    maml = {"inner_lr": 0.025}
    return Experiment.model_validate({"name": "own", "tasks": {"source": "pen"}, "maml": maml})


# Making


def test_a_new_run_keeps_its_experiment(tmp_path: Path, experiment: Experiment) -> None:
    run = Run.create(tmp_path / "deep" / "runs", experiment)
    assert run.path.parent == tmp_path / "deep" / "runs"
    assert run.path.name.startswith("own-20")
    assert run.experiment() == experiment
    assert {path.name for path in run.path.iterdir()} == {"experiment.yaml", "run.json"}


def test_runs_made_at_once_get_folders_of_their_own(tmp_path: Path, experiment: Experiment) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: Run.create(tmp_path, experiment), range(12)))
    assert len({run.path for run in runs}) == 12
    assert all(run.experiment() == experiment for run in runs)


@pytest.mark.parametrize("root", ["taken", "taken/runs"])
def test_a_file_in_the_way_is_reported_with_the_remedy(
    tmp_path: Path, experiment: Experiment, root: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match=rf"{tmp_path / root}.*name a .* with --runs-dir"):
        Run.create(tmp_path / root, experiment)
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_read_only_root_is_reported_with_the_remedy(
    read_only_folder: Path, experiment: Experiment
) -> None:
    with pytest.raises(RunError, match=r"cannot be made: .*; name a writable one with --runs-dir"):
        Run.create(read_only_folder, experiment)


# Writing


def test_json_is_read_back_and_absent_where_there_is_none(
    tmp_path: Path, experiment: Experiment
) -> None:
    run = Run.create(tmp_path, experiment)
    content = {"rows": [{"name": "tuned", "score": 0.5}], "note": "40 characters × 7"}
    run.write_json("results.json", content)
    assert run.read_json("results.json") == content
    assert run.read_json("trials.json") is None


def test_a_changed_number_is_refused_though_the_file_is_valid(
    tmp_path: Path, experiment: Experiment
) -> None:
    run = Run.create(tmp_path, experiment)
    run.write_json("results.json", {"score": 0.5})
    file = Path(str(run.path)) / "results.json"
    file.write_text(file.read_text().replace("0.5", "0.7"))
    with pytest.raises(RunError, match=r"results\.json: is damaged: its checksum is wrong; remedy"):
        run.read_json("results.json", "remedy")


# Finding


def set_age(run: Run, seconds: int) -> None:
    for path in (run.experiment_file, run.path):
        os.utime(str(path), (1e9 - seconds, 1e9 - seconds))


def test_a_run_is_opened_by_name_and_by_path(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    run = Run.create(root, experiment)
    assert Run.open(run.path.name, root) == run
    assert Run.open(str(run.path), tmp_path / "elsewhere") == run
    monkeypatch.chdir(tmp_path)
    assert Run.open(f"runs/{run.path.name}", Path("elsewhere")) == run
    assert Run.open(run.path.name, Path("runs")) == run


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, experiment: Experiment) -> None:
    with pytest.raises(RunError, match=rf"^pne: no run folder .* under {tmp_path}.*: none$"):
        Run.open("pne", tmp_path)
    names = [Run.create(tmp_path, experiment).path.name for _ in range(2)]
    with pytest.raises(RunError, match=r"^pne: no run folder") as error:
        Run.open("pne", tmp_path)
    assert all(name in str(error.value) for name in names)


def test_a_folder_without_an_experiment_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert runs(tmp_path) == []
    with pytest.raises(RunError, match=r"^pictures: no run folder"):
        Run.open("pictures", tmp_path)


def test_runs_are_listed_from_the_oldest_to_the_newest(
    tmp_path: Path, experiment: Experiment
) -> None:
    made = [Run.create(tmp_path, experiment) for _ in range(4)]
    ages = [30, 10, 40, 20]
    for run, age in zip(made, ages, strict=True):
        set_age(run, age)
    assert runs(tmp_path) == [made[number] for number in (2, 0, 3, 1)]
    assert runs(tmp_path / "nowhere") == []


def test_working_on_an_old_run_does_not_make_it_new(tmp_path: Path, experiment: Experiment) -> None:
    old, new = (Run.create(tmp_path, experiment) for _ in range(2))
    set_age(old, 20)
    set_age(new, 10)
    old.write_json("results.json", {})
    assert runs(tmp_path) == [old, new]


# Progress


def test_status_tells_how_far_a_run_came(tmp_path: Path, experiment: Experiment) -> None:
    run = Run.create(tmp_path, experiment)
    assert (run.status, run.has_best) == ("unfinished", False)
    write_file(run.path / "best.yaml", to_yaml(experiment).encode())
    assert (run.status, run.has_best) == ("searched", True)
    run.write_json("results.json", {})
    assert run.status == "done"


def test_the_best_experiment_is_there_after_the_search(
    tmp_path: Path, experiment: Experiment
) -> None:
    run = Run.create(tmp_path, experiment)
    with pytest.raises(
        RunError, match=rf"has no best trial yet; go on with `{run.resume_command}`"
    ):
        run.best_experiment()
    best = with_values(experiment, {"maml.inner_lr": 0.5})
    write_file(run.path / "best.yaml", to_yaml(best).encode())
    assert run.best_experiment() == best
    assert run.experiment() == experiment


@pytest.mark.parametrize(
    ("space", "command"),
    [({}, "train"), ({"maml.inner_lr": {"low": 0.01, "high": 1}}, "tune")],
)
def test_the_command_to_go_on_with_fits_the_experiment(
    tmp_path: Path, experiment: Experiment, space: dict[str, object], command: str
) -> None:
    run = Run.create(tmp_path, with_values(experiment, {"search.space": space}))
    assert run.resume_command == f"raymeta {command} --resume {run.path}"


def test_the_time_spent_adds_up_over_sessions(tmp_path: Path, experiment: Experiment) -> None:
    run = Run.create(tmp_path, experiment)
    assert run.seconds == 0.0
    run.add_seconds(1.5)
    Run.open(str(run.path), tmp_path).add_seconds(2.0)
    assert run.seconds == 3.5


# One process at a time

HOLD = """
import sys, time
from raymeta.storage.paths import path_at
from raymeta.run_folder import Run
with Run(path_at(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_is_searched_by_one_process_at_a_time_and_free_once_that_was_killed(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.run_folder.LOCK_S", 0.5)
    run = Run.create(tmp_path, experiment)
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with (
                pytest.raises(RunError, match="another process searches in this run"),
                run.locked(),
            ):
                pytest.fail("two at once")
        finally:
            other.kill()
    for _ in range(2):
        with run.locked():
            pass


def test_the_trials_of_a_refit_have_a_folder_of_their_own(
    tmp_path: Path, experiment: Experiment
) -> None:
    run = Run.create(tmp_path, experiment)
    assert run.tune_dir == run.path / "tune"
    assert run.refit.tune_dir == run.path / "refit" / "tune"
    assert run.refit.origin == run.origin
    assert run.refit.resume_command == run.resume_command
    assert run.status == "unfinished"
    Path(str(run.refit.tune_dir)).mkdir(parents=True)
    assert run.status == "refitting"
    assert [found.path for found in runs(tmp_path)] == [run.path]
    link = Path(str(run.refit.tune_dir)) / "elsewhere"
    link.symlink_to(tmp_path)
    with pytest.raises(RunError, match="leads out of the run folder"), run.locked():
        pass
