"""Drains a spot machine in time: `python -m raymeta.deploy.notice aws`, beside Ray on each worker.

Clouds notify a machine before they reclaim it: AWS two minutes ahead, the others 30 seconds.  Ray
does not watch for the notice. This process does and asks Ray to drain the node: its trials save a
checkpoint and continue elsewhere without counting a failure.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

METADATA = "http://169.254.169.254"  # every cloud serves its machines' metadata here
_PERIOD_S = 2.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Cloud:
    """Where a cloud announces the end of a machine, how to read the notice, and its lead time."""

    path: str
    is_notice: Callable[[str], bool]
    seconds: int
    headers: Mapping[str, str] = field(default_factory=dict)
    session_path: str | None = None


def _azure_preempts(answer: str) -> bool:
    return any(event["EventType"] == "Preempt" for event in json.loads(answer)["Events"])


CLOUDS = {
    # 404 until the end is decided.
    "aws": Cloud(
        "/latest/meta-data/spot/instance-action",
        lambda answer: json.loads(answer)["action"] in ("terminate", "stop", "hibernate"),
        120,
        session_path="/latest/api/token",
    ),
    "gcp": Cloud(
        "/computeMetadata/v1/instance/preempted",
        lambda answer: answer.strip() == "TRUE",
        30,
        {"Metadata-Flavor": "Google"},
    ),
    "azure": Cloud(
        "/metadata/scheduledevents?api-version=2020-07-01",
        _azure_preempts,
        30,
        {"Metadata": "true"},
    ),
}
_open = build_opener(ProxyHandler({})).open  # metadata never goes through a proxy


def noticed(cloud: Cloud, metadata: str = METADATA) -> bool:
    """Whether the cloud announces that it will reclaim this machine."""
    headers = dict(cloud.headers)
    try:
        if cloud.session_path is not None:
            lasting = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            ask = Request(metadata + cloud.session_path, headers=lasting, method="PUT")  # noqa: S310
            with _open(ask, timeout=_TIMEOUT_S) as answer:
                headers["X-aws-ec2-metadata-token"] = answer.read().decode()
        ask = Request(metadata + cloud.path, headers=headers)  # noqa: S310
        with _open(ask, timeout=_TIMEOUT_S) as answer:
            return cloud.is_notice(answer.read().decode())
    except (URLError, OSError, ValueError, KeyError):  # no notice yet, or no answer this time
        return False


def drain(seconds: int) -> bool:
    """Asks Ray to drain this node; returns whether Ray accepted."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode == 0


def main(name: str) -> None:
    """Watches until the machine is reclaimed; one watcher per machine."""
    cloud = CLOUDS[name]
    with Path("~/.raymeta-notice").expanduser().open("w") as only:
        try:
            fcntl.flock(only, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        while not (noticed(cloud) and drain(cloud.seconds)):
            time.sleep(_PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1])
