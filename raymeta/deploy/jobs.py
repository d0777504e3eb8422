"""Searches as jobs of a Ray cluster: submitted, followed, stopped, and their runs brought home.

A job is called as its run folder is.  What it needs travels with it: the experiment as it was
resolved here, its data if they are no URI, and this very raymeta, so that driver and trials run the
code that was tried on the laptop.  The driver runs on the cluster; the laptop may go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymeta.deploy.tunnel import tunnel
from raymeta.errors import ClusterError, RunError
from raymeta.experiment import Experiment
from raymeta.experiment_file import to_yaml, with_values
from raymeta.files import write_file
from raymeta.remote import AnyPath, RemotePath, copy_folder, path_at
from raymeta.runs import run_name

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"  # a cluster on this machine, or a tunnel to one
_LAUNCHED = ("local", "aws", "gcp", "azure")  # `ray dashboard FILE` finds their heads
_NO_PLACE = "names no storage on this cluster; submit with --runs-dir"
_DRIVER = "raymeta.deploy.driver"
_EXPERIMENT, _DATA = "experiment.yaml", "data"
_PATIENCE_S = 30.0  # with a head that starts, and a job that is to end
_RETRY_S, _GIVE_UP_S = 2.0, 600.0  # while a head is gone and comes back
_MOST_NODES = 10_000  # that Ray lists
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted run: one of its drivers."""

    job_id: str
    run: str
    runs_dir: str  # as the driver was told, so a place on the cluster if it is no URI
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str
    began: datetime
    ended: datetime | None
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in _ENDED


class Jobs:
    """The jobs of one cluster, by way of its dashboard."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415  (Ray takes a while)

        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
        self.address = address
        with _as_cluster_errors(address):
            self._client: JobSubmissionClient = JobSubmissionClient(address)

    def submit(
        self,
        experiment: Experiment,
        *,
        runs_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Starts a search on the cluster, or a training where nothing is to be searched.

        Args:
            experiment: resolved and checked.
            runs_dir: a folder that all nodes share, or a URI; None for the cluster's own choice,
                RAYMETA_RUNS_DIR in the environment of its head.
            environment: variables of the driver's, such as `job_environment` has.

        Raises:
            ClusterError: the cluster cannot be reached, or will not take it.
        """
        name = run_name(experiment)
        with tempfile.TemporaryDirectory() as folder:
            self._pack(experiment, Path(folder))
            keep = ["--keep-data"] if (Path(folder) / _DATA).exists() else []
            command = "tune" if experiment.search.space else "train"
            arguments = [name, command, _EXPERIMENT, *keep]
            return self._start(name, name, _DRIVER, arguments, runs_dir, Path(folder), environment)

    def resume(
        self,
        run: str,
        *,
        runs_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Goes on with a run of the cluster, whose driver has ended.

        Raises:
            ClusterError: it is still running, or the cluster cannot be reached.
        """
        earlier = [job for job in self.all() if job.run == run]
        if any(not job.is_over for job in earlier):
            raise ClusterError(f"{run}: its driver is running; `raymeta logs {run}` follows it")
        if earlier and runs_dir is None:
            runs_dir = earlier[-1].runs_dir or None
        arguments = [run, "tune"]  # the driver finds the run folder, and goes on with it
        return self._start(
            f"{run}-{len(earlier) + 1}", run, _DRIVER, arguments, runs_dir, None, environment
        )

    def all(self) -> list[Job]:
        """The jobs that are raymeta's, the oldest first."""
        with _as_cluster_errors(self.address):
            details = self._client.list_jobs()
        own = [d for d in details if d.submission_id and "raymeta_run" in (d.metadata or {})]
        running = {d.driver_node_id for d in own if d.status.value == "RUNNING"}
        lost = running - self._alive() if running else set()
        return sorted((_job(d, lost) for d in own), key=lambda job: job.began)

    def _alive(self) -> set[str | None]:
        """The nodes that are there; None, since the place of a driver that starts is not known."""
        from ray.util.state import list_nodes  # noqa: PLC0415  (Ray takes a while)

        with _as_cluster_errors(self.address):
            nodes = list_nodes(self.address, limit=_MOST_NODES)
        return {None, *(node.node_id for node in nodes if node.state == "ALIVE")}

    def find(self, run: str) -> Job:
        """The latest job of a run.

        Raises:
            ClusterError: there is none.
        """
        jobs = self.all()
        found = [job for job in jobs if run in (job.run, job.job_id)]
        if not found:
            known = ", ".join(job.run for job in jobs[-5:]) or "none"
            raise ClusterError(f"{run}: no such run on {self.address}; there are: {known}")
        return found[-1]

    def log(self, job: Job) -> str:
        """What the driver has printed so far."""
        with _as_cluster_errors(self.address):
            return str(self._client.get_job_logs(job.job_id))

    def follow(self, job: Job, show: Callable[[str], None]) -> Job:
        """Shows what the driver prints until it ends, also over a loss of the connection.

        Raises:
            ClusterError: the cluster has been out of reach for ten minutes.
        """
        from aiohttp import ClientError  # noqa: PLC0415  (comes with the jobs of Ray)

        shown, lost_since = 0, None

        async def tail() -> None:
            nonlocal shown
            seen = 0  # Ray begins anew with every connection
            async for text in self._client.tail_job_logs(job.job_id):
                seen += len(text)
                if seen > shown:
                    show(text[-(seen - shown) :])
                    shown = seen

        while True:
            try:
                asyncio.run(tail())
                now = self.find(job.job_id)
            except (ClusterError, ClientError, RuntimeError, OSError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _GIVE_UP_S:
                    raise ClusterError(
                        f"{self.address}: out of reach for {_GIVE_UP_S:.0f} s ({error}); the run "
                        f"may go on there: `raymeta logs {job.run}` follows it again"
                    ) from error
            else:
                lost_since = None
                if now.is_over:
                    rest = self.log(now)[shown:]
                    if rest:
                        show(rest)
                    return now
            time.sleep(_RETRY_S)

    def stop(self, job: Job) -> Job:
        """Ends the driver and with it the trials; the run can be resumed."""
        with _as_cluster_errors(self.address):
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + _PATIENCE_S
        while not (now := self.find(job.job_id)).is_over and time.monotonic() < deadline:
            time.sleep(0.2)
        return now

    def probe(self, runs_dir: str | None) -> Job:
        """Asks every node for the storage; see `raymeta.deploy.probe`."""
        job_id = f"check-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        module = "raymeta.deploy.probe"
        return self._start(job_id, job_id, module, [], runs_dir, None, None)

    def _pack(self, experiment: Experiment, folder: Path) -> None:
        data = getattr(experiment.tasks, "data_dir", None)
        if data is not None and not isinstance(path_at(data), RemotePath):
            shutil.copytree(data, folder / _DATA)
            experiment = with_values(experiment, {"tasks.data_dir": _DATA})
        write_file(folder / _EXPERIMENT, to_yaml(experiment).encode())

    def _start(
        self,
        job_id: str,
        run: str,
        module: str,
        arguments: list[str],
        runs_dir: str | None,
        folder: Path | None,
        variables: Mapping[str, str] | None,
    ) -> Job:
        place = shlex.quote(runs_dir) if runs_dir else f'"${{RAYMETA_RUNS_DIR:?{_NO_PLACE}}}"'
        entrypoint = f"python -m {module} {place} {shlex.join(arguments)}".rstrip()
        environment: dict[str, Any] = {
            "py_modules": [str(Path(__file__).parents[1])],
        }
        if folder is not None:
            environment["working_dir"] = str(folder)
        if variables:
            environment["env_vars"] = dict(variables)
        with _as_cluster_errors(self.address):
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata={"raymeta_run": run, "runs_dir": runs_dir or ""},
                    )
                    break
                except RuntimeError as error:
                    # A head that has just been started answers before it can take jobs.
                    if "No available agent" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(_RETRY_S)
        return self.find(job_id)


@contextmanager
def connect(address: str | None, cluster: Path | None) -> Iterator[Jobs]:
    """The jobs of a cluster: at an address, or behind a tunnel to the head that a file describes.

    Raises:
        ClusterError: it cannot be reached.
    """
    if address is not None or cluster is None:
        yield Jobs(address or os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS))
        return
    from raymeta.deploy.cluster_file import load_cluster  # noqa: PLC0415  (it needs all of Ray)

    found = load_cluster(cluster)
    if found.provider not in _LAUNCHED:
        raise ClusterError(
            f"{cluster}: a cluster of the kind {found.provider} has no tunnel of Ray's; open one "
            "to its dashboard as the file's first lines say, and add --address http://127.0.0.1:8265"
        )
    with tunnel(cluster) as local:
        yield Jobs(local)


@contextmanager
def _as_cluster_errors(address: str) -> Iterator[None]:
    """Errors of Ray's client, of which the user sees one line."""
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  (Ray takes a while)
    from ray.util.state.exception import RayStateApiException  # noqa: PLC0415

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{address}: {_first_line(error)}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to "
            "the file with the cluster's token"
        ) from error
    except (OSError, RuntimeError, ValueError, RayStateApiException) as error:
        raise ClusterError(f"{address}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).partition(". ")[0].rstrip(".")


def _job(details: JobDetails, lost_nodes: set[str | None]) -> Job:
    metadata = details.metadata or {}
    ended = details.end_time
    status, message = str(details.status.value), details.message or ""
    if status == "RUNNING" and details.driver_node_id in lost_nodes:
        # Ray does not notice that, when it was the head that went and came back.
        status, message = "FAILED", "the node of its driver was lost"
    return Job(
        job_id=str(details.submission_id),
        run=metadata["raymeta_run"],
        runs_dir=metadata.get("runs_dir", ""),
        status=status,
        message=message,
        began=_time(details.start_time or 0),
        ended=_time(ended) if ended else None,
        exit_code=details.driver_exit_code,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000)  # noqa: DTZ006  (the user's own time)


def fetch_run(jobs: Jobs, run: str, target: Path, cluster: Path | None) -> Path:
    """Brings the folder of a run home, as `target`/RUN.

    From a storage with a URI directly, else through ssh to the head that a cluster file describes.

    Raises:
        ClusterError: the run has no folder yet, or it lies where only the cluster can read it.
        RunError: there is such a folder here, or it cannot be written.
    """
    job = jobs.find(run)
    home = target / job.run
    if home.exists():
        raise RunError(f"{home}: is here already; remove it, or name another place with --runs-dir")
    said = re.search(r"^run folder: (.+)$", jobs.log(job), re.MULTILINE)
    if said is None:
        raise ClusterError(f"{job.run}: has no run folder; see `raymeta logs {job.run}`")
    source = path_at(said[1].strip())
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as folder:
            _copy(source, Path(folder) / job.run, cluster)
            (Path(folder) / job.run).rename(home)
    except OSError as error:
        raise RunError(f"{home}: cannot be written: {error.strerror or error}") from error
    return home


def _copy(source: AnyPath, target: Path, cluster: Path | None) -> None:
    if isinstance(source, RemotePath):
        copy_folder(source, target)
    elif source.is_dir():  # a file system that the cluster and this machine share
        shutil.copytree(source, target)
    elif cluster is None:
        raise ClusterError(
            f"{source}: lies where only the cluster can read it; add --cluster FILE to fetch it "
            "through ssh, or copy it yourself"
        )
    else:
        target.mkdir()
        ray = [sys.executable, "-m", "ray.scripts.scripts"]  # wherever PATH leads
        command = [*ray, "rsync-down", str(cluster), f"{source}/", f"{target}/"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not any(target.iterdir()):
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise ClusterError(f"{source}: cannot be fetched: {lines[-1] if lines else 'nothing'}")
