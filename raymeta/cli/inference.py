"""The commands that use a trained network: adapt, predict, forecast, attribute and so on."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raymeta.cli.options import EnsembleOption, FolderArgument, RunsDirOption, open_console
from raymeta.errors import DataError, DataWarning
from raymeta.run_folder import DEFAULT_ROOT
from raymeta.storage import bounds
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at

if TYPE_CHECKING:  # they import torch, which `raymeta --help` must not wait for
    from raymeta.evaluation.familiarity import Familiarity
    from raymeta.inference.adapted import Adapted
    from raymeta.inference.examples import RawExamples
    from raymeta.tasks.inputs import Inputs

_STREAM = "-"
_PART_BYTES = 1 << 20
_TABLES = "a table in any format that training reads, with the columns of the experiment"
Format = Literal["csv", "parquet", "jsonl"]
FormatOption = Annotated[
    Format,
    typer.Option("--format", help="The format of streams; files say theirs by their names."),
]

AdaptedArgument = Annotated[
    str, typer.Argument(metavar="ADAPTED", help="A file that `raymeta adapt` wrote.")
]
SupportOption = Annotated[
    str,
    typer.Option(
        "--support",
        metavar="FILE",
        help=f"The examples of the new task: {_TABLES}, that of the target among them; - reads "
        "a stream.",
    ),
]
OutputOption = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="FILE", help="A .csv, .parquet or .jsonl; - writes a stream."
    ),
]
ExplainedArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help=f"The examples whose answers are explained: {_TABLES}; - reads a stream.",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="The class that is explained, the predicted one unless given; of a regression with "
        "several outputs, the number of one, from 1."
    ),
]


def adapt(
    run: FolderArgument,
    support: SupportOption,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the adapted network is written."
        ),
    ],
    ensemble: EnsembleOption = True,
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
    raw = _read(support, format_, model.trained.inputs, with_targets=True)
    adapted = model.adapt_to(raw)
    adapted.save(output)
    classes = ""
    if adapted.labels is not None:
        listed = ", ".join(map(str, adapted.labels[:10].tolist()))
        more = ", …" if len(adapted.labels) > 10 else ""
        classes = f" of {len(adapted.labels)} classes ({listed}{more})"
    console.print(
        f"{output}: adapted to {len(raw)} examples{classes}; `raymeta predict {output} FILE` "
        f"predicts others; {_likeness(adapted.familiarity)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def predict(
    adapted: AdaptedArgument,
    examples: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help=f"The examples to predict: {_TABLES}; - reads a stream."
        ),
    ] = _STREAM,
    output: OutputOption = _STREAM,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also writes intervals (lower, upper), or of classes those in the prediction set, "
            "that hold the truth with this probability over new tasks; such as 0.9."
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Answer each time step of a stream as soon as it comes, a row in and a row out: "
            "what is predicted of the sequence so far.",
        ),
    ] = False,
    format_: FormatOption = "csv",
) -> None:
    """Predict examples of a task by a network that was adapted to it.

    One row an example comes out, in the order of their first rows: the sequence's id, the
    prediction, and the probability of each class.
    """
    open_console()
    from raymeta.inference.files import load_adapted  # noqa: PLC0415  (torch takes seconds)
    from raymeta.inference.tables import predictions  # noqa: PLC0415

    if follow and (examples, output, coverage) != (_STREAM, _STREAM, None):
        raise DataError(
            "--follow answers from standard input to standard output, without intervals; leave "
            "FILE, --output and --coverage out"
        )
    written = _format_of(output, format_)
    network = load_adapted(adapted)
    familiarity = network.familiarity
    if familiarity is not None and familiarity.is_unlike_training:
        warnings.warn(f"{adapted}: {familiarity.warning}", DataWarning, stacklevel=1)
    if follow:
        _follow(network, written)
        return
    raw = _read(examples, format_, network.trained.inputs, with_targets=False)
    _write(predictions(network, raw, coverage), output, written)


def _follow(network: Adapted, kind: Format) -> None:
    """Answers the rows of standard input one by one, until it ends or nobody reads the answers."""
    from raymeta.inference.following import follow  # noqa: PLC0415  (slow)

    if kind == "parquet":
        raise DataError("--follow reads rows as they come: --format must be csv or jsonl")
    if sys.stdin.isatty():
        raise DataError("give the rows as a stream: … | raymeta predict ADAPTED --follow")
    source = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    try:
        for line in follow(network, source, kind):
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # as `head` does; Python would complain of it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def forecast(
    run: FolderArgument,
    history: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help=f"The pasts of the series: {_TABLES}; - reads a stream."
        ),
    ] = _STREAM,
    output: OutputOption = _STREAM,
    known: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What is known of the steps to come: the columns of tasks.known, a row a step.",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Adds intervals that hold a value to come with this probability, such as 0.8."
        ),
    ] = None,
    ensemble: EnsembleOption = True,
    format_: FormatOption = "csv",
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Forecast series by a finished run with `kind: forecast`, from their pasts.

    A table has one row a step, with the experiment's own columns. One row a series and step to come
    comes out: the series' name, the step, its time where the steps are even, the forecast, and its
    quantiles if the network gives them.
    """
    open_console()
    from raymeta.data.readers.arrow import read_columns  # noqa: PLC0415  (slow)
    from raymeta.inference.files import load_forecaster  # noqa: PLC0415  (torch takes seconds)
    from raymeta.inference.horizon import Known  # noqa: PLC0415  (slow)

    written = _format_of(output, format_)
    network = load_forecaster(run, ensemble=ensemble, runs_dir=runs_dir)
    with _input_file(history, format_) as (file, place):
        table = read_columns(file, network.columns, place)
        ahead = None
        if known is not None:
            ahead = Known(read_columns(path_at(known)), path_at(known))
        found = network.forecast_table(table, place, known=ahead, coverage=coverage)
    _write(found.to_table(), output, written)


def attribute(
    adapted: AdaptedArgument,
    examples: ExplainedArgument = _STREAM,
    output: OutputOption = _STREAM,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="HTML", help="Also draws them, on a page of its own."),
    ] = None,
    target: TargetOption = None,
    method: Annotated[
        Literal["integrated_gradients", "occlusion"],
        typer.Option(help="Gradients along the way from the baseline, or windows replaced by it."),
    ] = "integrated_gradients",
    baseline: Annotated[
        Literal["support", "zeros"],
        typer.Option(help="The mean of the support set, or zeros in standardised units."),
    ] = "support",
    window: Annotated[
        int | None,
        typer.Option(
            help="Time steps that are occluded at once; a tenth of the longest example unless "
            "given."
        ),
    ] = None,
    format_: FormatOption = "csv",
) -> None:
    """Show which time steps, channels or words made an adapted network's answers.

    One row a time step comes out: the sequence's id (or the example's number), the step, the class
    that is explained, and what each channel did for its probability; of a regression, for the
    predicted value. An example's attributions by integrated gradients add up to what its answer
    differs from the baseline's.
    """
    console = open_console()
    from raymeta.inference.explanation_tables import attribution_table  # noqa: PLC0415
    from raymeta.inference.files import load_adapted  # noqa: PLC0415
    from raymeta.report.attribution_page import attribution_page  # noqa: PLC0415  (slow)

    written = _format_of(output, format_)
    if plot is not None and not path_at(plot).name.endswith(".html"):
        raise DataError(f"{plot}: must end in .html, as a page of --plot")
    network = load_adapted(adapted)
    inputs = network.trained.inputs
    raw = _read(examples, format_, inputs, with_targets=False)
    found = network.attribute(
        raw,
        _target(target, network.labels, network.trained.recipe.spec.num_outputs),
        method=method,
        baseline=baseline,
        window=window,
    )
    _write(attribution_table(found, raw, inputs), output, written)
    if plot is not None:
        write_file(path_at(plot), attribution_page(found).encode())
        if output != _STREAM:
            console.print(f"{plot}: {len(raw)} examples", highlight=False, markup=False)


def influence(
    run: FolderArgument,
    support: SupportOption,
    examples: ExplainedArgument = _STREAM,
    output: OutputOption = _STREAM,
    target: TargetOption = None,
    ensemble: EnsembleOption = True,
    format_: FormatOption = "csv",
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Show which support examples made the answers: adapt again without each of them.

    One row an example and support example comes out: by how much the probability of the predicted
    class (of a regression, the value) is greater because of the support example.
    """
    open_console()
    from raymeta.inference import files  # noqa: PLC0415  (torch takes seconds to import)
    from raymeta.inference.explanation_tables import influence_table  # noqa: PLC0415

    written = _format_of(output, format_)
    if support == examples == _STREAM:
        raise DataError("--support and FILE cannot both be the stream; name a file for one")
    model = files.load(run, ensemble=ensemble, runs_dir=runs_dir)
    inputs = model.trained.inputs
    known = _read(support, format_, inputs, with_targets=True)
    raw = _read(examples, format_, inputs, with_targets=False)
    labels = known.y if model.trained.is_classification else None
    found = model.influence(
        known, x=raw, target=_target(target, labels, model.trained.recipe.spec.num_outputs)
    )
    _write(influence_table(found, known, raw, inputs), output, written)


def _likeness(familiarity: Familiarity | None) -> str:
    """Says whether support examples look like meta-training; warnings say more."""
    if familiarity is None:
        return (
            "whether they look like the tasks of meta-training is not known: the run was "
            "meta-tested by an older raymeta; `raymeta evaluate RUN` makes it known"
        )
    likeness = "unlike" if familiarity.is_unlike_training else "like"
    return f"they are {likeness} the tasks of meta-training (p = {familiarity.p_value:.2g})"


def _read(name: str, kind: Format, inputs: Inputs, *, with_targets: bool) -> RawExamples:
    """The examples in a file, or in the standard input."""
    from raymeta.inference.tables import table_of_examples  # noqa: PLC0415  (slow)

    with _input_file(name, kind) as (file, place):
        return table_of_examples(file, inputs, with_targets=with_targets, place=place)


@contextmanager
def _input_file(name: str, kind: Format) -> Iterator[tuple[AnyPath, AnyPath]]:
    """A file, or the standard input as one, and what messages call it."""
    if name != _STREAM:
        yield path_at(name), path_at(name)
        return
    if sys.stdin.isatty():
        raise DataError("name a file of examples, or give them as a stream: … < examples.csv")
    with TemporaryDirectory(prefix="raymeta-") as folder:
        file, size = Path(folder) / f"stream.{kind}", 0
        with file.open("wb") as stream:
            while part := sys.stdin.buffer.read(_PART_BYTES):
                size += len(part)
                if size > bounds.TEXT_BYTES:  # `yes | raymeta predict` never ends
                    raise DataError(
                        f"standard input: has more than {bounds.TEXT_BYTES} bytes; give fewer "
                        "examples at a time"
                    )
                stream.write(part)
        yield file, Path("standard input")


def _format_of(output: str, kind: Format) -> Format:
    """Finds the output format before any work is done."""
    from raymeta.inference.tables import format_of  # noqa: PLC0415  (slow)

    return kind if output == _STREAM else format_of(path_at(output))


def _write(table: Any, output: str, kind: Format) -> None:
    """Writes a table to a file, or to the standard output."""
    from raymeta.inference.tables import table_bytes  # noqa: PLC0415  (slow)

    content = table_bytes(table, kind)
    if output == _STREAM:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_file(path_at(output), content)


def _target(text: str | None, labels: Iterable[Any] | None, num_outputs: int) -> Any:
    """Converts `--target` to the network's class (which may be a number) or output index."""
    if text is None:
        return None
    if labels is not None:
        return next((label for label in labels if str(label) == text), text)
    if not text.isdecimal() or not 1 <= int(text) <= num_outputs:
        raise DataError(
            f"--target must be the number of an output, from 1 to {num_outputs}, but got {text!r}"
        )
    return int(text) - 1
