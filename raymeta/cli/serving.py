"""The command that serves a run: serve."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from raymeta.cli.options import (
    EnsembleOption,
    FolderArgument,
    RunsDirOption,
    VerboseOption,
    open_console,
)
from raymeta.errors import ResourceError
from raymeta.run_folder import DEFAULT_ROOT

_TOKEN_FILE = Path("~/.config/raymeta/serve.token")


def serve(
    run: FolderArgument,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes that adapt and predict, a core each.")
    ] = 2,
    tasks_kept: Annotated[int, typer.Option(min=1, help="Tasks kept at once.")] = 1000,
    keep_for: Annotated[
        float, typer.Option(min=1, max=1e9, help="Seconds for which a task is kept.")
    ] = 3600,
    tasks_dir: Annotated[
        str,
        typer.Option(
            help="Where tasks are kept, a folder or URI for all replicas; default: a private "
            "folder that goes with the server."
        ),
    ] = "",
    token_file: Annotated[
        Path, typer.Option(metavar="FILE", help="Holds the token; made with a new one if missing.")
    ] = _TOKEN_FILE,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Serve everybody on this machine (loopback only).")
    ] = False,
    max_body_mib: Annotated[float, typer.Option(min=0.001, max=1024, help="Limit of a body.")] = 8,
    max_examples: Annotated[int, typer.Option(min=1, help="Limit of a task.")] = 1000,
    max_batch_examples: Annotated[
        int, typer.Option(min=1, help="Limit of all tasks of a request together.")
    ] = 10_000,
    max_steps: Annotated[int, typer.Option(min=1, help="Limit of an example.")] = 10_000,
    max_classes: Annotated[int, typer.Option(min=2, help="Limit of a task.")] = 100,
    ensemble: EnsembleOption = True,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
    verbose: VerboseOption = False,
) -> None:
    """Serve a finished run's network by HTTP: tasks are adapted once, kept by id, and predicted.

    POST /tasks with {"x": examples, "y": targets} adapts and answers with an id; POST
    /tasks/ID/predict with {"x": examples} predicts. POST /tasks/batch and /predict/batch do so for
    many tasks. All also take a stream of Arrow with the columns of `raymeta adapt` (and of many
    tasks, a column `task`). GET /model says what the network expects, GET /openapi.json all
    else, GET /metrics is for Prometheus. SIGUSR1 opens the run anew without losing a request.
    """
    console = open_console(verbose)
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ResourceError("serving needs further packages: pip install 'raymeta[serve]'")
    from raymeta.serving.server import serve_run  # noqa: PLC0415  (torch and Ray take seconds)
    from raymeta.serving.settings import Limits, ServeSettings  # noqa: PLC0415

    limits = Limits(
        body_bytes=int(max_body_mib * 2**20),
        examples=max_examples,
        batch_examples=max_batch_examples,
        time_steps=max_steps,
        classes=max_classes,
    )
    settings = ServeSettings(
        run=run,
        tasks_dir=tasks_dir,
        runs_dir=runs_dir,
        ensemble=ensemble,
        replicas=replicas,
        tasks_kept=tasks_kept,
        keep_for_s=keep_for,
        limits=limits,
    )
    serve_run(
        settings,
        host=host,
        port=port,
        token_file=None if no_token else token_file.expanduser(),
        verbose=verbose,
        say=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
    )
