"""Ends a cluster: deletes a cloud's machines, or stops Ray on machines that stay."""

from __future__ import annotations

import subprocess
import sys

from raymeta.deploy.files.cluster import Cluster
from raymeta.deploy.files.load import PROVIDERS
from raymeta.errors import ClusterError

# `ray down` stops Ray only on the head.  The laptop may not reach the workers; the head has their
# addresses and the key, where Ray's launcher put them.  The head stops first: its autoscaler would
# restart Ray on a stopped worker.
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


def tear_down(cluster: Cluster) -> None:
    """Deletes a cloud's machines; on your own hosts stops Ray on each.

    Raises:
        ClusterError: another command ends this kind of cluster, or a host cannot be reached and may
            still run Ray.
    """
    provider = PROVIDERS[cluster.provider]
    if provider.ends_by is not None:
        ends_by = provider.ends_by.replace("{path}", str(cluster.path))
        raise ClusterError(f"{cluster.path}: ends by {ends_by}")
    said = _ray("exec", str(cluster.path), _STOP_ALL) if provider.stops_workers else ""
    _ray("down", "--yes", str(cluster.path))
    lost = [line.split()[-1] for line in said.splitlines() if line.startswith("unreachable: ")]
    if lost:
        raise ClusterError(
            f"{cluster.path}: the head could not reach {', '.join(lost)}; run `ray stop` there, or "
            "this again when they are back"
        )


def _ray(*arguments: str) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise ClusterError(f"`ray {arguments[0]}` failed: {lines[-1] if lines else 'no reason'}")
    return done.stdout
