"""Tests the settings that a submitted job gets; `test_client.py` runs jobs on a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from raymeta.deploy.jobs.client import Jobs
from raymeta.experiment.resources import Resources
from raymeta.experiment.schema import Experiment


class Dashboard:
    """Keeps what is submitted, and says it again."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def submit_job(self, **job: Any) -> None:
        self.jobs.append(job)

    def list_jobs(self) -> list[Any]:
        return [
            SimpleNamespace(
                submission_id=job["submission_id"],
                metadata=job["metadata"],
                status=SimpleNamespace(value="STOPPED"),
                message="",
                start_time=number,
                end_time=number,
                driver_node_id=None,
                driver_exit_code=None,
            )
            for number, job in enumerate(self.jobs)
        ]


@pytest.fixture
def jobs() -> Jobs:
    made = Jobs.__new__(Jobs)
    made.address, dashboard = "http://127.0.0.1:1", Dashboard()
    made._client = dashboard
    return made


def waits(jobs: Jobs) -> list[str]:
    """The seconds after which Ray kills each job that was told to end."""
    found: Any = jobs._client
    return [job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] for job in found.jobs]


def test_ray_waits_for_a_stopped_job_longer_than_its_grace(
    jobs: Jobs, tiny: Callable[..., Experiment]
) -> None:
    job = jobs.submit(tiny("sinusoid", "resources.grace_s=99.5"))
    assert job.grace_s == 99.5
    jobs.resume(job.run)
    assert waits(jobs) == ["115", "115"]


@pytest.mark.parametrize("told", [{}, {"grace_s": "soon"}, {"grace_s": "-1"}, {"grace_s": "nan"}])
def test_a_job_without_a_valid_grace_has_the_default(jobs: Jobs, told: dict[str, str]) -> None:
    found: Any = jobs._client
    metadata = {"raymeta_run": "first", **told}
    found.submit_job(submission_id="first", metadata=metadata, runtime_env={"env_vars": {}})
    assert jobs.find("first").grace_s == Resources().grace_s
