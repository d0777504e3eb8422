"""The arguments and options that several commands share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from raymeta.console.terminal import Terminal

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
    typer.Option(
        "--run", metavar="NAME", help="Name of the run folder; default: EXPERIMENT-DATE-TIME."
    ),
]
ResumeOption = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")
]
KeepDataOption = Annotated[
    bool,
    typer.Option("--keep-data", help="Copy tasks.data_dir into the run folder, to move with it."),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Resume a run folder of another user, or with trackers it did not begin with.",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every validation, and Ray's own log.")
]
EnsembleOption = Annotated[
    bool,
    typer.Option(
        "--ensemble/--first",
        help="After a refit from several seeds: all networks together, or the first alone.",
    ),
]
FolderArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name or path of a run folder.")]
ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster", metavar="FILE", help="The cluster's file, such as cluster/onprem.yaml."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, if it can be reached directly; default: a tunnel to the "
        "head that FILE describes, or else http://127.0.0.1:8265.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--runs-dir",
        metavar="URI",
        help="Where the cluster keeps run folders: a folder that all nodes share, or a URI such "
        "as s3://bucket/runs; default: the cluster's own RAYMETA_RUNS_DIR.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run on the cluster.")]
OptionalJobArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Name of a run on the cluster; default: all.")
]


def open_console(verbose: bool = False) -> Terminal:
    """Opens the console that a command prints to, and sets the log level."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(message)s"
    )
    return Terminal()
