"""The command line: parses, calls `raymeta.api`, prints."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

from raymeta.console import ProgressView, print_importance, print_report, print_runs
from raymeta.errors import RaymetaError, RunError
from raymeta.remote import path_at
from raymeta.runs import DEFAULT_ROOT, list_runs

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
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every validation, and Ray's own log.")
]


@app.command()
def tune(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Search the hyperparameters, then meta-test the best network beside its controls."""
    _run("tune", experiment, overrides, resume, name, runs_dir, verbose)


@app.command()
def train(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Meta-train the file's own configuration, without a search, and meta-test it."""
    _run("train", experiment, overrides, resume, name, runs_dir, verbose)


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


def _run(
    command: str,
    experiment: str | None,
    overrides: list[str] | None,
    resume: str | None,
    name: str | None,
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
