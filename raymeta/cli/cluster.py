"""The commands that work on a cluster: check, submit, status, logs, stop, fetch, down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raymeta.cli.options import (
    AddressOption,
    ClusterOption,
    ExperimentArgument,
    JobArgument,
    OptionalJobArgument,
    ResumeOption,
    SetOption,
    StorageOption,
    TrustOption,
    open_console,
)
from raymeta.console.tables import (
    print_findings,
    print_jobs,
    print_log_end,
    print_reason,
    print_submitted,
)
from raymeta.errors import ClusterError
from raymeta.run_folder import DEFAULT_ROOT

if TYPE_CHECKING:
    from raymeta.deploy.jobs.client import Job, Jobs


def check(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: StorageOption = None,
    crds: Annotated[
        Path | None,
        typer.Option("--crds", help="File of KubeRay's CRDs, to check a manifest against."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Have every running node check the storage."),
    ] = False,
) -> None:
    """Check that an experiment can run on a cluster, before anything is paid for."""
    console = open_console()
    if cluster is None:
        raise ClusterError("name the cluster's file: --cluster cluster/onprem.yaml")
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)
    from raymeta.deploy.check import check_on, has_errors  # noqa: PLC0415
    from raymeta.deploy.files.load import load_cluster  # noqa: PLC0415
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415

    described = load_cluster(cluster, crds=crds)
    findings = check_on(api.check_experiment(experiment, overrides or ()), described, runs_dir)
    print_findings(console, findings)
    if has_errors(findings):
        raise ClusterError(f"the experiment cannot run on {cluster} as it is")
    if live:
        with connect(address, cluster) as jobs:
            probe = jobs.probe(runs_dir)
            if _follow(console, jobs, probe, _where(address, cluster)):
                raise ClusterError("not every node can use the storage")


def submit(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: StorageOption = None,
    resume: ResumeOption = None,
    trust: TrustOption = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return as soon as the cluster has taken the job.")
    ] = False,
) -> None:
    """Run a search on a cluster and follow it; the driver runs there, so you may leave."""
    console = open_console()
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)
    from raymeta.deploy.check import check_on, has_errors, job_environment  # noqa: PLC0415
    from raymeta.deploy.files.load import load_cluster  # noqa: PLC0415
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415

    if resume is not None and (experiment is not None or overrides):
        raise ClusterError("a resumed run keeps its own experiment; leave EXPERIMENT and --set out")
    loaded = None if resume is not None else api.check_experiment(experiment, overrides or ())
    described = load_cluster(cluster) if cluster is not None else None
    if loaded is not None and described is not None:
        findings = check_on(loaded, described, runs_dir)
        print_findings(console, [found for found in findings if found.level != "ok"])
        if has_errors(findings):
            raise ClusterError(f"the experiment cannot run on {cluster}; nothing was submitted")
    environment = job_environment(described) if described is not None else None
    with connect(address, cluster) as jobs:
        if loaded is not None:
            job = jobs.submit(loaded, runs_dir=runs_dir, environment=environment)
        else:
            assert resume is not None
            job = jobs.resume(resume, runs_dir=runs_dir, environment=environment, trust=trust)
        print_submitted(console, job, _where(address, cluster))
        code = 0 if detach else _follow(console, jobs, job, _where(address, cluster))
    if code:
        sys.exit(code)


def status(
    run: OptionalJobArgument = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """List the runs of a cluster, or show the state of one."""
    console = open_console()
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        if run is None:
            print_jobs(console, jobs.all())
            return
        job = jobs.find(run)
        print_jobs(console, [job])
        if job.is_over:
            print_reason(console, job)
        print_log_end(console, jobs.log(job))


def logs(
    run: JobArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """Show the log of a run's driver, and follow it while it runs."""
    console = open_console()
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        _follow(console, jobs, jobs.find(run), _where(address, cluster))


def stop(
    run: JobArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """End a run's driver and its trials; `submit --resume` goes on with it."""
    console = open_console()
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        before = jobs.find(run)
        job = jobs.stop(before)
        where = _where(address, cluster)
        if not job.is_over:
            raise ClusterError(f"{job.run}: is still ending; look again with `raymeta status`")
        told = "stopped"  # also where its driver ended with an error when it was told to
        if before.is_over or job.status == "SUCCEEDED":
            told = f"has already ended ({job.status.lower()})"
        hint = f"; go on with `raymeta submit --resume {job.run}{where}`"
        if job.status == "SUCCEEDED":
            hint = f"; `raymeta fetch {job.run}{where}` copies it to this machine"
        console.print(f"{job.run}: {told}{hint}", highlight=False, soft_wrap=True)


def fetch(
    run: JobArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", help="Where to put the run folder on this machine.")
    ] = DEFAULT_ROOT,
) -> None:
    """Copy a run folder from a cluster to this machine."""
    console = open_console()
    from raymeta.deploy.jobs.client import connect  # noqa: PLC0415  (Ray takes seconds to import)
    from raymeta.deploy.jobs.fetch import fetch_run  # noqa: PLC0415

    with connect(address, cluster) as jobs:
        home = fetch_run(jobs, run, runs_dir, cluster)
    console.print(f"run folder: {home}", highlight=False, soft_wrap=True)


def down(
    cluster: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Such as cluster/onprem.yaml."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a cluster: delete its machines in a cloud, stop Ray on your own."""
    console = open_console()
    from raymeta.deploy.files.load import load_cluster  # noqa: PLC0415  (Ray takes seconds)
    from raymeta.deploy.teardown import tear_down  # noqa: PLC0415

    described = load_cluster(cluster)
    if not yes:
        typer.confirm(f"End {cluster}, and whatever runs on it?", abort=True)
    tear_down(described)
    console.print(f"{cluster}: ended; run folders stay where they are", highlight=False)


def _where(address: str | None, cluster: Path | None) -> str:
    """The options that name the same cluster in a command."""
    found = [("--cluster", cluster), ("--address", address)]
    return "".join(f" {option} {value}" for option, value in found if value is not None)


def _follow(console: Console, jobs: Jobs, job: Job, where: str) -> int:
    """Prints a job's log to its end; returns the job's exit code."""
    try:
        ended = jobs.follow(job, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        raise ClusterError(
            f"no longer followed; {job.run} goes on: `raymeta logs {job.run}{where}` follows it "
            f"again, `raymeta stop {job.run}{where}` ends it"
        ) from None
    if ended.status == "SUCCEEDED":
        return 0
    console.print(f"{job.run}: {ended.status.lower()}", highlight=False)
    print_reason(console, ended)
    return ended.exit_code or 1
