"""Does `pen` reach its goals on new characters by new writers?

    python scripts/prove_pen.py [--deals 3] [--seeds 3] [--sealed] [--folder DIR] [--set KEY=VALUE]

Trains the experiment's own configuration as long as its refit does, from several seeds on several
deals of the data (`tasks.split_seed`), and judges it on the meta-test of each deal beside

- nearest neighbour by DTW, which needs no training;
- a plain prototypical network: no setting but the file's `pen-maml` and the two-way GRU with
  attention, trained from one seed for as much of the processor as one of the trainings took
  (`--without-plain` leaves it out).

The intervals of a deal are over its new writers and characters and over trainings; those of the
means are over deals (Student's t).  The search plays no part: it can only choose the file's own
configuration or one that meta-validation prefers.  Nothing is chosen by the meta-test.

With `--folder` every training is kept there as a checkpoint, and what is there is not trained anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.evaluation.controls.time_warping import TimeWarping
from raymeta.evaluation.ensemble import ensemble_curves
from raymeta.evaluation.scores import Score
from raymeta.experiment.file import load_experiment, with_values
from raymeta.experiment.schema import Experiment
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import path_at
from raymeta.training.curves import adaptation_curves
from raymeta.training.trainer import Trainer, build_trainer

GOAL = 0.90
CHUNK = 50  # meta-steps between two looks at the clock, and between checkpoints
PLAIN = {
    "search.space": {},
    "learner": "prototypes",
    "model.bidirectional": True,
    "model.pooling": "attention",
    "training.meta_batch_size": 16,
    "training.outer_lr": 0.003,
}
MEAN, ENSEMBLE, DTW, NETWORK = "mean of trainings", "ensemble", "DTW", "plain prototypical network"


def of_deal(experiment: Experiment, deal: int, seed: int) -> Experiment:
    """The experiment on a deal, with the refit's steps, from a seed, without a search."""
    values = {
        "search.space": {},
        "tasks.split_seed": deal,
        "training.seed": seed,
        "training.meta_steps": experiment.refit_meta_steps,
    }
    return with_values(experiment, values)


def trained(experiment: Experiment, file: Path | None) -> tuple[Trainer, float]:
    """A finished training, and the seconds of the processor that it took.

    It goes on from the checkpoint in `file`, and keeps one there after every `CHUNK` meta-steps.
    """
    trainer, seconds = build_trainer(experiment), 0.0
    clock = None if file is None else file.with_suffix(".seconds")
    if file is not None and clock is not None and file.is_file():
        trainer.restore(file.read_bytes())
        seconds = float(clock.read_text(encoding="utf-8"))
    while trainer.step < experiment.training.meta_steps:
        start = time.process_time()
        trainer.train(CHUNK)
        seconds += time.process_time() - start
        if file is not None and clock is not None:
            write_file(path_at(str(file)), trainer.serialize())
            clock.write_text(repr(seconds), encoding="utf-8")
    return trainer, seconds


def trained_for(experiment: Experiment, seconds: float) -> Trainer:
    """A training that ends, its learning rate at zero, after the given processor's seconds."""
    probe = build_trainer(experiment)
    probe.train(5)
    start = time.process_time()
    probe.train(CHUNK)
    step_s = (time.process_time() - start) / CHUNK
    steps = max(1, round(seconds / step_s))
    trainer = build_trainer(with_values(experiment, {"training.meta_steps": steps}))
    trainer.train(steps)
    return trainer


def network(trainer: Trainer) -> Network:
    """The network that the meta-test judges."""
    return Network(trainer.tasks, trainer.recipe, trainer.meta_params)


def judged(
    experiment: Experiment, deal: int, seeds: int, folder: Path | None, with_plain: bool
) -> dict[str, Any]:
    """The scores on one deal's meta-test: each `Score` as a dictionary, by contestant."""
    torch.set_num_threads(1)
    trainings, seconds = [], []
    for seed in range(seeds):
        name = f"deal{deal}-seed{seed}.safetensors"
        trainer, spent = trained(
            of_deal(experiment, deal, seed), None if folder is None else folder / name
        )
        trainings.append(trainer)
        seconds.append(spent)
        val = trainer.validate()[experiment.metric]
        print(f"deal {deal}, seed {seed}: validation {val:.3f}, {spent:.0f} s", flush=True)
    networks = [network(trainer) for trainer in trainings]
    tasks, episodes = trainings[0].tasks, experiment.evaluation.num_episodes
    every = torch.stack(
        [
            adaptation_curves(
                n.tasks, n.recipe, n.params, "test", num_episodes=episodes, num_steps=0
            )
            for n in networks
        ]
    )[..., 0]
    scores = {ENSEMBLE: ensemble_curves(networks, episodes, 0)[..., 0]}
    contest = Contest(networks[0], every.mean(dim=0).unsqueeze(-1), {})
    scores[DTW] = TimeWarping().judge(contest).scores
    if with_plain:
        plain = with_values(
            load_experiment("pen-maml"),
            {
                **PLAIN,
                "tasks.split_seed": deal,
                "evaluation.sealed": experiment.evaluation.sealed,
            },
        )
        own = trained_for(plain, statistics.fmean(seconds))
        print(f"deal {deal}: plain network, {own.step} meta-steps", flush=True)
        scores[NETWORK] = adaptation_curves(
            own.tasks, own.recipe, own.meta_params, "test", num_episodes=episodes, num_steps=0
        )[..., 0]
    units = tasks.query_units("test", episodes)
    of_trainings = units.of_trainings(seeds)
    found = {
        "deal": deal,
        "seconds": statistics.fmean(seconds),
        "seeds": every.mean(dim=(1, 2)).tolist(),
        MEAN: asdict(Score.over(every, of_trainings)),
    }
    for name, values in scores.items():
        found[name] = asdict(Score.over(values, units))
        if name != ENSEMBLE:
            lead = Score.over(scores[ENSEMBLE] - values, units)
            found[f"lead over {name}"] = asdict(lead)
            found[f"lead of the mean over {name}"] = asdict(
                Score.over(every - values, of_trainings)
            )
    return found


def over_deals(values: Sequence[float]) -> str:
    """The mean with its 95 % interval over deals."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return f"{mean:.3f}"
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return f"{mean:.3f} ± {half:.3f}"


def shown(score: dict[str, float | None]) -> str:
    """A score of one deal."""
    half = score["half_width"]
    return f"{score['mean']:.3f}" + ("" if half is None else f" ± {half:.3f}")


def show(deals: Sequence[dict[str, Any]], experiment: Experiment) -> None:
    """The table."""
    sealed = ", sealed" if experiment.evaluation.sealed else ""
    title = (
        f"{experiment.name}{sealed}: {len(deals[0]['seeds'])} trainings of "
        f"{experiment.refit_meta_steps} meta-steps on each of {len(deals)} deals"
    )
    table = Table(title=title, box=None)
    for column in ("", "mean of deals", *(f"deal {found['deal']}" for found in deals)):
        table.add_column(column)
    rows = [key for key, value in deals[0].items() if isinstance(value, dict)]
    for row in rows:
        means = [found[row]["mean"] for found in deals]
        table.add_row(row, over_deals(means), *(shown(found[row]) for found in deals))
    console = Console()
    console.print(table)
    for row in (MEAN, ENSEMBLE):
        mean = statistics.fmean(found[row]["mean"] for found in deals)
        console.print(
            f"{row}: {'holds' if round(mean, 3) >= GOAL else 'falls short'} (goal {GOAL:.2f})"
        )


def main() -> None:
    """Trains, judges and shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="pen")
    parser.add_argument("--deals", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sealed", action="store_true", help="on the sealed deals")
    parser.add_argument("--without-plain", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--folder", type=Path, help="of checkpoints")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sealed = ["evaluation.sealed=true"] if options.sealed else []
    experiment = load_experiment(options.experiment, [*options.overrides, *sealed])
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [
            pool.submit(
                judged, experiment, deal, options.seeds, options.folder, not options.without_plain
            )
            for deal in range(options.deals)
        ]
        found = [job.result() for job in jobs]
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found, experiment)


if __name__ == "__main__":
    main()
