"""`cluster/onprem.yaml` on test hosts: `ray up`, searches, and refused requests."""

from __future__ import annotations

import pytest

from tests.cluster.hosts import HostError
from tests.cluster.onprem import CPUS, OnPrem, Search, probe


def test_a_submitted_search_runs_on_every_worker_and_comes_home(onprem: OnPrem) -> None:
    earlier = set(onprem.runs.glob("*"))
    # One trial a host, each longer than the start of an actor on the other one.
    settings = f"--set resources.cpus_per_worker={CPUS} --set search.num_trials=2"
    said = onprem.laptop(
        f"raymeta submit {onprem.experiment} --cluster {onprem.file} {settings}", timeout_s=300
    )
    (run,) = set(onprem.runs.glob("*")) - earlier
    assert run.name in said
    assert (run / "results.json").is_file()
    search = Search(onprem, run.name, onprem.hosts.work / "none")
    assert search.addresses() == {worker.address for worker in onprem.workers}
    onprem.laptop(f"raymeta fetch {run.name} --cluster {onprem.file} --runs-dir ~/home")
    assert "results.json" in onprem.hosts.laptop.run(f"ls ~/home/{run.name}")


def test_a_submitted_search_that_fails_says_so_by_its_exit_code(onprem: OnPrem) -> None:
    onprem.wait_until_ready()
    submit = f"raymeta submit {onprem.experiment} --cluster {onprem.file}"
    # Nothing can be written there, which only the cluster can find out.
    with pytest.raises(HostError, match="ended with 1"):
        onprem.laptop(f"{submit} --runs-dir /proc/none", timeout_s=120)


def test_the_head_runs_no_trial(onprem: OnPrem) -> None:
    assert "CPU" not in onprem.on_head(
        'python -c "import ray; ray.init(logging_level=40); '
        "print([n['Resources'] for n in ray.nodes() if "
        f"n['NodeManagerAddress'] == '{onprem.head.address}'])\""
    )


def test_the_dashboard_answers_on_the_loopback_of_the_head_alone(onprem: OnPrem) -> None:
    url = f"http://{onprem.head.address}:8265/api/version"
    assert probe(onprem.workers[0], url) == ["ConnectionRefusedError"]
    assert probe(onprem.hosts.laptop, url) == ["ConnectionRefusedError"]
    token = onprem.head.run("cat ~/.ray/auth_token").strip()
    assert probe(onprem.head, "http://127.0.0.1:8265/api/version", token=token) == [200]


def test_a_request_without_the_token_is_refused(onprem: OnPrem) -> None:
    jobs = "http://127.0.0.1:8265/api/jobs/"
    agent = f"http://{onprem.head.address}:52365/api/job_agent/jobs/"
    token = onprem.head.run("cat ~/.ray/auth_token").strip()
    assert probe(onprem.head, jobs, token=token) == [200]
    assert probe(onprem.head, jobs) == [401]
    assert probe(onprem.head, jobs, token="0" * 64) == [403]
    assert probe(onprem.workers[0], agent) == [401]


def test_a_driver_without_the_token_is_refused(onprem: OnPrem) -> None:
    join = f"python -c \"import ray; ray.init('{onprem.head.address}:6379'); print('joined')\" 2>&1"
    stranger = onprem.workers[0]
    token = stranger.run("cat ~/.ray/auth_token").strip()
    with_token = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token};"
    assert "joined" in stranger.run(f"{with_token} {join}")
    other = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64};"
    # Both at once: each is told so for a while.
    assert "joined" not in stranger.run(f"({join}) & ({other} {join}) & wait", check=False)
