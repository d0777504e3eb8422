"""What a job on a cluster runs: `python -m raymeta.deploy.driver RUNS_DIR NAME COMMAND …`.

The driver of a search is a process like any other, and may be killed: by the machine when memory
runs out, by an operator, by a defect.  Whoever submitted the job may be gone by then.  So the job
starts it again, and it goes on from what the run folder holds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from raymeta.errors import RaymetaError
from raymeta.remote import path_at

MOST_STARTS = 10  # of one job; what kills every one of them is no accident
_WANTED = (signal.SIGTERM, signal.SIGINT)  # `raymeta stop`


def drive(
    runs_dir: str,
    name: str,
    command: Sequence[str],
    *,
    start: Callable[[Sequence[str]], int] = subprocess.call,
) -> int:
    """Runs `raymeta COMMAND`, and again with `--resume` if it was killed; its last exit code.

    Args:
        runs_dir: where run folders are kept.
        name: of the run.
        command: for the first start; where the run folder exists it only says `tune` or `train`.
        start: runs a command to its end; its exit code, negative for a signal.
    """
    code = 1
    for number in range(MOST_STARTS):
        begun = (path_at(runs_dir) / name / "experiment.yaml").is_file()
        if not begun and len(command) == 1:
            print(  # noqa: T201  (the log of the job)
                f"error: {name}: no run folder under {runs_dir}; say with --runs-dir where it is",
                flush=True,
            )
            return 1
        arguments = [command[0], "--resume", name] if begun else [*command, "--run", name]
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


if __name__ == "__main__":
    try:
        sys.exit(drive(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except (RaymetaError, OSError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
