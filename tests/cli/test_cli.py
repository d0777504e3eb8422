from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymeta import cli
from raymeta.run_folder import runs

TINY = [
    "--set=model.hidden_size=8",
    "--set=training.pretrain_steps=0",
    "--set=training.meta_steps=4",
    "--set=training.eval_every=2",
    "--set=training.meta_batch_size=2",
    "--set=training.val_episodes=4",
    "--set=evaluation.num_episodes=8",
    "--set=evaluation.adaptation_steps=2",
    "--set=maml.adaptation_steps=1",
    "--set=resources.num_workers=1",
]


CONDITION = "search.space.maml.inner_lr={low: 0.1, high: 1, when: {model.cell: lstm}}"


@pytest.fixture
def run_cli(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder: exit code, output, error output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raymeta", *arguments])
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
        else:
            code = 0
        captured = capsys.readouterr()
        return int(code or 0), captured.out, captured.err

    return run


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["tune", "pne"], ["'pne'", "pen", "Did you mean"]),
        (["tune"], ["name an experiment", "pen", "sentiment", "sinusoid"]),
        (["tune", "pen", "--set", "maml.inner_lrr=1"], ["maml.inner_lrr", "maml.inner_lr?"]),
        (["tune", "pen", "--set", "training.meta_steps=many"], ["training.meta_steps", "'many'"]),
        (["tune", "pen", "--set", "maml.inner_lr=-0.1"], ["maml.inner_lr must be > 0", "-0.1"]),
        (["tune", "pen", "--set", "nonsense"], ["KEY=VALUE", "nonsense"]),
        (["train", "pen", "--set", "tasks.num_ways=40"], ["tasks.num_ways must be at most", "40"]),
        (["train", "pen", "--set", "tasks.num_shots=4"], ["tasks.num_shots + tasks.num_queries"]),
        (["train", "pen", "--set", "tasks.data_dir=nowhere"], ["nowhere", "tasks.data_dir"]),
        (["tune", "sinusoid", "--set", "search.space={}"], ["search.space is empty"]),
        (
            ["tune", "pen-maml", "--set", CONDITION],
            ["maml.inner_lr depends on model.cell", "must be a choice in the search space"],
        ),
        (
            ["tune", "pen", "--set", "search.constraints=[maml.inner_lr * 2 < 1]"],
            ["maml.inner_lr * 2 < 1", "must be linear"],
        ),
        (["tune", "pen", "--set", "search.warm_start=gone"], ["gone", "no run folder"]),
        (["tune", "--resume", "gone"], ["gone", "no run folder"]),
        (["tune", "pen", "--run", "x" * 201], ["at most 200 letters"]),
        (["tune", "pen", "--run", "../x"], ["the name of a run takes"]),
        (["tune", "pen", "--set", 'tasks.data_dir="a\\0b"'], ["no NUL character"]),
        (["submit", "pen", "--resume", "gone"], ["leave EXPERIMENT and --set out"]),
        (["submit", "--set", "seed=1", "--resume", "gone"], ["leave EXPERIMENT and --set out"]),
        (["evaluate", "gone"], ["gone", "no run folder"]),
        (["train", "pen", "--set", "resources.num_workers=5000"], ["resources.num_workers"]),
    ],
)
def test_mistake_gives_one_message_no_traceback_and_leaves_nothing(
    run_cli, tmp_path, arguments, fragments
):
    if "resources.num_workers=5000" in arguments:
        pytest.importorskip("ray")
    code, _, error = run_cli(*arguments)
    assert code == 1
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for fragment in fragments:
        assert fragment in error
    assert list(tmp_path.iterdir()) == []


def test_broken_data_file_is_named(run_cli, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(1, 7):
        write(data / f"UJIpenchars-w{number:02}", "")
    code, _, error = run_cli("train", "pen", "--set", f"tasks.data_dir={data}")
    assert code == 1
    assert "UJIpenchars-w01" in error
    assert "the file is empty" in error
    assert not (tmp_path / "runs").exists()


def test_experiment_file_of_ones_own_names_key_and_line(run_cli, tmp_path):
    path = write(tmp_path / "mine.yaml", "base: pen\nname: mine\nmodel:\n  cell: gpu\n")
    code, _, error = run_cli("tune", path)
    assert code == 1
    assert "model.cell must be 'rnn', 'gru' or 'lstm', but got 'gpu' (mine.yaml, line 4)" in error


def test_list_without_runs_says_how_to_make_one(run_cli):
    code, out, _ = run_cli("list")
    assert code == 0
    assert "raymeta tune pen" in out


def test_usage_mistake_exits_nonzero(run_cli):
    assert run_cli("tune", "pen", "--no-such-option")[0] != 0


@pytest.mark.slow
def test_runs_folder_that_is_a_file_is_refused(run_cli, tmp_path):
    blocker = write(tmp_path / "file", "")
    code, _, error = run_cli("train", "sinusoid", *TINY, "--runs-dir", blocker)
    assert code == 1
    assert "--runs-dir" in error
    assert "Traceback" not in error


def raymeta(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from raymeta.cli import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_tune_evaluate_and_list_as_a_newcomer_runs_them(run_cli, tmp_path, monkeypatch):
    tuned = raymeta(
        "tune",
        "pen-maml",
        *TINY,
        "--set=search.num_trials=3",
        "--set=search.num_sobol=2",
        "--set=search.grace_steps=2",
        cwd=tmp_path,
    )
    assert tuned.returncode == 0, tuned.stderr
    assert tuned.stderr == ""
    for text in ("Best hyperparameters", "outer_lr", "3 trials", "class-mean nearest", "±"):
        assert text in tuned.stdout

    (run,) = runs(tmp_path / "runs")
    assert run.status == "done"
    trials = json.loads((run.path / "trials.json").read_text(encoding="utf-8"))
    assert len(trials) == 3
    assert {trial["status"] for trial in trials} <= {"completed", "early_stopped"}
    first = run.read_json("results.json")["meta_test"]
    assert first["num_episodes"] == 8

    # The other commands start no process, and need none of their own.
    monkeypatch.setenv("COLUMNS", "100")
    code, _, error = run_cli("evaluate", run.path.name, "--episodes", "12")
    assert code == 0, error
    second = run.read_json("results.json")["meta_test"]
    assert second["num_episodes"] == 12
    _, listed, _ = run_cli("list")
    assert run.path.name in listed
    assert f"{second['rows'][0]['score']['mean']:.3f}" in listed

    page = Path(str(run.path)) / "report.html"
    assert "12 episodes of tasks" in page.read_text(encoding="utf-8")
    page.unlink()
    assert run_cli("report", run.path.name)[1] == f"{page}\n"
    assert page.is_file()
    code, watched, error = run_cli("watch", run.path.name)
    assert code == 0, error
    assert "trial 3" in watched
    assert "class-mean nearest" in watched
    assert "at least two runs, but got 1" in run_cli("compare", run.path.name)[2]

    code, _, error = run_cli("explain", run.path.name)
    assert code == 1
    assert "of 3 trials came to their end" in error

    assert run_cli("tune", "--resume", run.path.name)[0] == 0
    assert run.read_json("results.json")["meta_test"] == second  # nothing was done again


@pytest.mark.ray
@pytest.mark.slow
def test_search_without_a_usable_trial_says_why_and_exits_nonzero(tmp_path):
    failed = raymeta(
        "train",
        "sinusoid",
        *TINY,
        "--set=maml.inner_lr=1e30",
        "--set=training.max_skipped=0",
        cwd=tmp_path,
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "none of 1 trials" in failed.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small file system: root on Linux"
)
def test_search_stopped_by_a_full_disk_goes_on_once_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        arguments = ["train", "sinusoid", *TINY, "--set=model.hidden_size=64", "--runs-dir=disk"]
        full = raymeta(*arguments, cwd=tmp_path)
        assert full.returncode == 1
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr + full.stdout
        (run,) = runs(disk)
        assert run.experiment().name == "sinusoid"  # what was there is unharmed

        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        resumed = raymeta("train", "--resume", str(run.path), cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert run.status == "done"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
