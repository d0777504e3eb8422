"""The end of a cluster: of a cloud's machines, or of Ray on machines that stay."""

from __future__ import annotations

import subprocess
import sys

from raymeta.deploy.cluster_file import Cluster
from raymeta.errors import ClusterError

# How clusters end that Ray's launcher did not start.
_OTHERWISE = {
    "external": "`ray stop` on this machine, which ends all of Ray there",
    "kuberay": "`kubectl delete -f {path} -l raymeta=cluster`",
    "slurm": "`scancel JOBID`; `squeue --me` lists jobs",
}
# `ray down` stops Ray on the head alone.  The head has the workers' addresses, and the key to them
# where Ray's launcher put both; the laptop may not reach them.  The head is first: its autoscaler
# would start Ray again on a worker that has lost it.
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
    """Deletes the machines of a cluster in a cloud; stops Ray on all hosts that are reached by ssh.

    Raises:
        ClusterError: it is not one of Ray's launcher, or a host cannot be reached, so that Ray may
            be left on it.
    """
    if (other := _OTHERWISE.get(cluster.provider)) is not None:
        raise ClusterError(f"{cluster.path}: ends by {other.format(path=cluster.path)}")
    said = _ray("exec", str(cluster.path), _STOP_ALL) if cluster.provider == "local" else ""
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
