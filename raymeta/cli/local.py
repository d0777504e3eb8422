"""The commands that run experiments on this machine and show runs."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Literal

import typer

from raymeta.cli.options import (
    ExperimentArgument,
    FolderArgument,
    KeepDataOption,
    ResumeOption,
    RunNameOption,
    RunsDirOption,
    SetOption,
    TrustOption,
    VerboseOption,
    open_console,
)
from raymeta.console.progress import ProgressView
from raymeta.console.tables import (
    print_comparison,
    print_importance,
    print_report,
    print_runs,
)
from raymeta.errors import REPEAT_S, EndedBySignalError, RunError
from raymeta.run_folder import DEFAULT_ROOT, runs


def tune(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    keep_data: KeepDataOption = False,
    trust: TrustOption = False,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Search the hyperparameters, then meta-test the best network beside its controls."""
    _run(
        "tune",
        experiment=experiment,
        overrides=overrides,
        resume=resume,
        name=name,
        keep_data=keep_data,
        trust=trust,
        runs_dir=runs_dir,
        verbose=verbose,
    )


def train(
    experiment: ExperimentArgument = None,
    overrides: SetOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = None,
    keep_data: KeepDataOption = False,
    trust: TrustOption = False,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Meta-train the file's own configuration, without a search, and meta-test it."""
    _run(
        "train",
        experiment=experiment,
        overrides=overrides,
        resume=resume,
        name=name,
        keep_data=keep_data,
        trust=trust,
        runs_dir=runs_dir,
        verbose=verbose,
    )


def evaluate(
    run: FolderArgument,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", help="Meta-test episodes; default: the experiment's number."),
    ] = None,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Meta-test the network of a finished run again."""
    console = open_console(verbose)
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    with ProgressView(console, verbose) as view:
        report = api.evaluate(run, num_episodes=episodes, runs_dir=runs_dir, watcher=view)
    print_report(console, report)


def explain(run: FolderArgument, runs_dir: RunsDirOption = str(DEFAULT_ROOT)) -> None:
    """Show which searched keys matter, from a run's trials so far: tables and plots."""
    console = open_console()
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    print_importance(console, api.explain(run, runs_dir=runs_dir))


def report(run: FolderArgument, runs_dir: RunsDirOption = str(DEFAULT_ROOT)) -> None:
    """Write RUN/report.html, a page for the person who decides, of a run in any state."""
    console = open_console()
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    console.print(f"{api.write_report(run, runs_dir=runs_dir)}", highlight=False, soft_wrap=True)


def watch(
    run: FolderArgument,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Show a run live from its folder, also while another process searches in it."""
    console = open_console(verbose)
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    found = api.watch(run, runs_dir=runs_dir, console=console, verbose=verbose)
    print_report(console, found)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN…", help="Names or paths of run folders.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a page as well: an .html."),
    ] = None,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Put runs side by side: scores, paired differences to the first, and what differs in them."""
    console = open_console()
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)

    print_comparison(console, api.compare(runs, output=output, runs_dir=runs_dir))
    if output is not None:
        console.print(f"page: {output}", highlight=False, soft_wrap=True)


def list_runs(runs_dir: RunsDirOption = str(DEFAULT_ROOT)) -> None:
    """List the runs on this machine or in a storage."""
    console = open_console()
    found = runs(runs_dir)
    if not found:
        console.print(f"no runs under {runs_dir}; `raymeta tune pen` makes one", highlight=False)
        return
    print_runs(console, found)


def _run(
    command: Literal["tune", "train"],
    *,
    experiment: str | None,
    overrides: list[str] | None,
    resume: str | None,
    name: str | None,
    keep_data: bool,
    trust: bool,
    runs_dir: str,
    verbose: bool,
) -> None:
    console = open_console(verbose)
    with _signals_as_interrupts() as received, ProgressView(console, verbose) as view:
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
                trust=trust,
                watcher=view,
                verbose=verbose,
            )
        except KeyboardInterrupt:
            hint = f"; go on with `{view.run.resume_command}`" if view.run else ""
            if received:
                raise EndedBySignalError(
                    f"ended by {received[0].name}{hint}", received[0]
                ) from None
            raise RunError(f"interrupted{hint}") from None
    print_report(console, report)


@contextmanager
def _signals_as_interrupts() -> Iterator[list[signal.Signals]]:
    """Turns SIGTERM and SIGHUP, unless ignored (`nohup`), into KeyboardInterrupt.

    Yields:
        The signals received so far.
    """
    received: list[signal.Signals] = []
    received_at = -math.inf

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal received_at
        if time.monotonic() - received_at > REPEAT_S:
            received_at = time.monotonic()
            received.append(signal.Signals(number))
            raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
