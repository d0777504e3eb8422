"""A cluster of test hosts as `cluster/onprem.yaml` makes it, and searches on it.

RAYMETA_TEST_RECOVERY=off takes away what recovers: that a trial is retried, that it leaves a host
which is to go, that its failure does not end the search (`no_recovery.py`), the process that starts
a killed driver again, the resumption after a lost head.  Then all tests with a fault must fail
(`test_faults.py`, `test_lost_hosts.py`).
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

from raymeta.runs import Run
from raymeta.search.tuner import read_trials
from tests.cluster.hosts import REPOSITORY, SHARED, Host, Hosts, wait_until

RECOVERS = os.environ.get("RAYMETA_TEST_RECOVERY") != "off"
CPUS = 2  # that a worker host is said to have
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
UNSAVED = 3  # reports of a trial that the search's state, saved every second, may lack
REDIS = "RAY_REDIS_ADDRESS=127.0.0.1:6380 RAY_external_storage_namespace=raymeta"
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
        """Prepares the machines as their owner would; starts nothing of Ray.

        Args:
            hosts: all on.
            redis: let Redis, on the head, keep what the head knows.
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
        """Starts Redis on the head; it finds on the disk what it knew."""
        redis = "redis-server --port 6380 --bind 127.0.0.1 --appendonly yes --daemonize yes"
        self.head.run(f"mkdir -p ~/redis && {redis} --dir ~/redis --save ''")

    def up(self, options: str = "") -> None:
        """`ray up`; returns when all workers have joined."""
        command = f"ray up --yes --no-config-cache {options} {self.file}"
        self.laptop(command, timeout_s=READY_S)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """All workers are there, and nothing runs."""
        cpus = f" 0.0/{CPUS * len(self.workers)}.0 CPU"
        wait_until(
            lambda: cpus in self.on_head("ray status", check=False),
            "the workers have not joined",
            timeout_s=READY_S,
            every_s=1,
        )

    def laptop(self, line: str, *, timeout_s: float = 60) -> str:
        """Runs a line of bash on the laptop, in the repository."""
        return self.hosts.laptop.run(f"cd {REPOSITORY} && {line}", timeout_s=timeout_s)

    def on_head(self, line: str, *, check: bool = True) -> str:
        """Runs a line of bash on the head, as a user who is logged in there."""
        return self.head.run(f"{ON_HEAD} {line}", check=check)

    def what_is_left_of_ray(self) -> dict[str, list[str]]:
        """What runs on each host that did not before there was Ray; empty if nothing."""
        left = {
            host.name: [a for a in host.processes().values() if not a.startswith(NOT_RAY)]
            for host in self.hosts
        }
        return {name: commands for name, commands in left.items() if commands}

    def worker_at(self, address: str) -> Host:
        """The worker host of an address."""
        return next(worker for worker in self.workers if worker.address == address)

    def start(self, name: str, *overrides: str, command: str = "train") -> Search:
        """Starts a search: `train` and `tune` on the head, `submit` as a job of the cluster's."""
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
        arguments = f"{command} {self.experiment} -v --run {name} {settings}"
        line = f"cd {REPOSITORY} && {ON_HEAD} exec {raymeta} {arguments}"
        return Search(self, name, log, self.head.start(line, log))

    def drain(self, host: Host, notice_s: int) -> None:
        """Has a host do what it does at its provider's notice that it will be taken away."""
        do = f"from raymeta.deploy.notice import drain; raise SystemExit(not drain({notice_s}))"
        host.run(f". ~/.raymeta && python -c '{do}'")


@dataclass
class Search:
    """A search that runs, with what its folder says of it."""

    cluster: OnPrem
    name: str
    log: Path
    driver: subprocess.Popen[bytes] | None = None

    def results(self) -> list[dict[str, Any]]:
        """What the trials have reported."""
        found = []
        for file in sorted((self.cluster.runs / self.name / "tune").glob("*/result.json")):
            for line in file.read_text().splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:  # being written
                    continue
        return found

    def steps(self, trial: str | None = None) -> list[int]:
        """The meta-steps at the reports of its trials."""
        return [r["meta_steps"] for r in self.results() if trial in (None, r["trial_id"])]

    def curve(self) -> list[tuple[int, float]]:
        """Meta-steps and metric of its only trial."""
        return [(r["meta_steps"], r[METRIC]) for r in self.results()]

    def trial_host(self) -> Host:
        """Where its last report came from."""
        return self.cluster.worker_at(self.results()[-1]["node_ip"])

    def kill_trial(self) -> None:
        """Kills the process of the trial that has reported last."""
        self.trial_host().run(f"kill -9 {self.results()[-1]['pid']}")

    def processes(self, trial: str) -> set[tuple[str, int]]:
        """Those that a trial's reports came from."""
        return {(r["node_ip"], r["pid"]) for r in self.results() if r["trial_id"] == trial}

    def addresses(self) -> set[str]:
        """Where its reports came from."""
        return {result["node_ip"] for result in self.results()}

    def wait_for_reports(self, count: int, timeout_s: float = 60) -> None:
        """Until there are so many."""
        self._wait_until(lambda: len(self.results()) >= count, f"{count} reports", timeout_s)

    def wait_for_host_other_than(self, host: Host, timeout_s: float) -> None:
        """Until a new report comes from another one."""
        known = len(self.results())

        def moved() -> bool:
            return any(r["node_ip"] != host.address for r in self.results()[known:])

        self._wait_until(moved, f"report from another host than {host.name}", timeout_s)

    def wait_for_end_of_trials(self, num_trials: int = 1, timeout_s: float = 120) -> None:
        """Until so many have reported their last step."""
        self._wait_until(
            lambda: sum(bool(r["done"]) for r in self.results()) >= num_trials,
            f"end of {num_trials} trials",
            timeout_s,
        )

    def wait_for_trials(self, timeout_s: float = 240) -> list[dict[str, Any]]:
        """The table of trials, which is written when the last one has ended."""
        table = self.cluster.runs / self.name / "trials.json"
        self._wait_until(table.exists, "table of trials", timeout_s)
        trials: list[dict[str, Any]] = json.loads(table.read_text())
        return trials

    def _wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        def holds() -> bool:
            if condition():
                return True
            ended = self.driver is not None and self.driver.poll() is not None
            assert not ended or condition(), f"no {what}, and the driver ended:\n{self.tail()}"
            return ended

        wait_until(holds, f"no {what}", timeout_s)

    def wait_for_exit(self, timeout_s: float = 120) -> int:
        """The driver's exit code."""
        assert self.driver is not None
        return self.driver.wait(timeout_s)

    def wait_for_saved_trials(self, count: int, timeout_s: float = 120) -> dict[str, str]:
        """Until so many are saved as completed; what they have written."""
        run = Run(self.cluster.runs / self.name)

        def completed() -> list[str]:
            return [i for i, record in read_trials(run).items() if record.status == "completed"]

        self._wait_until(lambda: len(completed()) >= count, f"{count} trials saved", timeout_s)
        written = self.written()
        return {trial: written[trial] for trial in completed()}

    def written(self) -> dict[str, str]:
        """Of each trial, its results as they were written, with their times."""
        files = (self.cluster.runs / self.name / "tune").glob("*/result.json")
        return {file.parent.name: file.read_text() for file in files}

    def assert_nothing_lost_or_run_again(self, before: Mapping[str, str]) -> None:
        """It comes to the end of its four trials, of which some were over before."""
        trials = self.wait_for_trials()
        assert [trial["status"] for trial in trials] == ["completed"] * 4
        assert {trial["trial_id"] for trial in trials} >= set(before)
        assert self.written().items() >= before.items()
        for trial in trials:  # one that ran may have to repeat what came after the last save
            assert repeats(self.steps(trial["trial_id"])) <= UNSAVED

    def stop(self) -> None:
        """Ends the driver, if it is running; what it has done is on the disk."""
        if self.driver is None:
            self.cluster.laptop(f"raymeta stop {self.name} --cluster {self.cluster.file}")
        elif self.driver.poll() is None:
            self.cluster.head.kill(f"--run {self.name}")
            self.driver.wait(30)

    def tail(self) -> str:
        """The end of what the driver said."""
        return self.log.read_text()[-3000:]


Start = Callable[..., Search]  # as the fixture `start` gives it


def repeats(steps: Sequence[int]) -> int:
    """How many of a trial's reports were made a second time: none if it never went back."""
    return len(steps) - len(set(steps))


def probe(host: Host, *urls: str, token: str | None = None) -> list[object]:
    """What a host gets from web addresses: a status, or the kind of failure."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    script = PROBE.format(urls=urls, headers=headers)
    found = json.loads(host.run(f"python - <<'END'\n{script}\nEND"))
    return [found[url] for url in urls]
