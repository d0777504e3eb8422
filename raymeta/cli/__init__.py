"""The command line: parses, calls `raymeta.api`, prints."""

from __future__ import annotations

import sys

import typer

from raymeta.cli import cluster, data, export, inference, local, serving
from raymeta.console.terminal import Terminal, prepare_streams, show_data_warnings
from raymeta.errors import RaymetaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Meta-trains recurrent networks with MAML and tunes them by Bayesian optimisation on Ray.",
)
app.command()(local.tune)
app.command()(local.train)
app.command()(local.evaluate)
app.command()(local.explain)
app.command()(local.report)
app.command()(local.watch)
app.command()(local.compare)
app.command("list")(local.list_runs)
app.command()(inference.adapt)
app.command()(inference.predict)
app.command()(inference.forecast)
app.command()(inference.attribute)
app.command()(inference.influence)
app.command()(export.export)
app.command()(serving.serve)
app.command()(data.new)
app.command()(data.inspect)
app.command()(data.schema)
app.command()(cluster.check)
app.command()(cluster.submit)
app.command()(cluster.status)
app.command()(cluster.logs)
app.command()(cluster.stop)
app.command()(cluster.fetch)
app.command()(cluster.down)


def main() -> None:
    """Runs the command line; the exit code is 0 only if the work was done."""
    prepare_streams()
    show_data_warnings()
    try:
        app()
    except RaymetaError as error:
        Terminal(stderr=True).print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except MemoryError:
        told = "error: this needs more memory than there is; is a file larger than you think?"
        Terminal(stderr=True).print(told, style="red", highlight=False, soft_wrap=True)
        sys.exit(1)
