"""The command line: parses, calls `raymeta.api`, prints."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raymeta.console import (
    ProgressView,
    print_findings,
    print_importance,
    print_jobs,
    print_log_end,
    print_reason,
    print_report,
    print_runs,
    print_submitted,
)
from raymeta.errors import ClusterError, RaymetaError, RunError
from raymeta.remote import path_at
from raymeta.runs import DEFAULT_ROOT, list_runs

if TYPE_CHECKING:
    from raymeta.deploy.jobs import Job, Jobs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Meta-trains recurrent networks with MAML and tunes them by Bayesian optimisation on Ray.",
)

ExperimentArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A shipped experiment (pen, sentiment, …) or a YAML file; not needed with --resume.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. maml.inner_lr=0.05. Repeatable."
    ),
]
RunsDirOption = Annotated[
    str,
    typer.Option(
        "--runs-dir",
        envvar="RAYMETA_RUNS_DIR",
        help="Where run folders are kept: a folder, or a URI such as s3://bucket/runs.",
    ),
]
RunNameOption = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="Of the run folder; default: name and time."),
]
ResumeOption = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")
]
ClusterOption = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="Its file, such as cluster/onprem.yaml."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Its dashboard, where there is a way to it; default: a tunnel to the head that FILE "
        "describes, or else http://127.0.0.1:8265.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--runs-dir",
        metavar="URI",
        help="Where the cluster keeps run folders: a folder that all nodes share, or a URI such "
        "as s3://bucket/runs; default: the cluster's own, its RAYMETA_RUNS_DIR.",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run on the cluster.")]
OptionalRunArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Name of a run on the cluster; default: all.")
]
KeepDataOption = Annotated[
    bool,
    typer.Option("--keep-data", help="Copy tasks.data_dir into the run folder, to move with it."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every validation, and Ray's own log.")
]


@app.command()
def tune(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    keep_data: KeepDataOption = False,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Search the hyperparameters, then meta-test the best network beside its controls."""
    _run("tune", experiment, overrides, resume, name, keep_data, runs_dir, verbose)


@app.command()
def train(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    keep_data: KeepDataOption = False,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Meta-train the file's own configuration, without a search, and meta-test it."""
    _run("train", experiment, overrides, resume, name, keep_data, runs_dir, verbose)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or path of a run folder.")],
    episodes: Annotated[
        int | None, typer.Option("--episodes", help="Meta-test episodes; default: the file's.")
    ] = None,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Meta-test the network of a run again."""
    console = _console(verbose)
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    with ProgressView(console, verbose) as view:
        report = api.evaluate(run, num_episodes=episodes, runs_dir=runs_dir, watcher=view)
    print_report(console, report)


@app.command()
def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or path of a run folder.")],
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Say which keys matter and how, from a run's trials so far: tables and plots."""
    console = _console(verbose=False)
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    print_importance(console, api.explain(run, runs_dir=runs_dir))


@app.command("list")
def list_(runs_dir: RunsDirOption = str(DEFAULT_ROOT)) -> None:
    """List the runs."""
    console = _console(verbose=False)
    runs = list_runs(path_at(runs_dir))
    if not runs:
        console.print(f"no runs under {runs_dir}; `raymeta tune pen` makes one", highlight=False)
        return
    print_runs(console, runs, [run.read_json("results.json") or {} for run in runs])


@app.command()
def check(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: StorageOption = None,
    crds: Annotated[
        Path | None,
        typer.Option("--crds", help="KubeRay's CRDs, to check a Kubernetes manifest against."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask every node of the running cluster for the storage.")
    ] = False,
) -> None:
    """Say whether an experiment can run on a cluster, before anything is paid for."""
    console = _console(verbose=False)
    if cluster is None:
        raise ClusterError("name the cluster's file: --cluster cluster/onprem.yaml")
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)
    from raymeta.deploy.check import check_on, has_errors  # noqa: PLC0415
    from raymeta.deploy.cluster_file import load_cluster  # noqa: PLC0415
    from raymeta.deploy.jobs import connect  # noqa: PLC0415

    described = load_cluster(cluster, crds=crds)
    findings = check_on(api.load_checked(experiment, overrides or ()), described, runs_dir)
    print_findings(console, findings)
    if has_errors(findings):
        raise ClusterError(f"the experiment cannot run on {cluster} as it is")
    if live:
        with connect(address, cluster) as jobs:
            probe = jobs.probe(runs_dir)
            if _follow(console, jobs, probe, _where(address, cluster)):
                raise ClusterError("not every node can use the storage")


@app.command()
def submit(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: StorageOption = None,
    resume: ResumeOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return as soon as the cluster has taken the job.")
    ] = False,
) -> None:
    """Run a search on a cluster and follow it; the driver runs there, so you may leave."""
    console = _console(verbose=False)
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)
    from raymeta.deploy.check import check_on, has_errors, job_environment  # noqa: PLC0415
    from raymeta.deploy.cluster_file import load_cluster  # noqa: PLC0415
    from raymeta.deploy.jobs import connect  # noqa: PLC0415

    loaded = None if resume else api.load_checked(experiment, overrides or ())
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
            job = jobs.resume(resume, runs_dir=runs_dir, environment=environment)
        print_submitted(console, job, _where(address, cluster))
        code = 0 if detach else _follow(console, jobs, job, _where(address, cluster))
    if code:
        sys.exit(code)


@app.command()
def status(
    run: OptionalRunArgument = None,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """List the runs of a cluster, or tell how one of them stands."""
    console = _console(verbose=False)
    from raymeta.deploy.jobs import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        if run is None:
            print_jobs(console, jobs.all())
            return
        job = jobs.find(run)
        print_jobs(console, [job])
        if job.is_over:
            print_reason(console, job)
        print_log_end(console, jobs.log(job))


@app.command()
def logs(
    run: RunArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """Show what a run's driver has printed, and follow it while it runs."""
    console = _console(verbose=False)
    from raymeta.deploy.jobs import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        _follow(console, jobs, jobs.find(run), _where(address, cluster))


@app.command()
def stop(
    run: RunArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
) -> None:
    """End a run's driver and its trials; `submit --resume` goes on with it."""
    console = _console(verbose=False)
    from raymeta.deploy.jobs import connect  # noqa: PLC0415  (Ray takes seconds to import)

    with connect(address, cluster) as jobs:
        job = jobs.stop(jobs.find(run))
        where = _where(address, cluster)
        if not job.is_over:
            raise ClusterError(f"{job.run}: is still ending; look again with `raymeta status`")
        hint = f"; go on with `raymeta submit --resume {job.run}{where}`"
        console.print(f"{job.run}: {job.status.lower()}{hint}", highlight=False, soft_wrap=True)


@app.command()
def fetch(
    run: RunArgument,
    cluster: ClusterOption = None,
    address: AddressOption = None,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", help="Where to put the run folder on this machine.")
    ] = DEFAULT_ROOT,
) -> None:
    """Bring a run folder home from a cluster."""
    console = _console(verbose=False)
    from raymeta.deploy.jobs import connect, fetch_run  # noqa: PLC0415  (Ray takes seconds)

    with connect(address, cluster) as jobs:
        home = fetch_run(jobs, run, runs_dir, cluster)
    console.print(f"run folder: {home}", highlight=False, soft_wrap=True)


@app.command()
def down(
    cluster: Annotated[Path, typer.Argument(metavar="FILE", help="Such as cluster/onprem.yaml.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a cluster: delete its machines in a cloud, stop Ray on your own."""
    console = _console(verbose=False)
    from raymeta.deploy.cluster_file import load_cluster  # noqa: PLC0415  (Ray takes seconds)
    from raymeta.deploy.teardown import tear_down  # noqa: PLC0415

    described = load_cluster(cluster)
    if not yes:
        typer.confirm(f"End {cluster}, and whatever runs on it?", abort=True)
    tear_down(described)
    console.print(f"{cluster}: ended; run folders stay where they are", highlight=False)


def _where(address: str | None, cluster: Path | None) -> str:
    """The options that lead to the same cluster again."""
    found = [("--cluster", cluster), ("--address", address)]
    return "".join(f" {option} {value}" for option, value in found if value is not None)


def _follow(console: Console, jobs: Jobs, job: Job, where: str) -> int:
    """Shows a job's log to its end; the job's exit code."""
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


def _run(
    command: str,
    experiment: str | None,
    overrides: list[str] | None,
    resume: str | None,
    name: str | None,
    keep_data: bool,
    runs_dir: str,
    verbose: bool,
) -> None:
    console = _console(verbose)
    with ProgressView(console, verbose) as view:
        from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

        function = api.tune if command == "tune" else api.train
        try:
            report = function(
                experiment,
                overrides=overrides or (),
                runs_dir=runs_dir,
                resume=resume,
                name=name,
                keep_data=keep_data,
                watcher=view,
                verbose=verbose,
            )
        except KeyboardInterrupt:
            hint = f"; go on with `{view.run.resume_command}`" if view.run else ""
            raise RunError(f"interrupted{hint}") from None
    print_report(console, report)


def _console(verbose: bool) -> Console:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(message)s"
    )
    return Console(markup=False)


def main() -> None:
    """Runs the command line; exit code 0 only when the work was done."""
    try:
        app()
    except RaymetaError as error:
        Console(stderr=True, markup=False).print(
            f"error: {error}", style="red", highlight=False, soft_wrap=True
        )
        sys.exit(1)
