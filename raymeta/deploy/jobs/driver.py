"""The entry point of a job: `python -m raymeta.deploy.jobs.driver RUNS_DIR NAME COMMAND …`.

A driver may be killed: when memory runs out, by an operator, by a crash.  The user may be
disconnected by then, so the job restarts the driver, which resumes from the run folder.  A signal
to end is passed on to the driver, which saves its state first.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from raymeta.errors import RaymetaError
from raymeta.storage.paths import path_at

MOST_STARTS = 10  # of one job; a driver killed so often will be killed again
TRUST = "--trust"  # resumes the run folder of another user
_WANTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # of `raymeta stop`, Slurm, a terminal


def drive(
    runs_dir: str,
    name: str,
    command: Sequence[str],
    *,
    start: Callable[[Sequence[str]], int] | None = None,
) -> int:
    """Runs `raymeta COMMAND`, and resumes it if it is killed; returns the last exit code.

    Args:
        runs_dir: where run folders are kept.
        name: of the run.
        command: `tune` or `train`, with the arguments of the first start; none but `--trust` for a
            run that there is already.
        start: runs a command and returns its exit code, negative for a signal; None for a process.
    """
    code, start = 1, start or _run
    trust = [TRUST] if TRUST in command else []
    for number in range(MOST_STARTS):
        begun = (path_at(runs_dir) / name / "experiment.yaml").is_file()
        if not begun and list(command[1:]) == trust:
            print(  # noqa: T201  (the log of the job)
                f"error: {name}: no run folder under {runs_dir}; say with --runs-dir where it is",
                flush=True,
            )
            return 1
        arguments = [command[0], "--resume", name, *trust] if begun else [*command, "--run", name]
        raymeta = [sys.executable, "-m", "raymeta", *arguments, "--runs-dir", runs_dir]
        code = start(raymeta)
        if code >= 0 or -code in _WANTED:
            break
        print(  # noqa: T201  (the log of the job)
            f"the driver was killed by {signal.Signals(-code).name} (start {number + 1} of "
            f"{MOST_STARTS}); it goes on from the run folder",
            flush=True,
        )
    return code if code >= 0 else 128 - code


def _run(command: Sequence[str]) -> int:
    """Runs a command, and passes SIGTERM and SIGHUP on to it unless they are ignored (`nohup`)."""
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        process = subprocess.Popen(command)
        for number in received:  # before there was a process
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # One that was killed after all, such as for its memory, is not started again.
    return -received[0] if received and code < 0 else code


if __name__ == "__main__":
    try:
        sys.exit(drive(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except (RaymetaError, OSError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
