"""The commands that use a trained network: adapt, predict, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from raymeta.cli.options import FolderArgument, RunsDirOption, open_console
from raymeta.errors import DataError
from raymeta.run_folder import DEFAULT_ROOT
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at

_STREAM = "-"
_TABLES = "a table as .csv, .parquet or .jsonl, with the columns of the experiment"
FormatOption = Annotated[
    Literal["csv", "parquet", "jsonl"],
    typer.Option("--format", help="The format of streams; files say theirs by their names."),
]


def adapt(
    run: FolderArgument,
    support: Annotated[
        str,
        typer.Option(
            "--support",
            metavar="FILE",
            help=f"The examples of the new task: {_TABLES}, that of the target among them; - reads "
            "a stream.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the adapted network is written."
        ),
    ],
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble/--first",
            help="After a refit from several seeds: all networks together, or the first alone.",
        ),
    ] = True,
    format_: FormatOption = "csv",
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Adapt a finished run's network to a new task, from a few examples of it.

    A table has one row a time step, as in meta-training: for `source: table` the experiment's own
    columns of sequence, features, target and time; for pen sequence, x, y, stroke (its number) and
    class; for sinusoid x and y, one row a point; for sentiment text and class (0 blame, 1 praise);
    for `source: text` the experiment's own columns of text and label.
    """
    console = open_console()
    from raymeta.inference import files  # noqa: PLC0415  (torch takes seconds to import)

    model = files.load(run, ensemble=ensemble, runs_dir=runs_dir)
    content, kind, place = _read(support, format_)
    from raymeta.inference.tables import parse_examples  # noqa: PLC0415

    raw = parse_examples(content, kind, model.trained.inputs, place, with_targets=True)
    adapted = model.adapt_to(raw)
    adapted.save(output)
    classes = ""
    if adapted.labels is not None:
        listed = ", ".join(map(str, adapted.labels[:10].tolist()))
        more = ", …" if len(adapted.labels) > 10 else ""
        classes = f" of {len(adapted.labels)} classes ({listed}{more})"
    console.print(
        f"{output}: adapted to {len(raw)} examples{classes}; `raymeta predict {output} FILE` "
        "predicts others",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def predict(
    adapted: Annotated[
        str, typer.Argument(metavar="ADAPTED", help="A file that `raymeta adapt` wrote.")
    ],
    examples: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help=f"The examples to predict: {_TABLES}; - reads a stream."
        ),
    ] = _STREAM,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .csv, .parquet or .jsonl; - writes a stream."
        ),
    ] = _STREAM,
    format_: FormatOption = "csv",
) -> None:
    """Predict examples of a task by a network that was adapted to it.

    One row an example comes out, in the order of their first rows: the sequence's id, the
    prediction, and the probability of each class.
    """
    open_console()
    from raymeta.inference.files import load_adapted  # noqa: PLC0415  (torch takes seconds)
    from raymeta.inference.tables import (  # noqa: PLC0415
        format_of,
        parse_examples,
        predictions,
        table_bytes,
    )

    # Before the work, not after it.
    target = None if output == _STREAM else path_at(output)
    written = format_ if target is None else format_of(target)
    network = load_adapted(adapted)
    content, kind, place = _read(examples, format_)
    raw = parse_examples(content, kind, network.trained.inputs, place, with_targets=False)
    found = table_bytes(predictions(network, raw), written)
    if target is None:
        sys.stdout.buffer.write(found)
        sys.stdout.buffer.flush()
    else:
        write_file(target, found)


def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTED", help="A file that `raymeta adapt` wrote; with --adapts a run."
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="Where the ONNX graph is written."),
    ],
    adapts: Annotated[
        bool,
        typer.Option(
            "--adapts",
            help="Of a run: one graph that adapts and predicts, from support examples, their "
            "classes or values, and queries.",
        ),
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Of an adapted network: one time step, its state in and out."
        ),
    ] = False,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble/--first",
            help="Of a run after a refit from several seeds: all networks, or the first alone.",
        ),
    ] = True,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Write a network as an ONNX graph, the preparation of its examples included.

    Inputs are `x`, double [examples, steps, channels], and `lengths`, the steps of each example;
    outputs are `prediction` and `probabilities`.  It needs `pip install 'raymeta[onnx]'`.
    """
    console = open_console()
    if adapts and stream:
        raise DataError("--stream is of an adapted network, --adapts of a run; give one of them")
    from raymeta.inference import files  # noqa: PLC0415  (torch takes seconds to import)

    if adapts:
        files.load(network, ensemble=ensemble, runs_dir=runs_dir).export(output)
        what = "adapts to support_x and support_y, and predicts x"
    else:
        files.load_adapted(network).export(output, stream=stream)
        what = "predicts a time step after another" if stream else "predicts x"
    console.print(f"{output}: {what}", highlight=False, markup=False, soft_wrap=True)


def _read(
    name: str, kind: Literal["csv", "parquet", "jsonl"]
) -> tuple[bytes, Literal["csv", "parquet", "jsonl"], AnyPath]:
    """Content, format and name of a file or of the standard input."""
    from raymeta.inference.tables import format_of, read_file  # noqa: PLC0415  (slow)

    if name != _STREAM:
        path = path_at(name)
        return read_file(path), format_of(path), path
    if sys.stdin.isatty():
        raise DataError("name a file of examples, or give them as a stream: … < examples.csv")
    return sys.stdin.buffer.read(), kind, Path("standard input")
