"""The commands for a user's own data and its experiment file: new, inspect, schema."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import PurePosixPath
from typing import Annotated

import typer

from raymeta.cli.options import ExperimentArgument, SetOption, open_console
from raymeta.errors import DataError, ExperimentError
from raymeta.storage.paths import path_at


def new(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="A file, a folder, or a pattern in quotes."),
    ],
    target: Annotated[
        str | None, typer.Option("--target", metavar="COLUMN", help="The class of a sequence.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="COLUMN", help="Groups such as the person: a task each. Repeatable."
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option("--sequence", metavar="COLUMN", help="Which rows are one sequence."),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="COLUMN", help="What orders its rows.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file to write; default: NAME.yaml."
        ),
    ] = None,
) -> None:
    """Look at a table of sequences or of texts, and write an experiment file for it."""
    console = open_console()
    from raymeta.console.inspection import print_guess  # noqa: PLC0415  (imports numpy, torch)
    from raymeta.storage.atomic import write_file  # noqa: PLC0415
    from raymeta.tasks.draft import draft  # noqa: PLC0415
    from raymeta.tasks.guess import guess_tasks  # noqa: PLC0415

    name = PurePosixPath(table.rstrip("/")).stem if "*" not in table else "own"
    file = path_at(output or f"{name or 'own'}.yaml")
    if file.is_file() or file.is_dir():
        raise ExperimentError(f"{file}: exists already; name another file with -o, or remove it")
    guess = guess_tasks(table, target=target, task=task or (), sequence=sequence, time=time)
    command = f"raymeta {shlex.join(sys.argv[1:])}"
    write_file(file, draft(file.stem, guess.settings, command, str(file)).encode())
    print_guess(console, guess, str(file))


def inspect(experiment: ExperimentArgument = None, overrides: SetOption = None) -> None:
    """Show what a task is, the splits, what could leak, and whether the data are enough."""
    console = open_console()
    from raymeta import api  # noqa: PLC0415  (torch and Ray take seconds to import)
    from raymeta.console.inspection import print_inspection  # noqa: PLC0415
    from raymeta.tasks.inspection import inspect_tasks  # noqa: PLC0415

    inspection = inspect_tasks(api.read_experiment(experiment, overrides or ()))
    print_inspection(console, inspection)
    if not inspection.is_sound:
        raise DataError("the experiment cannot run on these data as they are")


def schema(
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="A file to write, not the terminal."),
    ] = None,
) -> None:
    """Print the JSON Schema of experiment files: every key, for an editor that completes them.

    In an editor with a YAML language server, write `raymeta schema -o raymeta.json` once and begin
    a file with the line `# yaml-language-server: $schema=raymeta.json`.
    """
    console = open_console()
    from raymeta.experiment.json_schema import json_schema  # noqa: PLC0415  (imports pydantic)
    from raymeta.storage.atomic import write_file  # noqa: PLC0415

    text = json.dumps(json_schema(), indent=1) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    file = path_at(output)
    write_file(file, text.encode())
    first_line = f"# yaml-language-server: $schema={file.name}"
    console.print(
        f"wrote {file}; begin a file beside it with:\n{first_line}",
        highlight=False,
        soft_wrap=True,
    )
