"""Sine waves by the published protocol: raymeta's learners beside the figures of their papers.

    python scripts/published.py [--steps 60000] [--seeds 1] [--only ROW …] [--json FILE]
    python scripts/published.py --show FILE

The protocol is that of Finn et al. 2017, section 5.1, which the others took over: amplitudes from
0.1 to 5, phases from 0 to π, K points in [-5, 5], one adaptation step, the squared error on other
points of the wave.  The network has two layers of 40 units with tanh, where the papers have ReLU.
The papers' rates suit their network.  So each row trains a tenth of the steps with each of a few
pairs of rates, takes the pair with the least error on waves of meta-validation, and trains anew.
The waves that a figure is of choose nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from raymeta.episodes import Split
from raymeta.experiment.file import load_experiment
from raymeta.training.curves import adaptation_curves
from raymeta.training.trainer import build_trainer

NUM_WAVES = 2000  # of the meta-test, and of meta-validation
RATES = tuple(itertools.product((0.01, 0.05), (0.001, 0.003)))  # inner, outer; the papers' first
CHOICE_SHARE = 10  # a choice of rates takes one step in so many, for each pair
REPORT_EVERY = 5000  # meta-steps
Z95 = 1.96


@dataclass(frozen=True)
class Row:
    """A figure of a paper, and how raymeta is set to reach it."""

    learner: str
    shots: int
    published: float
    source: str

    @property
    def label(self) -> str:
        """The label in the table."""
        return f"{self.learner}, {self.shots} points"


ROWS = (
    Row("maml", 5, 1.13, "Li et al. 2017"),
    Row("meta_sgd", 5, 0.90, "Li et al. 2017"),
    # No table of its paper has sine waves.
    Row("maml_plus_plus", 5, 0.34, "raymeta's own aim"),
    Row("maml", 10, 0.29, "Zintgraf et al. 2019"),
)


@dataclass(frozen=True)
class Result:
    """The mean squared error over waves, half its 95 % interval, and how it came about."""

    error: float
    half: float
    minutes: float
    inner_lr: float
    outer_lr: float


def squared_error(row: Row, steps: int, seed: int) -> Result:
    """Chooses the rates of a row on meta-validation, trains with them, and is judged."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    short = max(1, steps // CHOICE_SHARE)
    inner_lr, outer_lr = min(
        RATES, key=lambda rates: trained_error(row, short, seed, rates, "val")[0]
    )
    error, half = trained_error(row, steps, seed, (inner_lr, outer_lr), "test")
    return Result(error, half, (time.perf_counter() - start) / 60, inner_lr, outer_lr)


def trained_error(
    row: Row, steps: int, seed: int, rates: tuple[float, float], split: Split
) -> tuple[float, float]:
    """Trains anew; the mean over a split's waves and half its 95 % interval."""
    experiment = load_experiment(
        "sinusoid",
        [
            f"learner={row.learner}",
            f"{row.learner}.adaptation_steps=1",
            f"{row.learner}.inner_clip=null",
            f"{row.learner}.inner_lr={rates[0]}",
            "evaluation.adaptation_steps=1",
            f"tasks.num_shots={row.shots}",
            f"training.meta_steps={steps}",
            f"training.seed={seed}",
            f"training.outer_lr={rates[1]}",
            "search.space={}",
        ],
    )
    trainer = build_trainer(experiment)
    for begin in range(0, steps, REPORT_EVERY):
        loss = trainer.train(min(REPORT_EVERY, steps - begin))["train_loss"]
        print(f"{row.label}, seed {seed}, rates {rates}, step {begin}: {loss:.3f}", flush=True)
    curves = adaptation_curves(
        trainer.tasks,
        trainer.recipe,
        trainer.meta_params,
        split,
        num_episodes=NUM_WAVES,
        num_steps=1,
    )
    errors = curves[..., -1].mean(dim=1)
    half = Z95 * float(errors.std()) / math.sqrt(NUM_WAVES)
    print(
        f"{row.label}, rates {rates}: {split} {float(errors.mean()):.3f} ± {half:.3f}", flush=True
    )
    return float(errors.mean()), half


def show(found: dict[str, Any]) -> None:
    """The table."""
    title = f"squared error after one step; {found['steps']} meta-steps, {NUM_WAVES} waves"
    table = Table(title=title, box=None)
    for name in (
        "learner",
        "published",
        "",
        "seen, ± 95 % over waves",
        "",
        "inner and outer rate",
        "minutes",
    ):
        table.add_column(name)
    for row in ROWS:
        results = [Result(**result) for result in found["results"].get(row.label, ())]
        if not results:
            continue
        mean = statistics.fmean(result.error for result in results)
        half = statistics.fmean(result.half for result in results)
        minutes = statistics.fmean(result.minutes for result in results)
        verdict = "holds" if mean <= row.published else "falls short"
        rates = ", ".join(sorted({f"{r.inner_lr}, {r.outer_lr}" for r in results}))
        table.add_row(
            row.label,
            f"{row.published:.2f}",
            row.source,
            f"{mean:.3f} ± {half:.3f}",
            verdict,
            rates,
            f"{minutes:.0f}",
        )
    Console().print(table)


def main() -> None:
    """Trains the rows, as many at a time as there are cores, or shows an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=1)
    labels = [row.label for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=labels, default=labels, metavar="ROW")
    parser.add_argument(
        "--json", type=Path, help="file that gets the results, beside its other rows"
    )
    parser.add_argument("--show", type=Path, help="an earlier run's file")
    options = parser.parse_args()
    if options.show is not None:
        show(json.loads(options.show.read_text(encoding="utf-8")))
        return
    rows = [row for row in ROWS if row.label in options.only]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (row.label, seed): pool.submit(squared_error, row, options.steps, seed)
            for row in rows
            for seed in range(options.seeds)
        }
        results = {
            row.label: [asdict(jobs[row.label, s].result()) for s in range(options.seeds)]
            for row in rows
        }
    found: dict[str, Any] = {"commands": [], "steps": options.steps, "results": {}}
    if options.json is not None and options.json.exists():
        before = json.loads(options.json.read_text(encoding="utf-8"))
        found = before if before["steps"] == options.steps else found
    found["commands"].append(shlex.join(["python", *sys.argv]))
    found["results"] |= results
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
