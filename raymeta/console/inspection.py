"""Prints the results of `raymeta new` and `raymeta inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from raymeta.console.tables import print_findings
from raymeta.episodes import SPLITS

if TYPE_CHECKING:  # these import torch, which `raymeta --help` must not wait for
    from raymeta.tasks.guess import Guess
    from raymeta.tasks.inspection import Inspection

_SHOWN = 3  # sequences of a class


def print_guess(console: Console, guess: Guess, file: str) -> None:
    """Prints the guessed settings and the next commands."""
    print_findings(console, guess.findings)
    console.print(
        f"\nwrote {file}; look at it, then: `raymeta inspect {file}`, `raymeta tune {file}`",
        highlight=False,
        soft_wrap=True,
    )


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Prints what a task is, the splits, the findings, and an episode."""
    console.print(inspection.task, highlight=False)
    console.print()
    console.print(_splits_table(inspection))
    dealt = inspection.dealt
    total = sum(len(chosen) for chosen in dealt.chosen.values())
    console.print(f"{total} of {dealt.num_read} sequences are used", highlight=False, style="dim")
    for reason, count in dealt.left_out.items():
        console.print(f"{count} are not: {reason}", highlight=False, style="dim", soft_wrap=True)
    console.print()
    print_findings(console, inspection.findings)
    if inspection.ways:
        console.print()
        console.print(_episode_table(inspection))


def _splits_table(inspection: Inspection) -> Table:
    dealt = inspection.dealt
    table = Table(
        title="Splits", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("")
    classes = [dealt.target] if dealt.classes else []  # a forecast has none
    for column in ("sequences", *classes, *dealt.groups, "steps", "missing"):
        table.add_column(column, justify="right", no_wrap=True)
    for split in SPLITS:
        chosen = dealt.chosen[split]
        units = [str(len(set(chosen.groups[axis]))) for axis in dealt.groups]
        lengths = chosen.lengths
        steps, missing = "", ""
        if len(chosen):
            steps = f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):.0f}"
            gaps = sum(int(np.isnan(x).sum()) for x in chosen.x if x.dtype.kind == "f")
            values = sum(x.size for x in chosen.x)
            missing = f"{100 * gaps / values:.1f} %" if gaps else "none"
        own = [str(len(set(chosen.classes)))] if dealt.classes else []
        row = [str(len(chosen)), *own, *units, steps, missing]
        table.add_row(f"meta-{split}", *row)
    return table


def _episode_table(inspection: Inspection) -> Table:
    table = Table(
        title="Episode 0 of the meta-test",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    dealt = inspection.dealt
    heads = (dealt.target, "support: adapt to these", "query: name these")
    if dealt.has_numbers:
        heads = ("", "support: adapt to these", "query: tell these numbers")
    elif not dealt.classes:
        heads = (dealt.task or "", "support: read, then adapt to", "query: read, then forecast")
    for column in heads:
        table.add_column(column, overflow="fold")
    for way in inspection.ways:
        table.add_row(way.label, _listed(way.support), _listed(way.query))
    return table


def _listed(ids: tuple[str, ...]) -> str:
    more = f"\nand {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return "\n".join(ids[:_SHOWN]) + more
