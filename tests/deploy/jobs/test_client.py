"""Searches run as jobs of a real cluster: one node here, with tokens and a dashboard."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from raymeta import api
from raymeta.data.readers.python import ALLOW_CODE
from raymeta.deploy.jobs.client import Job, Jobs, connect
from raymeta.deploy.jobs.fetch import fetch_run
from raymeta.errors import ClusterError, RunError
from raymeta.experiment.schema import Experiment
from raymeta.placement import NODES_VARIABLE, Nodes, to_json
from raymeta.run_folder import Run
from raymeta.search.results import read_trials
from raymeta.storage.paths import path_at
from raymeta.tasks.settings import PEN_DIR
from tests.conftest import TINY
from tests.deploy.cluster_files import filled_in, use_laptop

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TIMEOUT_S = 180
SEARCH = (
    "search.space={maml.inner_lr: {low: 0.01, high: 1.0, log: true}}",
    "search.num_sobol=10",
    "search.early_stopping=none",
    "evaluation.num_episodes=5",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """The head of a cluster with CPUs of its own."""

    def __init__(self, folder: Path, sockets: str) -> None:
        self.folder, self.runs_dir = folder, folder / "runs"
        self.token = folder / "token"
        self.token.write_text("0123456789abcdef" * 4)
        self.address = f"http://127.0.0.1:{free_port()}"
        port, self.port = self.address.rpartition(":")[2], free_port()
        options = {
            "port": self.port,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": port,
            "dashboard-agent-listen-port": free_port(),  # by default the same for every Ray
            "num-cpus": 2,
            "object-store-memory": 100_000_000,
            "temp-dir": sockets,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        with (folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN_PATH": str(self.token),
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "RAYMETA_RUNS_DIR": str(self.runs_dir),
                    "AWS_ACCESS_KEY_ID": "testing",
                    "AWS_SECRET_ACCESS_KEY": "testing",
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return (self.folder / "head.log").read_text()

    def end(self) -> None:
        """Ends what was started, with its children."""
        if self.process.poll() is not None:
            return
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        self.process.wait()
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            process.kill()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with tempfile.TemporaryDirectory() as sockets:  # whose names must be short
        started = Head(tmp_path_factory.mktemp("head"), sockets)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RAY_AUTH_MODE", "token")
                patch.setenv("RAY_AUTH_TOKEN_PATH", str(started.token))
                reset_auth_token_state()  # this process may have looked for a token before
                deadline = time.monotonic() + TIMEOUT_S
                while True:
                    try:
                        Jobs(started.address)
                        break
                    except ClusterError:
                        assert started.process.poll() is None, started.log()
                        assert time.monotonic() < deadline, started.log()
                        time.sleep(0.5)
                yield started
        finally:
            started.end()
            reset_auth_token_state()


@pytest.fixture
def jobs(head: Head) -> Jobs:
    return Jobs(head.address)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def followed(jobs: Jobs, job: Job) -> tuple[Job, str]:
    shown: list[str] = []
    return jobs.follow(job, shown.append), "".join(shown)


def search(name: str, num_trials: int, *overrides: str) -> Experiment:
    values = [*TINY, *SEARCH, f"search.num_trials={num_trials}", f"name={name}", *overrides]
    return api.check_experiment("sinusoid", values)


def raymeta(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raymeta", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(head: Head) -> tuple[Job, str]:
    """Runs a training through a lost connection; returns what was shown of it."""
    jobs, connections = Jobs(head.address), 0
    shown: list[str] = []
    tail = jobs._client.tail_job_logs

    async def lost_at_once(job_id: str) -> AsyncIterator[str]:
        nonlocal connections
        connections += 1
        async for text in tail(job_id):
            yield text
            if connections < 3:
                raise aiohttp.ServerDisconnectedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs._client, "tail_job_logs", lost_at_once)
        job = jobs.submit(api.check_experiment("sinusoid", [*TINY, "name=followed"]))
        ended = jobs.follow(job, shown.append)
    assert connections > 2
    return ended, "".join(shown)


def test_submit_status_fetch_and_logs_work_from_the_command_line(
    head: Head, tmp_path: Path
) -> None:
    where = ["--address", head.address]
    values = [*TINY, *SEARCH, "search.num_trials=2", "name=by-hand"]
    overrides = [part for value in values for part in ("--set", value)]
    submitted = raymeta("submit", "sinusoid", *overrides, *where, cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    name = submitted.stdout.split()[1].rstrip(";")
    assert name.startswith("by-hand-20")
    assert "trial 2 done" in submitted.stdout
    assert "Meta-test" in submitted.stdout
    status = raymeta("status", *where, cwd=tmp_path)
    (line,) = [line for line in status.stdout.splitlines() if line.startswith(name)]
    assert line.split()[1] == "succeeded"
    assert line.split()[-1] == "0"
    fetched = raymeta("fetch", name, *where, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert Run.open(name, tmp_path / "runs").status == "done"
    assert len(read_trials(Run.open(name, tmp_path / "runs"))) == 2
    again = raymeta("fetch", name, *where, cwd=tmp_path)
    assert again.returncode == 1
    assert "is here already" in again.stderr
    logs = raymeta("logs", name, *where, cwd=tmp_path)
    assert "Meta-test" in logs.stdout


def test_following_a_run_survives_lost_connections(jobs: Jobs, trained: tuple[Job, str]) -> None:
    ended, log = trained
    assert ended.status == "SUCCEEDED", log
    assert log == jobs.log(ended)  # nothing is missing, nothing twice


def test_an_unreachable_head_gives_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = use_laptop(tmp_path / "home", monkeypatch)
    path = laptop / "onprem.yaml"
    path.write_text(filled_in("onprem.yaml").replace("10.0.0.10", "127.0.0.1"), encoding="utf-8")
    asked = raymeta("status", "--cluster", str(path), cwd=tmp_path)
    assert asked.returncode == 1
    (line,) = asked.stderr.splitlines()
    assert "no tunnel to the head's dashboard" in line


def test_a_local_run_starts_its_own_ray_beside_another(head: Head, tmp_path: Path) -> None:
    assert head.process.poll() is None
    overrides = [part for value in TINY for part in ("--set", value)]
    trained = raymeta("train", "sinusoid", *overrides, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr


CODE = """
import csv
from pathlib import Path


def load(name):
    rows = list(csv.DictReader(Path(__file__).with_name(name).open()))
    return {key: [row[key] for row in rows] for key in rows[0]}
"""
OWN = """
name: own-code
tasks: {{source: python, data_dir: {folder}, function: own:load, options: {{name: rows.csv}},
  files: rows.csv, kind: groups, groups: [who], sequence: id, target: kind, features: [x],
  num_ways: 2}}
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment on a user's own code, which is allowed by a relative path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOW_CODE, "own.py")
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "own.yaml").write_text(OWN.format(folder=tmp_path))
    rows = [
        f"{who}-{number},{who},{('a', 'b')[number % 2]},{50 * who + number + step / 7}"
        for who in range(6)
        for number in range(12)
        for step in range(3)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["id,who,kind,x", *rows]))
    return tmp_path / "own.yaml"


def test_a_users_own_code_runs_in_a_job(jobs: Jobs, own_code: Path) -> None:
    experiment = api.check_experiment(str(own_code), TINY)
    ended, log = followed(jobs, jobs.submit(experiment))
    assert ended.status == "SUCCEEDED", log
    assert "Meta-test" in log


def test_a_users_own_code_runs_in_the_workers_of_a_cluster_that_runs_already(
    head: Head, own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.port}")
    overrides = [part for value in TINY for part in ("--set", value)]
    trained = raymeta("train", str(own_code), *overrides, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Meta-test" in trained.stdout


def test_data_are_submitted_and_fetched_with_the_run(
    head: Head, jobs: Jobs, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in PEN_DIR.glob("UJIpenchars-w*"):
        shutil.copy(file, data)
    values = [*TINY, f"tasks.data_dir={data}", "name=own-data", "evaluation.num_episodes=5"]
    job = jobs.submit(api.check_experiment("pen-maml", values))
    shutil.rmtree(data)  # the job has its own
    ended, log = followed(jobs, job)
    assert ended.status == "SUCCEEDED", log
    home = fetch_run(jobs, job.run, tmp_path / "home", None)
    shutil.rmtree(head.runs_dir / job.run)
    there = api.load_report(Run(home))
    assert there is not None
    assert api.evaluate(job.run, runs_dir=tmp_path / "home").meta_test == there.meta_test


def test_a_run_in_a_bucket_is_fetched(jobs: Jobs, bucket: str, tmp_path: Path) -> None:
    root = path_at(bucket) / "runs"
    job = jobs.submit(search("in-bucket", 1), runs_dir=str(root))
    ended, log = followed(jobs, job)
    assert ended.status == "SUCCEEDED", log
    home = fetch_run(jobs, job.run, tmp_path, None)
    assert api.load_report(Run(home)) == api.load_report(Run.open(str(home), tmp_path))
    assert read_trials(Run(home)) == read_trials(Run.open(job.run, root))


def test_the_exit_code_is_the_drivers(jobs: Jobs, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    job = jobs.submit(search("nowhere", 1), runs_dir=str(file / "runs"))
    ended, log = followed(jobs, job)
    assert (ended.status, ended.exit_code) == ("FAILED", 1)
    assert "the run folder cannot be made" in log
    with pytest.raises(ClusterError, match="has no run folder"):
        fetch_run(jobs, job.run, tmp_path, None)


@pytest.mark.parametrize("runs_dir", ["runs", "./runs", "~/runs"])
def test_a_folder_that_differs_on_every_node_is_refused_before_submission(
    jobs: Jobs, runs_dir: str
) -> None:
    before = len(jobs.all())
    with pytest.raises(ClusterError, match="is another folder on every node"):
        jobs.submit(search("relative", 1), runs_dir=runs_dir)
    assert len(jobs.all()) == before


def test_stopping_a_run_that_has_ended_says_so(
    head: Head, trained: tuple[Job, str], tmp_path: Path
) -> None:
    job, _ = trained
    done = raymeta("stop", job.run, "--address", head.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{job.run}: has already ended (succeeded)" in done.stdout
    assert "--resume" not in done.stdout


def test_a_run_whose_trials_all_wait_for_a_node_is_stopped(
    head: Head, jobs: Jobs, tmp_path: Path
) -> None:
    to_come = {NODES_VARIABLE: to_json([Nodes("large", {"CPU": 64.0})])}
    settings = search("waiting", 2, "resources.cpus_per_worker=32")
    job = jobs.submit(settings, environment=to_come)
    run = Run(head.runs_dir / job.run)
    wait_until(lambda: read_trials(run), "no trial waits")
    assert {record.status for record in read_trials(run).values()} == {"running"}
    stopped = raymeta("stop", job.run, "--address", head.address, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{job.run}: stopped; go on with `raymeta submit --resume {job.run}" in stopped.stdout
    assert jobs.find(job.run).status == "STOPPED"
    assert not list(run.tune_dir.glob("*/result.json"))
    assert "ended by SIGTERM" in jobs.log(job)


def has_succeeded(jobs: Jobs, job_id: str) -> bool:
    return str(jobs._client.get_job_status(job_id)) == "SUCCEEDED"


def test_a_hostile_job_of_the_cluster_writes_nothing_here(
    head: Head, jobs: Jobs, tmp_path: Path
) -> None:
    """The job's metadata and log point outside the target; other jobs are listed nevertheless."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "experiment.yaml").write_text("name: secret\n")
    for name, run in (("evil-1", "../../EVIL"), ("evil-2", "evil-2")):
        jobs._client.submit_job(
            entrypoint=f"echo run folder: {secret}",
            submission_id=name,
            metadata={"raymeta_run": run, "runs_dir": ""},
        )
        wait_until(partial(has_succeeded, jobs, name), name)
    for run in ("../../EVIL", "evil-1", "evil-2"):
        with pytest.raises(ClusterError):
            fetch_run(jobs, run, tmp_path / "a" / "b" / "runs", None)
    assert not list(tmp_path.rglob("EVIL*"))
    assert not list(tmp_path.glob("a/b/runs/*"))
    assert "evil-2" in {job.run for job in jobs.all()}


def test_a_stopped_run_is_resumed_where_it_was(head: Head, jobs: Jobs) -> None:
    job = jobs.submit(search("stopped", 4, "training.meta_steps=24", "training.eval_every=4"))
    run = Run(head.runs_dir / job.run)
    wait_until(lambda: completed(run), "no trial came to its end")
    with pytest.raises(ClusterError, match="its driver is running"):
        jobs.resume(job.run)
    stopped = jobs.stop(job)
    assert stopped.status == "STOPPED"
    assert "ended by SIGTERM; go on with" in jobs.log(job)  # its state is saved
    before = completed(run)
    again = jobs.resume(job.run)
    assert again.job_id != job.job_id
    ended, log = followed(jobs, again)
    assert ended.status == "SUCCEEDED", log
    trials = read_trials(run)
    assert len(trials) == 4
    assert {i: trials[i] for i in before} == before
    assert jobs.find(job.run).job_id == again.job_id


def completed(run: Run) -> dict[str, object]:
    return {i: r for i, r in read_trials(run).items() if r.status == "completed"}


def test_the_probe_checks_the_storage_on_every_node(jobs: Jobs, tmp_path: Path) -> None:
    ended, log = followed(jobs, jobs.probe(str(tmp_path / "shared")))
    assert ended.status == "SUCCEEDED"
    assert f"reads and writes {tmp_path / 'shared'}" in log
    assert list((tmp_path / "shared").iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    ended, log = followed(jobs, jobs.probe(str(file / "runs")))
    assert ended.status == "FAILED"
    assert "cannot be written" in log


def test_a_wrong_token_is_refused_and_not_printed(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("fedcba9876543210" * 4)
    script = (
        "import sys; from raymeta.deploy.jobs.client import Jobs; print(Jobs(sys.argv[1]).all())"
    )
    for changes in ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"RAY_AUTH_MODE": "disabled"}):
        done = subprocess.run(
            [sys.executable, "-c", script, head.address],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "ClusterError" in done.stderr
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr.splitlines()[-1]
        assert "fedcba" not in done.stderr


def test_an_unknown_run_is_refused_with_the_known_ones(jobs: Jobs) -> None:
    with pytest.raises(ClusterError, match="nix: no such run on http"):
        jobs.find("nix")


def test_a_cluster_out_of_reach_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"{address}: Failed to connect"), connect(address, None):
        pytest.fail("nobody is there")


def test_fetching_a_run_on_the_clusters_disk_needs_the_cluster_file(
    head: Head, jobs: Jobs, trained: tuple[Job, str], tmp_path: Path
) -> None:
    job, _ = trained
    folder, away = head.runs_dir / job.run, tmp_path / "away"
    folder.rename(away)
    try:
        with pytest.raises(ClusterError, match="add --cluster FILE"):
            fetch_run(jobs, job.run, tmp_path / "home", None)
    finally:
        away.rename(folder)
    (tmp_path / "home").rmdir()
    (tmp_path / "home").touch()
    with pytest.raises(RunError, match="cannot be written"):
        fetch_run(jobs, job.run, tmp_path / "home", None)
