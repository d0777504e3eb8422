"""Draws README's picture: a meta-test episode of a `pen-maml` run, and accuracy by adaptation step.

    python scripts/draw_episode.py RUN [--episode N] [--output FILE]

The strokes, the predictions and the curves are those of the run; nothing is drawn by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from raymeta.api import load_report
from raymeta.evaluation.networks import open_networks
from raymeta.evaluation.scores import Row
from raymeta.run_folder import Run

CELL, GAP, TOP = 84, 10, 46
PLOT_WIDTH, PLOT_HEIGHT = 330, 230
COLOURS = {"tuned": "#0b6e4f", "default": "#b5651d", "random": "#888888", "joint": "#3b5bdb"}
RIGHT, WRONG, INK, PALE = "#0b6e4f", "#c92a2a", "#222222", "#cccccc"


def text(x: float, y: float, content: str, *, size: int = 13, colour: str = INK) -> str:
    """A line of text, centred on `x`."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}" text-anchor="middle">'
        f"{content}</text>"
    )


def character(x: float, y: float, steps: Tensor) -> Iterator[str]:
    """The strokes of `steps` `[T, 5]` (x, y, pen on paper, direction) in a cell at (x, y)."""
    size = f'width="{CELL}" height="{CELL}" rx="6"'
    yield f'<rect x="{x}" y="{y}" {size} fill="#fafafa" stroke="{PALE}"/>'
    points = steps[:, :2]
    low, high = points.min(dim=0).values, points.max(dim=0).values
    scale = (CELL - 24) / float((high - low).max())
    centred = (points - (low + high) / 2) * scale + torch.tensor([x + CELL / 2, y + CELL / 2])
    for before, after, pen in zip(centred[:-1], centred[1:], steps[1:, 2], strict=True):
        if pen > 0.5:
            (x1, y1), (x2, y2) = before.tolist(), after.tolist()
            yield (
                f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{INK}" '
                'stroke-width="2.4" stroke-linecap="round"/>'
            )


def curves(x: float, y: float, rows: Sequence[Row]) -> Iterator[str]:
    """Accuracy after 0 … S adaptation steps."""
    last = max(len(row.curve) for row in rows) - 1
    for value in (0.2, 0.4, 0.6, 0.8):
        at = y + PLOT_HEIGHT * (1 - value)
        yield f'<line x1="{x}" y1="{at}" x2="{x + PLOT_WIDTH}" y2="{at}" stroke="{PALE}"/>'
        yield text(x - 20, at + 4, f"{value:.1f}", size=12)
    for number, row in enumerate(rows):
        colour = COLOURS[row.name]
        points = " ".join(
            f"{x + PLOT_WIDTH * step / last:.1f},{y + PLOT_HEIGHT * (1 - score.mean):.1f}"
            for step, score in enumerate(row.curve)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        label = f"{row.label.split(' (')[0]}  {row.curve[-1].mean:.3f}"
        yield (
            f'<text x="{x + PLOT_WIDTH}" y="{y + PLOT_HEIGHT - 32 + 15 * number}" font-size="12" '
            f'fill="{colour}" text-anchor="end">{label}</text>'
        )
    for step in range(0, last + 1, 2):
        yield text(x + PLOT_WIDTH * step / last, y + PLOT_HEIGHT + 18, str(step), size=12)
    yield text(x + PLOT_WIDTH / 2, y + PLOT_HEIGHT + 38, "adaptation steps")


def draw(run: Run, episode: int) -> str:
    """The picture as SVG."""
    report = load_report(run)
    if report is None:
        raise SystemExit(f"error: {run.path} is not finished; go on with `{run.resume_command}`")
    own, _ = open_networks(run, torch.device("cpu"), print)
    recipe, episodes = own.recipe, own.tasks.episodes("test", [episode])
    support, query = episodes.support, episodes.query
    *_, outputs = recipe.learner.query_outputs(
        recipe.spec, recipe.problem, own.params, support, query, recipe.num_steps
    )
    predicted = outputs.argmax(dim=-1)[0]
    ways = recipe.spec.num_outputs
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:ways]
    first = [int((query.y[0] == way).nonzero()[0]) for way in range(ways)]
    parts: list[str] = []
    width = ways * (CELL + GAP)
    parts.append(text(20 + width / 2, 30, "support: one example of each new character", size=15))
    for way in range(ways):
        number = int((support.y[0] == way).nonzero()[0])
        x = 20 + way * (CELL + GAP)
        parts += character(x, TOP, support.x[0, number])
        parts.append(text(x + CELL / 2, TOP + CELL + 18, letters[way], size=15))
    middle = TOP + CELL + 50
    adapts = f"{recipe.num_steps} gradient steps on" if recipe.num_steps else "one look at"
    steps = f"▼ {adapts} the support set ▼"
    parts.append(text(20 + width / 2, middle, steps, size=14, colour=RIGHT))
    parts.append(text(20 + width / 2, middle + 30, "queries: other examples of them", size=15))
    for way, number in enumerate(first):
        x, y = 20 + way * (CELL + GAP), middle + 44
        answer = int(predicted[number])
        parts += character(x, y, query.x[0, number])
        sign, colour = ("✓", RIGHT) if answer == way else ("✗", WRONG)
        parts.append(
            text(x + CELL / 2, y + CELL + 18, f"{letters[answer]} {sign}", size=15, colour=colour)
        )
    rows = [row for row in report.meta_test.rows if row.name in COLOURS and len(row.curve) > 1]
    left = width + 90
    heading = f"accuracy over {report.meta_test.num_episodes} episodes"
    parts.append(text(left + PLOT_WIDTH / 2, 30, heading, size=15))
    parts += curves(left, TOP, rows)
    size = f'width="{left + PLOT_WIDTH + 20}" height="{middle + CELL + 80}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episode", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("episode.svg"))
    arguments = parser.parse_args()
    run = Run.open(str(arguments.run), arguments.run.parent)
    arguments.output.write_text(draw(run, arguments.episode), encoding="utf-8")


if __name__ == "__main__":
    main()
