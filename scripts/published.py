"""Sine waves by the published protocol: raymeta's learners beside the figures of their papers.

    python scripts/published.py [--steps 60000] [--seeds 1] [--json FILE]
    python scripts/published.py --show FILE

The protocol is that of Finn et al. 2017, section 5.1, which the others took over: amplitudes from
0.1 to 5, phases from 0 to π, K points in [-5, 5], one adaptation step, the squared error on other
points of the wave.  The network has two layers of 40 units with tanh, where the papers have ReLU.
The settings of each learner are its paper's where it names them; none was chosen by the waves that
a figure is of.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from raymeta.experiment.file import load_experiment
from raymeta.training.curves import adaptation_curves
from raymeta.training.trainer import build_trainer

NUM_WAVES = 2000  # of the meta-test
REPORT_EVERY = 5000  # meta-steps
Z95 = 1.96


@dataclass(frozen=True)
class Row:
    """A figure of a paper, and how raymeta is set to reach it."""

    learner: str
    shots: int
    published: float
    source: str
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """As the table shows it."""
        return f"{self.learner}, {self.shots} points"


ROWS = (
    Row("maml", 5, 1.13, "Li et al. 2017", ("maml.inner_lr=0.01",)),
    Row("meta_sgd", 5, 0.90, "Li et al. 2017", ("meta_sgd.inner_lr=0.01",)),
    # No table of its paper has sine waves.
    Row("maml_plus_plus", 5, 0.34, "raymeta's own aim", ("maml_plus_plus.inner_lr=0.01",)),
    Row("maml", 10, 0.29, "Zintgraf et al. 2019", ("maml.inner_lr=0.01",)),
)


def squared_error(row: Row, steps: int, seed: int) -> tuple[float, float, float]:
    """The mean over the meta-test's waves, half its 95 % interval, and the seconds of training."""
    torch.set_num_threads(1)
    experiment = load_experiment(
        "sinusoid",
        [
            f"learner={row.learner}",
            f"{row.learner}.adaptation_steps=1",
            f"{row.learner}.inner_clip=null",
            "evaluation.adaptation_steps=1",
            f"tasks.num_shots={row.shots}",
            f"training.meta_steps={steps}",
            f"training.seed={seed}",
            "training.outer_lr=0.001",
            "search.space={}",
            *row.overrides,
        ],
    )
    trainer = build_trainer(experiment)
    start = time.perf_counter()
    for begin in range(0, steps, REPORT_EVERY):
        loss = trainer.train(min(REPORT_EVERY, steps - begin))["train_loss"]
        print(f"{row.label}, seed {seed}, step {begin}: {loss:.3f}", flush=True)
    seconds = time.perf_counter() - start
    curves = adaptation_curves(
        trainer.tasks,
        trainer.recipe,
        trainer.meta_params,
        "test",
        num_episodes=NUM_WAVES,
        num_steps=1,
    )
    errors = curves[..., -1].mean(dim=1)
    half = Z95 * float(errors.std()) / math.sqrt(NUM_WAVES)
    return float(errors.mean()), half, seconds


def show(found: dict[str, Any]) -> None:
    """The table."""
    title = f"squared error after one step; {found['steps']} meta-steps, {NUM_WAVES} waves"
    table = Table(title=title, box=None)
    for name in (
        "learner",
        "published",
        "",
        "seen: mean of seeds ± 95 % over waves",
        "",
        "minutes",
    ):
        table.add_column(name)
    for row, results in zip(ROWS, found["results"], strict=True):
        mean = statistics.fmean(result[0] for result in results)
        half = statistics.fmean(result[1] for result in results)
        minutes = statistics.fmean(result[2] for result in results) / 60
        verdict = "holds" if mean <= row.published else "falls short"
        seen = f"{mean:.3f} ± {half:.3f}"
        table.add_row(
            row.label, f"{row.published:.2f}", row.source, seen, verdict, f"{minutes:.0f}"
        )
    Console().print(table)


def main() -> None:
    """Trains all rows, as many at a time as there are cores, or shows an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--show", type=Path, help="an earlier run's file")
    options = parser.parse_args()
    if options.show is not None:
        show(json.loads(options.show.read_text(encoding="utf-8")))
        return
    command = f"python scripts/published.py --steps {options.steps} --seeds {options.seeds}"
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            pool.submit(squared_error, row, options.steps, seed): (number, seed)
            for seed in range(options.seeds)
            for number, row in enumerate(ROWS)
        }
        by_place = {jobs[job]: job.result() for job in as_completed(jobs)}
    results = [
        [by_place[number, seed] for seed in range(options.seeds)] for number in range(len(ROWS))
    ]
    found = {"command": command, "steps": options.steps, "results": results}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
