"""Does meta-validation rank configurations as the meta-test does, and which learner wins?

    python scripts/bench_selection.py [EXPERIMENT] [--quick]

Draws configurations at random from the experiment's search space, the file's own first, as many of
each learner as of every other; trains each on several deals of the data (`tasks.split_seed`); and
scores it on the meta-validation that a search would see and on the meta-test.  It prints

- Spearman's rank correlation between the two, within a deal and over the means of the deals, with
  its 95 % bootstrap interval over configurations;
- what the best configuration of each learner by validation reaches on the meta-test, beside the
  controls that need no training; the interval is over deals (Student's t).

Nothing is chosen by the meta-test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr, t

from raymeta.evaluation import controls
from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.experiment.file import load_experiment, with_values
from raymeta.experiment.schema import Experiment
from raymeta.search.sampling import PointSampler
from raymeta.search.space import file_point, search_space
from raymeta.training.curves import adaptation_curves
from raymeta.training.trainer import build_trainer

GOAL = 0.8  # of the rank correlation
Point = dict[str, Any]


def points(experiment: Experiment, count: int) -> list[Point]:
    """The file's own point, and random ones, in turn of each learner that is searched."""
    rng, space = np.random.default_rng(experiment.seed), search_space(experiment)
    sampler = PointSampler(space)
    found: dict[Any, list[Point]] = defaultdict(list)
    found[experiment.learner].append(dict(file_point(experiment)))
    names = sorted(experiment.learners, key=lambda name: (name != experiment.learner, name))
    while min(len(found[name]) for name in names) < math.ceil(count / len(names)):
        point = dict(sampler.draw(rng))
        found[point.get("learner", experiment.learner)].append(point)
    turns = zip(*(found[name][: math.ceil(count / len(names))] for name in names), strict=True)
    return [point for turn in turns for point in turn][:count]


def of_deal(experiment: Experiment, deal: int) -> Experiment:
    """The experiment on another deal of its data, without a search."""
    if "split_seed" not in type(experiment.tasks).model_fields:
        return with_values(experiment, {"search.space": {}, "seed": deal})
    return with_values(experiment, {"search.space": {}, "tasks.split_seed": deal})


def trained(experiment: Experiment, point: Point, deal: int) -> dict[str, float]:
    """The scores of a configuration on a deal: validation as a search sees it, and meta-test."""
    torch.set_num_threads(1)
    trainer = build_trainer(with_values(of_deal(experiment, deal), point))
    trainer.train(experiment.training.meta_steps)
    validation = trainer.validate()
    scores = adaptation_curves(
        trainer.tasks,
        trainer.recipe,
        trainer.meta_params,
        "test",
        num_episodes=experiment.evaluation.num_episodes,
        num_steps=trainer.recipe.num_steps,
    )
    metric = trainer.recipe.problem.val_metric
    return {"val": validation[metric], "test": float(scores[..., -1].mean())}


def control_scores(experiment: Experiment, deal: int) -> dict[str, float]:
    """The meta-test scores of the controls that need no training, by label."""
    torch.set_num_threads(1)
    trainer = build_trainer(of_deal(experiment, deal))
    own = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
    shape = (experiment.evaluation.num_episodes, 1, trainer.recipe.num_steps + 1)
    contest = Contest(own, torch.zeros(shape), {})
    return {
        control.label: float(control.judge(contest).scores.mean())
        for control in controls.CONTROLS
        if control.needs == "nothing" and control.serves(trainer.tasks)
    }


QUICK = [
    "training.meta_steps=10",
    "training.eval_every=10",
    "training.val_episodes=20",
    "evaluation.num_episodes=40",
]


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of more deals."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def correlation(val: np.ndarray, test: np.ndarray) -> tuple[float, float, float]:
    """Spearman's ρ and its 95 % bootstrap interval over configurations."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(val), size=len(val)) for _ in range(2000)]
    with np.errstate(invalid="ignore"):
        found = [
            float(spearmanr(val[rows], test[rows]).statistic)
            for rows in drawn
            if len(np.unique(val[rows])) > 1 and len(np.unique(test[rows])) > 1
        ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(spearmanr(val, test).statistic), float(low), float(high)


def run(experiment: Experiment, count: int, deals: int, json_file: Path | None) -> dict[str, Any]:
    """All trainings, two processes at a time; written after each one."""
    chosen = points(experiment, count)
    found: dict[str, Any] = {
        "experiment": experiment.name,
        "deals": deals,
        "points": chosen,
        "scores": [[None] * deals for _ in chosen],
        "controls": [],
    }
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2))) as pool:
        jobs = {
            pool.submit(trained, experiment, point, deal): (number, deal)
            for number, point in enumerate(chosen)
            for deal in range(deals)
        }
        judged = [pool.submit(control_scores, experiment, deal) for deal in range(deals)]
        for done, job in enumerate(as_completed(jobs), start=1):
            number, deal = jobs[job]
            found["scores"][number][deal] = job.result()
            print(
                f"{done} of {len(jobs)}: {chosen[number]}, deal {deal}: {job.result()}", flush=True
            )
            if json_file is not None:
                json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        found["controls"] = [job.result() for job in judged]
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def show(found: Mapping[str, Any], experiment: Experiment) -> None:
    """The tables."""
    console = Console()
    val, test = (
        np.array([[score[split] for score in row] for row in found["scores"]])
        for split in ("val", "test")
    )
    table = Table(title=f"{found['experiment']}: validation against meta-test", box=None)
    for column in ("over", "Spearman's ρ", "95 % interval", f"goal {GOAL}"):
        table.add_column(column)
    rows = [(f"deal {deal}", val[:, deal], test[:, deal]) for deal in range(found["deals"])]
    rows.append(("means of the deals", val.mean(axis=1), test.mean(axis=1)))
    for name, one, other in rows:
        rho, low, high = correlation(one, other)
        verdict = "holds" if round(rho, 2) >= GOAL else "falls short"
        table.add_row(name, f"{rho:.2f}", f"{low:.2f} to {high:.2f}", verdict)
    console.print(table)

    metric = experiment.problem.metric
    best = Table(title=f"{metric} on the meta-test, chosen by validation", box=None)
    for column in ("", f"mean of {found['deals']} deals", "each deal"):
        best.add_column(column)
    learners = [point.get("learner", experiment.learner) for point in found["points"]]
    sign = experiment.problem.sign
    for learner in dict.fromkeys(learners):
        mine = np.array([number for number, name in enumerate(learners) if name == learner])
        winners = mine[np.argmax(sign * val[mine], axis=0)]
        add_row(
            best, f"{learner}, best of {len(mine)}", test[winners, range(found["deals"])].tolist()
        )
    winners = np.argmax(sign * val, axis=0)
    add_row(best, f"best of all {len(learners)}", test[winners, range(found["deals"])].tolist())
    for label in found["controls"][0] if found["controls"] else ():
        add_row(best, label, [scores[label] for scores in found["controls"]])
    console.print(best)


def add_row(table: Table, label: str, values: Sequence[float]) -> None:
    """A contestant's mean with its interval, and its score on each deal."""
    mean, spread = statistics.fmean(values), half_width(list(values))
    shown = f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"
    table.add_row(label, shown, "  ".join(f"{v:.3f}" for v in values))


def main() -> None:
    """Runs the benchmark, or shows what an earlier run has found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="pen")
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--deals", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="4 configurations, 1 deal, trainings of ten steps"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path, help="an earlier run's JSON file")
    options = parser.parse_args()
    if options.quick:
        options.configurations, options.deals = 4, 1
        options.overrides = [*QUICK, *options.overrides]
    experiment = load_experiment(options.experiment, options.overrides)
    if options.show is not None:
        found = json.loads(options.show.read_text(encoding="utf-8"))
    else:
        found = run(experiment, options.configurations, options.deals, options.json)
    show(found, experiment)


if __name__ == "__main__":
    main()
