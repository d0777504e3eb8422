"""Submits, follows, stops and resumes searches as jobs of a Ray cluster.

A job is named like its run folder. It carries the resolved experiment, its data files unless they
are at a URI, and this installation of raymeta, so driver and trials run the laptop's code. The
driver runs on the cluster, so the laptop may disconnect.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymeta.data.readers.python import allowance
from raymeta.deploy.jobs.driver import TRUST
from raymeta.deploy.jobs.tunnel import tunnel
from raymeta.errors import ClusterError
from raymeta.experiment.data_files import DATA, copy_data
from raymeta.experiment.file import to_yaml
from raymeta.experiment.resources import Resources
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import check_run_name, is_run_name, run_name
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import RemotePath, path_at
from raymeta.storage.token import protect_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"  # a cluster on this machine, or a tunnel to one
_NO_PLACE = "names no storage on this cluster; submit with --runs-dir"
_DRIVER = "raymeta.deploy.jobs.driver"
_EXPERIMENT = "experiment.yaml"
_PATIENCE_S = 30.0  # for a head to start
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # after which Ray kills a job that was told to end
_SAVE_S = 15.0  # for Tune to save its state after the trials' last reports
_KILL_S = 15.0  # for Ray to notice an end
_RETRY_S, _GIVE_UP_S = 2.0, 600.0  # while the head cannot be reached
_MOST_NODES = 10_000  # Ray's limit
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One driver of a run; a resumed run has several."""

    job_id: str
    run: str
    runs_dir: str  # as submitted: a folder on the cluster, a URI, or "" for the cluster's own
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str
    began: datetime
    ended: datetime | None
    exit_code: int | None
    grace_s: float = Resources().grace_s  # after SIGTERM

    @property
    def is_over(self) -> bool:
        """Whether the driver has ended."""
        return self.status in _ENDED


class Jobs:
    """The jobs of one cluster, through its dashboard."""

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
            runs_dir: a folder that all nodes share, or a URI; None for RAYMETA_RUNS_DIR in the
                head's environment.
            environment: variables for the driver, such as those of `job_environment`.

        Raises:
            ClusterError: the cluster cannot be reached, or refuses the job.
        """
        name = run_name(experiment)
        with tempfile.TemporaryDirectory() as folder:
            self._pack(experiment, Path(folder))
            keep = ["--keep-data"] if (Path(folder) / DATA).exists() else []
            command = "tune" if experiment.search.space else "train"
            arguments = [name, command, _EXPERIMENT, *keep]
            grace_s = experiment.resources.grace_s
            return self._start(
                name, name, _DRIVER, arguments, runs_dir, Path(folder), environment, grace_s
            )

    def resume(
        self,
        run: str,
        *,
        runs_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
        trust: bool = False,
    ) -> Job:
        """Resumes a run of the cluster whose driver has ended.

        Args:
            run: its name.
            runs_dir: where its folder is; None for the place that its last job used.
            environment: variables for the driver.
            trust: resumes the run folder of another user.

        Raises:
            RunError: the name is not a valid run name.
            ClusterError: the driver is running, or the cluster cannot be reached.
        """
        check_run_name(run)
        earlier = [job for job in self.all() if job.run == run]
        if any(not job.is_over for job in earlier):
            raise ClusterError(f"{run}: its driver is running; `raymeta logs {run}` follows it")
        if earlier and runs_dir is None:
            runs_dir = earlier[-1].runs_dir or None
        # The driver finds the run folder and resumes it.
        arguments = [run, "tune", *([TRUST] if trust else [])]
        grace_s = earlier[-1].grace_s if earlier else Job.grace_s
        name = f"{run}-{len(earlier) + 1}"
        return self._start(name, run, _DRIVER, arguments, runs_dir, None, environment, grace_s)

    def all(self) -> list[Job]:
        """The jobs that raymeta submitted, oldest first."""
        with _as_cluster_errors(self.address):
            details = self._client.list_jobs()
        own = [d for d in details if d.submission_id and _is_own(d)]
        running = {d.driver_node_id for d in own if d.status.value == "RUNNING"}
        lost = running - self._alive() if running else set()
        return sorted((_job(d, lost) for d in own), key=lambda job: job.began)

    def _alive(self) -> set[str | None]:
        """Gets the ids of live nodes, and None: the node of a driver that is still starting."""
        from ray.util.state import list_nodes  # noqa: PLC0415  (Ray takes a while)

        with _as_cluster_errors(self.address):
            nodes = list_nodes(self.address, limit=_MOST_NODES)
        return {None, *(node.node_id for node in nodes if node.state == "ALIVE")}

    def find(self, run: str) -> Job:
        """Finds the latest job of a run.

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
        """Gets the driver's output so far."""
        with _as_cluster_errors(self.address):
            return str(self._client.get_job_logs(job.job_id))

    def output(self, job: Job) -> AsyncIterator[str]:
        """The driver's output from its beginning, as it comes."""
        return self._client.tail_job_logs(job.job_id)

    def follow(self, job: Job, show: Callable[[str], None]) -> Job:
        """Shows the driver's output until it ends; reconnects when the connection is lost.

        Raises:
            ClusterError: the cluster could not be reached for ten minutes.
        """
        from aiohttp import ClientError  # noqa: PLC0415  (comes with the jobs of Ray)

        shown, lost_since = 0, None

        async def tail() -> None:
            nonlocal shown
            seen = 0  # every connection starts at the beginning of the log
            async for text in self.output(job):
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
        """Ends the driver and its trials; the run can be resumed.

        Returns:
            The job after at most `resources.grace_s` and half a minute; unchanged if it had ended
            before.
        """
        if job.is_over:
            return job
        with _as_cluster_errors(self.address):
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + job.grace_s + _SAVE_S + _KILL_S
        while not (now := self.find(job.job_id)).is_over and time.monotonic() < deadline:
            time.sleep(0.2)
        return now

    def probe(self, runs_dir: str | None) -> Job:
        """Checks the storage on every node; see `raymeta.deploy.jobs.probe`."""
        job_id = f"check-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        module = "raymeta.deploy.jobs.probe"
        return self._start(job_id, job_id, module, [], runs_dir, None, None)

    def _pack(self, experiment: Experiment, folder: Path) -> None:
        data = experiment.tasks.data_dir
        if data is not None and not isinstance(path_at(data), RemotePath):
            experiment = copy_data(experiment, folder)
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
        grace_s: float = Job.grace_s,
    ) -> Job:
        folder_of_runs = path_at(runs_dir) if runs_dir else None
        if isinstance(folder_of_runs, Path) and not folder_of_runs.is_absolute():
            raise ClusterError(
                f"--runs-dir {runs_dir}: is another folder on every node; give a full path or a URI"
            )
        place = shlex.quote(runs_dir) if runs_dir else f'"${{RAYMETA_RUNS_DIR:?{_NO_PLACE}}}"'
        entrypoint = f"python -m {module} {place} {shlex.join(arguments)}".rstrip()
        environment: dict[str, Any] = {
            "py_modules": [str(Path(__file__).parents[2])],
        }
        if folder is not None:
            environment["working_dir"] = str(folder)
        # A copy of the code runs there: its SHA-256 is allowed, wherever it lies.
        wait = {_STOP_WAIT: str(math.ceil(grace_s + _SAVE_S))}
        environment["env_vars"] = {**wait, **allowance(), **(variables or {})}
        metadata = {"raymeta_run": run, "runs_dir": runs_dir or "", "grace_s": str(grace_s)}
        with _as_cluster_errors(self.address):
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata=metadata,
                    )
                    break
                except RuntimeError as error:
                    # A head that has just started answers before it can take jobs.
                    if "No available agent" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(_RETRY_S)
        return self.find(job_id)


@contextmanager
def connect(address: str | None, cluster: Path | None) -> Iterator[Jobs]:
    """Connects to a cluster at an address, or through a tunnel to the head in a cluster file.

    Raises:
        ClusterError: it cannot be reached.
    """
    protect_token()
    if address is not None or cluster is None:
        yield Jobs(address or os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS))
        return
    from raymeta.deploy.files.load import PROVIDERS, load_cluster  # noqa: PLC0415  (it needs all of Ray)

    found = load_cluster(cluster)
    if not PROVIDERS[found.provider].has_tunnel:
        raise ClusterError(
            f"{cluster}: a cluster of the kind {found.provider} has no tunnel of Ray's; open one "
            "to its dashboard as the file's first lines say, and add --address http://127.0.0.1:8265"
        )
    with tunnel(cluster) as local:
        yield Jobs(local)


@contextmanager
def _as_cluster_errors(address: str) -> Iterator[None]:
    """Turns errors of Ray's client into one-line messages."""
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


def _is_own(details: JobDetails) -> bool:
    """Whether raymeta submitted a job; its run's name will name a folder on this machine."""
    name = (details.metadata or {}).get("raymeta_run")
    if name is not None and not is_run_name(name):
        _log.error("the job %.80r names its run %.80r: ignored", details.submission_id, name)
        return False
    return name is not None


def _job(details: JobDetails, lost_nodes: set[str | None]) -> Job:
    metadata = details.metadata or {}
    ended = details.end_time
    status, message = str(details.status.value), details.message or ""
    if status == "RUNNING" and details.driver_node_id in lost_nodes:
        # Ray does not notice this when the head itself was lost and restarted.
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
        grace_s=_grace_s(metadata),
    )


def _grace_s(metadata: Mapping[str, str]) -> float:
    """The `resources.grace_s` of a job; the default where it has none, or none that is valid."""
    with suppress(KeyError, ValueError):
        return Resources.model_validate({"grace_s": float(metadata["grace_s"])}).grace_s
    return Job.grace_s


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000)  # noqa: DTZ006  (the user's own time)
