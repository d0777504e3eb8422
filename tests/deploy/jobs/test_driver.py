from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from raymeta.deploy.jobs.driver import MOST_STARTS, drive


class Starts:
    """Commands that exit with these codes in turn; the run folder exists from `begun` on."""

    def __init__(self, folder: Path, codes: Sequence[int], begun: int = 1) -> None:
        self.folder, self.codes, self.begun = folder, list(codes), begun
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        if len(self.commands) == self.begun:
            self.folder.mkdir()
            (self.folder / "experiment.yaml").touch()
        return self.codes[len(self.commands) - 1]


def drive_with(tmp_path: Path, *codes: int, begun: int = 1) -> tuple[int, list[list[str]]]:
    starts = Starts(tmp_path / "first", codes, begun)
    code = drive(str(tmp_path), "first", ["tune", "experiment.yaml"], start=starts)
    return code, starts.commands


def begin(tmp_path: Path) -> list[str]:
    arguments = ["tune", "experiment.yaml", "--run", "first", "--runs-dir", str(tmp_path)]
    return [sys.executable, "-m", "raymeta", *arguments]


def go_on(tmp_path: Path) -> list[str]:
    arguments = ["tune", "--resume", "first", "--runs-dir", str(tmp_path)]
    return [sys.executable, "-m", "raymeta", *arguments]


def test_a_driver_that_ends_is_started_once(tmp_path: Path) -> None:
    assert drive_with(tmp_path, 0) == (0, [begin(tmp_path)])


def test_a_driver_that_fails_is_not_restarted(tmp_path: Path) -> None:
    assert drive_with(tmp_path, 1) == (1, [begin(tmp_path)])


def test_a_killed_driver_resumes_from_its_run_folder(tmp_path: Path) -> None:
    code, commands = drive_with(tmp_path, -signal.SIGKILL, -signal.SIGSEGV, 0)
    assert code == 0
    assert commands == [begin(tmp_path), go_on(tmp_path), go_on(tmp_path)]


def test_a_resumed_run_of_another_user_is_trusted_at_every_start(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "first", [-signal.SIGKILL, 0])
    assert drive(str(tmp_path), "first", ["tune", "--trust"], start=starts) == 1  # no such run
    assert starts.commands == []
    starts = Starts(tmp_path / "first", [-signal.SIGKILL, 0], begun=-1)
    starts.folder.mkdir()
    (starts.folder / "experiment.yaml").touch()
    assert drive(str(tmp_path), "first", ["tune", "--trust"], start=starts) == 0
    assert all({"--resume", "--trust"} <= {*command} for command in starts.commands)
    assert len(starts.commands) == 2


def test_a_driver_killed_before_it_made_a_run_folder_starts_over(tmp_path: Path) -> None:
    code, commands = drive_with(tmp_path, -signal.SIGKILL, -signal.SIGKILL, 0, begun=2)
    assert code == 0
    assert commands == [begin(tmp_path), begin(tmp_path), go_on(tmp_path)]


def test_a_driver_that_was_told_to_end_is_not_restarted(tmp_path: Path) -> None:
    assert drive_with(tmp_path, -signal.SIGTERM) == (128 + signal.SIGTERM, [begin(tmp_path)])


def test_a_driver_that_is_always_killed_is_given_up(tmp_path: Path) -> None:
    code, commands = drive_with(tmp_path, *[-signal.SIGKILL] * (MOST_STARTS + 1))
    assert code == 128 + signal.SIGKILL
    assert len(commands) == MOST_STARTS


DRIVER = """
import sys
from raymeta.deploy.jobs.driver import drive

sys.executable = sys.argv[1]
sys.exit(drive(sys.argv[2], "first", ["tune", "pen"]))
"""
RUN = """#!/bin/sh
trap 'sleep 1; echo saved; exit CODE' TERM HUP
echo ready
for second in $(seq 600); do sleep 0.1; done
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_to_the_run_which_is_waited_for(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "raymeta").write_text(RUN.replace("CODE", str(128 + number)))
    (tmp_path / "raymeta").chmod(0o755)
    driver = [sys.executable, "-c", DRIVER, str(tmp_path / "raymeta"), str(tmp_path)]
    heeding = ["env", "--default-signal=HUP,TERM", *driver]
    with subprocess.Popen(heeding, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stdout.read() == "saved\n"


FAKES = {
    "activate": "",
    "scontrol": "echo node",
    "getent": "echo 10.0.0.1",
    "srun": "exec sleep 60",
    "ray": "trap 'echo Ray >>$HOME/ended; exit' TERM; for n in $(seq 600); do sleep 0.1; done",
    "python": """
case "$1" in
-c) echo token ;;
-) cat >/dev/null ;;
*)
  trap 'sleep 1; echo run >>$HOME/ended; exit 143' TERM
  echo ready
  for n in $(seq 600); do sleep 0.1; done ;;
esac
""",
}


def test_the_job_of_slurm_passes_a_signal_on_and_waits(tmp_path: Path) -> None:
    """The script itself, with a Slurm, a Ray and a driver of a few lines each."""
    bin_dir = tmp_path / "env" / "bin"
    bin_dir.mkdir(parents=True)
    for name, text in FAKES.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / name).chmod(0o755)
    script = Path(__file__).parents[3] / "cluster" / "slurm.sbatch"
    environment = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NNODES": "1",
    }
    command = ["env", "--default-signal=HUP,TERM", "bash", str(script), "pen"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        assert "ready\n" in lines  # the lines before are read
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert (tmp_path / "ended").read_text().split() == ["run", "Ray"]  # which it needs to save
