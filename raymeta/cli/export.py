"""The command that writes a trained network for other programs and other people."""

from __future__ import annotations

from typing import Annotated

import typer

from raymeta.cli.options import EnsembleOption, RunsDirOption, open_console
from raymeta.errors import DataError
from raymeta.run_folder import DEFAULT_ROOT


def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTED",
            help="A file that `raymeta adapt` wrote; with --adapts or --hub a run.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the ONNX graph is written; of an adapted network also a .pt2; with --hub "
            "a new folder.",
        ),
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
    hub: Annotated[
        bool,
        typer.Option(
            "--hub",
            help="Of a run: a folder for others, in the form of the Hugging Face Hub, with a model "
            "card; raymeta.load opens it.",
        ),
    ] = False,
    ensemble: EnsembleOption = True,
    runs_dir: RunsDirOption = str(DEFAULT_ROOT),
) -> None:
    """Write a network for other programs: as an ONNX graph, or as a folder for others to load.

    The graph has the preparation of its examples in it.  Inputs are `x`, double [examples, steps,
    channels], and `lengths`, the steps of each example; outputs are `prediction` and
    `probabilities`.  Categories come in as numbers, `categories`, and texts as the numbers of their
    tokens, `x`: the graph's metadata say which is which.  `times` are those of the steps, of dates
    in seconds.  It needs `pip install 'raymeta[onnx]'`.  A .pt2 is for torch.export.load, and only
    for those who trust you: torch may run what is in it.
    """
    console = open_console()
    if adapts + stream + hub > 1:
        raise DataError(
            "--stream is of an adapted network, --adapts and --hub are of a run; give one of them"
        )
    if hub and not ensemble:
        raise DataError("--first does not go with --hub: who loads the folder chooses")
    from raymeta.inference import files  # noqa: PLC0415  (torch takes seconds to import)

    if hub:
        from raymeta.report.hub import write_hub_folder  # noqa: PLC0415  (it imports Ray)

        write_hub_folder(network, output, runs_dir=runs_dir)
        what = f"raymeta.load opens it; choose its license in {output}/README.md"
    elif adapts:
        files.load(network, ensemble=ensemble, runs_dir=runs_dir).export(output)
        what = "adapts to support_x and support_y, and predicts x"
    else:
        files.load_adapted(network).export(output, stream=stream)
        what = "predicts a time step after another" if stream else "predicts x"
    console.print(f"{output}: {what}", highlight=False, markup=False, soft_wrap=True)
