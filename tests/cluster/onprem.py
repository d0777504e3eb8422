"""Makes a cluster of test hosts as `cluster/onprem.yaml` does, and runs searches on it.

RAYMETA_TEST_RECOVERY=off takes recovery away: no trial is restarted, leaves a host that will go,
has a deadline for its reports, waits for storage or is remembered after its session; a failed trial
ends the search (`no_recovery.py`); nothing starts a killed driver again or resumes after a lost
head.  Then every test of a fault must fail (`test_faults.py`, `test_lost_hosts.py`,
`test_silent_faults.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raymeta.run_folder import Run
from raymeta.search.results import read_trials, trial_folders
from tests.cluster.hosts import (
    REPOSITORY,
    SHARED,
    TIMEOUT_S,
    Host,
    HostError,
    Hosts,
    wait_until,
)

RECOVERS = os.environ.get("RAYMETA_TEST_RECOVERY") != "off"
CPUS = 2  # of a worker host, as Ray is told
NOT_RAY = ("sshd", "bash", "ssh ", "redis-server")  # what else runs on a host
READY_S = 120
EXPERIMENT = """
name: tiny
tasks: {source: sinusoid, num_shots: 5, num_queries: 5}
model: {cell: rnn, hidden_size: 8, num_layers: 1}
maml: {adaptation_steps: 1, inner_lr: 0.05}
training: {meta_steps: 1500, eval_every: 50, meta_batch_size: 4, val_episodes: 4,
  pretrain_steps: 0, precision: float64}
evaluation: {num_episodes: 4, adaptation_steps: 2}
resources: {num_workers: 1, max_concurrent_trials: 2}
search:
  num_trials: 4
  num_sobol: 4
  early_stopping: none
  space:
    maml.inner_lr: {low: 0.01, high: 0.1, log: true}
"""
METRIC = "val_loss"
NO_RETRIES = "resources.max_failures=0"
RETRIES = "resources.max_failures=2"
FOUR_TRIALS = ("training.meta_steps=400", "search.num_trials=4")
MIDWAY = 5  # reports
UNSAVED = 3  # reports of a trial that its last checkpoint, or the search's state, may lack
REDIS = "RAY_REDIS_ADDRESS=127.0.0.1:6380 RAY_external_storage_namespace=raymeta"
READY = """
import ray, time
ray.init(logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + {timeout_s}
while not ray.cluster_resources().get("CPU") == ray.available_resources().get("CPU") == {cpus}:
    assert time.monotonic() < deadline
    time.sleep(0.5)
"""
PROBE = """
import json, urllib.error, urllib.request
found = {{}}
for url in {urls!r}:
    request = urllib.request.Request(url, headers={headers!r})
    try:
        found[url] = urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        found[url] = error.code
    except OSError as error:
        found[url] = type(error.reason).__name__ if hasattr(error, "reason") else str(error)
print(json.dumps(found))
"""
ON_HEAD = f". ~/.raymeta && export RAYMETA_RUNS_DIR={SHARED}/runs RAY_ADDRESS=auto &&"


class OnPrem:
    """The first host is the head, the others are workers."""

    def __init__(self, hosts: Hosts, *, redis: bool = False) -> None:
        """Prepares the machines as their owner would; does not start Ray.

        Args:
            hosts: all with power.
            redis: keep the head's state in Redis, on the head.
        """
        self.hosts = hosts
        self.head, self.workers = hosts[0], hosts.hosts[1:]
        self.file = hosts.work / "onprem.yaml"
        self.experiment = hosts.work / "tiny.yaml"
        self.runs = hosts.shared / "runs"
        self.experiment.write_text(EXPERIMENT)
        content = yaml.safe_load((REPOSITORY / "cluster" / "onprem.yaml").read_text())
        # What the file asks its user to fill in, and nothing else.
        content["provider"]["head_ip"] = self.head.address
        content["provider"]["worker_ips"] = [worker.address for worker in self.workers]
        content["auth"]["ssh_user"] = "root"
        if redis:
            start = content["head_start_ray_commands"]
            start[-1] = start[-1].replace("export ", f"export {REDIS} ", 1)
            assert REDIS in start[-1]
        self.file.write_text(yaml.safe_dump(content))
        # `setup_commands` finds its pins installed: nothing can be downloaded here.
        pins = REPOSITORY / "scripts" / "constraints.txt"
        for host in hosts:
            host.run(f"mkdir -p ~/env && ln -s {sys.prefix}/bin ~/env/bin && cp {pins} ~/env/")
        hosts.laptop.environment["RAY_AUTH_MODE"] = "token"
        hosts.laptop.run("ray get-auth-token --generate")

    def start_redis(self) -> None:
        """Starts Redis on the head, with the state on its disk."""
        redis = "redis-server --port 6380 --bind 127.0.0.1 --appendonly yes --daemonize yes"
        self.head.run(f"mkdir -p ~/redis && {redis} --dir ~/redis --save ''")

    def up(self, options: str = "") -> None:
        """Runs `ray up`; returns when all workers have joined."""
        command = f"ray up --yes --no-config-cache {options} {self.file}"
        self.laptop(command, timeout_s=READY_S)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Waits until all workers have joined and no trial runs."""
        # In one process: to start Ray's tools again and again takes the time of the trials.
        script = READY.format(timeout_s=READY_S, cpus=CPUS * len(self.workers))
        try:
            self.on_head(f"python - <<'END'\n{script}\nEND", timeout_s=2 * READY_S)
        except HostError as error:
            raise HostError(f"the workers have not joined: {error}") from error

    def laptop(self, line: str, *, timeout_s: float = 60) -> str:
        """Runs a line of bash on the laptop, in the repository."""
        return self.hosts.laptop.run(f"cd {REPOSITORY} && {line}", timeout_s=timeout_s)

    def on_head(self, line: str, *, timeout_s: float = TIMEOUT_S) -> str:
        """Runs a line of bash on the head, as a user logged in there."""
        return self.head.run(f"{ON_HEAD} {line}", timeout_s=timeout_s)

    def ray_processes(self) -> dict[str, list[str]]:
        """Returns the processes of Ray on each host that has any."""
        left = {
            host.name: [a for a in host.processes().values() if not a.startswith(NOT_RAY)]
            for host in self.hosts
        }
        return {name: commands for name, commands in left.items() if commands}

    def worker_at(self, address: str) -> Host:
        """Returns the worker host at an address."""
        return next(worker for worker in self.workers if worker.address == address)

    def start(self, name: str, *overrides: str, command: str = "train") -> Search:
        """Starts a search, or resumes one.

        `train`, `tune` and `resume` run on the head, `submit` as a job of the cluster.
        """
        settings = " ".join(f"--set '{override}'" for override in overrides)
        log = self.hosts.work / f"{name}.log"
        if command == "submit":
            known = set(self.runs.glob("*"))
            submit = f"raymeta submit {self.experiment} --cluster {self.file} --detach {settings}"
            log.write_text(self.laptop(submit, timeout_s=READY_S))
            wait_until(lambda: set(self.runs.glob("*")) > known, "the driver has made no run")
            (run,) = set(self.runs.glob("*")) - known
            return Search(self, run.name, log)
        raymeta = "raymeta" if RECOVERS else "python -m tests.cluster.no_recovery"
        option = f"--resume {name}" if command == "resume" else f"--run {name}"
        what = "tune" if command == "resume" else f"{command} {self.experiment}"
        line = f"cd {REPOSITORY} && {ON_HEAD} exec {raymeta} {what} -v {option} {settings}"
        return Search(self, name, log, self.head.start(line, log), option)

    def drain(self, host: Host, notice_s: int) -> None:
        """Drains a host, as it drains itself before its provider takes it away."""
        do = f"from raymeta.deploy.notice import drain; raise SystemExit(not drain({notice_s}))"
        host.run(f". ~/.raymeta && python -c '{do}'")


@dataclass
class Search:
    """A running search and its folder.

    Attributes:
        driver: its process; None for a job of the cluster.
        option: in the driver's command line, and in no other process's.
    """

    cluster: OnPrem
    name: str
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    option: str = ""

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run(self.cluster.runs / self.name)

    def results(self, trial: str | None = None) -> list[dict[str, Any]]:
        """Returns the reports of a trial, or of all trials, over all sessions."""
        tune_dir = self.cluster.runs / self.name / "tune"
        folders = tune_dir.glob("*/") if trial is None else trial_folders(self.run, trial)
        found = []
        for file in sorted(Path(str(folder)) / "result.json" for folder in folders):
            for line in file.read_text().splitlines() if file.exists() else ():
                try:
                    found.append(json.loads(line))
                except ValueError:  # being written
                    continue
        return found

    def steps(self, trial: str | None = None) -> list[int]:
        """Returns the meta-steps at the reports of a trial, or of all trials."""
        return [result["meta_steps"] for result in self.results(trial)]

    def curve(self) -> list[tuple[int, float]]:
        """Returns the meta-steps and the metric of the only trial."""
        return [(r["meta_steps"], r[METRIC]) for r in self.results()]

    def trial_host(self) -> Host:
        """Returns the host of the last report."""
        return self.cluster.worker_at(self.results()[-1]["node_ip"])

    def kill_trial(self, signal: str = "KILL") -> None:
        """Sends a signal to the process of the last report."""
        self.trial_host().run(f"kill -{signal} {self.results()[-1]['pid']}")

    def processes(self, trial: str | None = None) -> set[tuple[str, int]]:
        """Returns the processes, by address and id, that reported a trial, or all trials."""
        return {(result["node_ip"], result["pid"]) for result in self.results(trial)}

    def addresses(self) -> set[str]:
        """Returns the hosts of all reports."""
        return {result["node_ip"] for result in self.results()}

    def wait_for_reports(self, count: int, timeout_s: float = 180) -> None:
        """Waits for a number of reports."""
        self._wait_until(lambda: len(self.results()) >= count, f"{count} reports", timeout_s)

    def wait_for_new_process(self, timeout_s: float) -> None:
        """Waits for a report from a new process."""
        known = self.processes()
        what = "report from a new process"
        self._wait_until(lambda: bool(self.processes() - known), what, timeout_s)

    def wait_for_host_other_than(self, host: Host, timeout_s: float) -> None:
        """Waits for a new report from another host."""
        known = len(self.results())

        def moved() -> bool:
            return any(r["node_ip"] != host.address for r in self.results()[known:])

        self._wait_until(moved, f"report from another host than {host.name}", timeout_s)

    def wait_for_end_of_trials(self, num_trials: int = 1, timeout_s: float = 300) -> None:
        """Waits until a number of trials have reported their last step."""
        self._wait_until(
            lambda: sum(bool(r["done"]) for r in self.results()) >= num_trials,
            f"end of {num_trials} trials",
            timeout_s,
        )

    def wait_for_trials(self, timeout_s: float = 400) -> list[dict[str, Any]]:
        """Waits for the table of trials, which is written after the last one ends."""
        table = self.cluster.runs / self.name / "trials.json"
        self._wait_until(table.exists, "table of trials", timeout_s)
        trials: list[dict[str, Any]] = json.loads(table.read_text())
        return trials

    def wait_for_best_trial(self, timeout_s: float = 400) -> None:
        """Waits for the best trial: the table of trials may be of an earlier session."""
        self._wait_until(lambda: self.run.has_best, "best trial", timeout_s)

    def _wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        def holds() -> bool:
            if condition():
                return True
            ended = self.driver is not None and self.driver.poll() is not None
            assert not ended or condition(), f"no {what}, and the driver ended:\n{self.tail()}"
            return ended

        wait_until(holds, f"no {what}", timeout_s, every_s=0.25)

    def wait_for_exit(self, timeout_s: float = 300) -> int:
        """Waits for the driver to exit, and returns its exit code."""
        assert self.driver is not None
        return self.driver.wait(timeout_s)

    def wait_for_saved_trials(self, count: int, timeout_s: float = 300) -> dict[str, str]:
        """Waits until so many trials are saved as completed; returns their results."""
        enough = f"{count} trials saved"
        self._wait_until(lambda: len(self.completed()) >= count, enough, timeout_s)
        written = self.written()
        return {trial: written[trial] for trial in self.completed()}

    def completed(self) -> list[str]:
        """Returns the trials saved as completed whose last report Tune has written as well."""
        saved = [i for i, record in read_trials(self.run).items() if record.status == "completed"]
        return [i for i in saved if any(result["done"] for result in self.results(i))]

    def written(self) -> dict[str, str]:
        """Returns the results of each trial as they were written, with their times."""
        files = (self.cluster.runs / self.name / "tune").glob("*/result.json")
        return {file.parent.name: file.read_text() for file in files}

    def assert_nothing_lost_or_run_again(self, before: Mapping[str, str]) -> None:
        """Checks that all four trials complete, and ended ones are unchanged."""
        trials = self.wait_for_trials()
        assert [trial["status"] for trial in trials] == ["completed"] * 4
        assert {trial["trial_id"] for trial in trials} >= set(before)
        assert self.written().items() >= before.items()
        for trial in trials:  # a running trial may repeat what came after the last save
            assert repeats(self.steps(trial["trial_id"])) <= UNSAVED

    def stop(self) -> None:
        """Kills the driver, if it is running."""
        if self.driver is None:
            self.cluster.laptop(f"raymeta stop {self.name} --cluster {self.cluster.file}")
        elif self.driver.poll() is None:
            self.cluster.head.kill(self.option)
            self.driver.wait(30)

    def terminate(self) -> int:
        """Ends the driver by SIGTERM and returns its exit code."""
        (pid,) = self.cluster.head.pids(self.option)
        self.cluster.head.run(f"kill -TERM {pid}")
        return self.wait_for_exit()

    def tail(self) -> str:
        """Returns the end of the driver's output."""
        return self.log.read_text()[-3000:]


Start = Callable[..., Search]  # as the fixture `start` gives it


def repeats(steps: Sequence[int]) -> int:
    """Counts the reports of a trial that were made twice."""
    return len(steps) - len(set(steps))


def probe(host: Host, *urls: str, token: str | None = None) -> list[object]:
    """Asks web addresses from a host: a status each, or the kind of failure."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    script = PROBE.format(urls=urls, headers=headers)
    found = json.loads(host.run(f"python - <<'END'\n{script}\nEND"))
    return [found[url] for url in urls]
