"""`cluster/local.yaml` on one test host: nodes start for waiting trials and stop when idle."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ENVIRONMENT
from tests.cluster.hosts import REPOSITORY, SHARED, Host, Hosts, wait_until
from tests.cluster.onprem import EXPERIMENT, probe

TIMEOUT_S = 300
FILE = REPOSITORY / "cluster" / "local.yaml"


def start_command() -> str:
    """Returns the command that the file tells its user."""
    comment = "\n".join(line.lstrip("# ") for line in FILE.read_text().splitlines())
    found = re.search(r"RAY_FAKE_CLUSTER=1 (?:.*\\\n)*.*", comment)
    assert found is not None
    return found.group().replace("\\\n", " ").replace("cluster/local.yaml", "~/local.yaml")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with Hosts(1, tmp_path_factory.mktemp("local"), environment=environment) as hosts:
        settings = yaml.safe_load(FILE.read_text())
        settings["idle_timeout_minutes"] = 0.1
        (hosts.shared / "local.yaml").write_text(yaml.safe_dump(settings))
        (hosts.shared / "tiny.yaml").write_text(EXPERIMENT)
        hosts[0].run(f"cp {SHARED}/local.yaml ~ && ray get-auth-token --generate")
        hosts[0].run(start_command())
        yield hosts[0]


def raylets(machine: Host) -> int:
    """Counts the nodes, the head included."""
    return len(machine.pids("raylet/raylet "))


def submitted(machine: Host, log: Path, settings: str) -> subprocess.Popen[bytes]:
    submit = f"exec raymeta submit {SHARED}/tiny.yaml --runs-dir {SHARED}/runs"
    return machine.start(f"{submit} --set resources.cpus_per_worker=2 {settings}", log)


def test_nodes_come_for_trials_and_go_when_idle(machine: Host, tmp_path: Path) -> None:
    wait_until(lambda: raylets(machine) == 2, "the first node does not come", TIMEOUT_S)
    settings = "--set resources.max_concurrent_trials=3 --set training.meta_steps=300"
    most = 0
    search = submitted(machine, log := tmp_path / "log", settings)

    def over() -> bool:
        nonlocal most
        most = max(most, raylets(machine))
        return search.poll() is not None

    wait_until(over, "the search does not end", TIMEOUT_S, every_s=0.5)
    assert search.returncode == 0, log.read_text()[-3000:]
    assert most > 2
    wait_until(lambda: raylets(machine) == 2, "idle nodes stay", TIMEOUT_S)


def test_a_job_finds_its_code_after_nodes_have_gone(machine: Host, tmp_path: Path) -> None:
    search = submitted(machine, log := tmp_path / "log", "--set search.num_trials=1")
    assert search.wait(TIMEOUT_S) == 0, log.read_text()[-3000:]


def test_the_dashboard_wants_the_token(machine: Host) -> None:
    assert probe(machine, "http://127.0.0.1:8265/api/jobs/") == [401]
