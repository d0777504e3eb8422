from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

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
