"""Ends a cluster of machines that are reached by ssh: `ray down` stops Ray on the head alone.

`python -m raymeta.deploy.teardown FILE`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from raymeta.errors import ClusterError

# On the head, which has the workers' addresses and the key to them where Ray's launcher put both;
# the laptop may not reach them.  The head is first: its autoscaler would start Ray again on a
# worker that has lost it.
_STOP_ALL = """
ray stop
read_workers='import os, yaml
file = open(os.path.expanduser("~/ray_bootstrap_config.yaml"))
print(*yaml.safe_load(file)["provider"]["worker_ips"])'
for worker in $(python -c "$read_workers"); do
  ssh -n -i ~/ray_bootstrap_key.pem -o BatchMode=yes -o ConnectTimeout=10 \
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    $worker "bash --login -c 'ray stop'" > /dev/null || echo "unreachable: $worker" &
done
wait
"""


def tear_down(path: Path) -> None:
    """Stops Ray on the head and on all workers of an on-premises cluster.

    Args:
        path: a cluster file with `provider.type: local`.

    Raises:
        ClusterError: a host cannot be reached, so that Ray may be left on it.
    """
    said = _ray("exec", str(path), _STOP_ALL)
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
        raise ClusterError(f"`ray {arguments[0]}` failed: {lines[-1] if lines else 'no reason'}")
    return done.stdout


if __name__ == "__main__":
    try:
        tear_down(Path(sys.argv[1]))
    except ClusterError as error:
        sys.exit(f"error: {error}")
