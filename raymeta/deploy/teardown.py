"""Ends a cluster of machines that are reached by ssh: `ray down` stops Ray on the head alone.

`python -m raymeta.deploy.teardown FILE`
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from raymeta.errors import ClusterError

# The head has the workers' key, and where Ray put it; they may be out of the laptop's reach.
_SSH = (
    "ssh -n -i ~/ray_bootstrap_key.pem -o BatchMode=yes -o ConnectTimeout=10 "
    "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
)
_STOP = "bash --login -c 'ray stop'"


def tear_down(path: Path) -> None:
    """Stops Ray on the head and on all workers of an on-premises cluster.

    Args:
        path: a cluster file with `provider.type: local`.

    Raises:
        ClusterError: a host cannot be reached, so that Ray may be left on it.
    """
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    user, workers = config["auth"]["ssh_user"], config["provider"]["worker_ips"]
    # The head first: its autoscaler would start Ray again on a worker that has lost it.
    on_workers = " ".join(
        f"{{ {_SSH} {shlex.quote(f'{user}@{worker}')} {shlex.quote(_STOP)} >/dev/null "
        f"|| echo unreachable: {worker}; }} &"
        for worker in map(str, workers)
    )
    said = _ray("exec", str(path), f"ray stop; {on_workers} wait")
    _ray("down", "--yes", str(path))
    lost = [line.split()[-1] for line in said.splitlines() if line.startswith("unreachable: ")]
    if lost:
        raise ClusterError(
            f"{path}: the head could not reach {', '.join(lost)}; run `ray stop` there, or this "
            "again when they are back"
        )


def _ray(*arguments: str) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise ClusterError(f"`ray {arguments[0]}` failed: {reason.strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        tear_down(Path(sys.argv[1]))
    except ClusterError as error:
        sys.exit(f"error: {error}")
