"""Do the networks of a shipped experiment beat their controls, over several deals of its data?

    python scripts/bench_shipped.py EXPERIMENT [--deals 3] [--seeds 1] [--rows FILE] [--validation]

Trains the file's own configuration on each deal (`tasks.split_seed`), and judges it on the
meta-test beside every control, without Ray.  It prints each score and each lead, the mean over the
deals with a 95 % interval (Student's t over deals).  A rows file keeps what was run: a second run
adds what is missing.  Nothing is chosen by the meta-test: `--validation` shows the score of
meta-validation alone, to compare settings by, and looks at no other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import controls_to_train, meta_test
from raymeta.experiment.file import load_experiment
from raymeta.training.trainer import Trainer, build_trainer


def trained_on(name: str, sets: list[str], deal: int, num_seeds: int) -> list[Trainer]:
    """The experiment's configuration, trained on one deal from each seed."""
    found = []
    for seed in range(num_seeds):
        experiment = load_experiment(
            name, [*sets, f"tasks.split_seed={deal}", f"training.seed={seed}"]
        )
        trainer = build_trainer(experiment)
        trainer.train(experiment.training.meta_steps)
        found.append(trainer)
    return found


def validated(name: str, sets: list[str], deal: int, num_seeds: int) -> dict[str, Any]:
    """The score on meta-validation of one deal, the mean of the seeds, as a row."""
    scores = [
        trainer.validate()[trainer.recipe.problem.val_metric]
        for trainer in trained_on(name, sets, deal, num_seeds)
    ]
    score = [statistics.mean(scores), None]
    own: dict[str, Any] = {"label": "meta-validation", "score": score, "ahead": None}
    return {"validation": own | {"own_units": {}}}


def judged(name: str, sets: list[str], deal: int, num_seeds: int) -> dict[str, Any]:
    """The rows of the meta-test on one deal, by name."""
    own, *further = [
        Network(trainer.tasks, trainer.recipe, trainer.meta_params)
        for trainer in trained_on(name, sets, deal, num_seeds)
    ]
    networks = {
        control.name: replace(own, params=control.train(own.tasks, own.recipe, torch.device("cpu")))
        for control in controls_to_train(own.tasks)
    }
    found = meta_test(
        own,
        networks,
        label="network",
        num_episodes=load_experiment(name, sets).evaluation.num_episodes,
        further=further,
    )
    return {
        row.name: {
            "label": row.label,
            "detail": row.detail,
            "score": [row.score.mean, row.score.half_width],
            "ahead": None if row.ahead is None else [row.ahead.mean, row.ahead.half_width],
            "own_units": {key: score.mean for key, score in row.own_units.items()},
        }
        for row in found.rows
    }


def over_deals(values: list[float]) -> str:
    """The mean with its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def of_deal(row: dict[str, Any]) -> str:
    """The score of one deal, and the lead of the network with its interval over units."""
    score = f"{row['score'][0]:.3f}"
    if row["ahead"] is None:
        return score
    lead, half = row["ahead"]
    return f"{score} ({lead:.3f} ± {half:.3f})" if half is not None else f"{score} ({lead:.3f})"


def table(rows: list[dict[str, Any]]) -> Table:
    """Each row of the meta-test over the deals."""
    shown = Table(box=None, pad_edge=False)
    for column in ("", "score", "network ahead by", "each deal: score (ahead by)"):
        shown.add_column(column, overflow="fold")
    for name, first in rows[0].items():
        own = [row[name] for row in rows if name in row]
        aheads = [row["ahead"][0] for row in own if row["ahead"] is not None]
        each = [", ".join(map(of_deal, own))]
        each += [
            f"{unit}: {over_deals([row['own_units'][unit] for row in own])}"
            for unit in first["own_units"]
        ]
        shown.add_row(
            first["label"],
            over_deals([row["score"][0] for row in own]),
            over_deals(aheads) if aheads else "",
            "; ".join(each),
        )
    return shown


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment")
    parser.add_argument("--deals", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--validation", action="store_true", help="no meta-test, no controls")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = validated if arguments.validation else judged
    asked = [arguments.experiment, arguments.overrides, arguments.seeds, judge.__name__]
    known: dict[int, dict[str, Any]] = {}
    if arguments.rows is not None and arguments.rows.exists():
        for line in arguments.rows.read_text().splitlines():
            kept = json.loads(line)
            if kept["asked"] == asked:
                known[kept["deal"]] = kept["rows"]
    console = Console()
    for deal in range(arguments.deals):
        if deal in known:
            continue
        known[deal] = judge(arguments.experiment, arguments.overrides, deal, arguments.seeds)
        if arguments.rows is not None:
            with arguments.rows.open("a") as file:
                file.write(json.dumps({"asked": asked, "deal": deal, "rows": known[deal]}) + "\n")
    console.print(table([known[deal] for deal in range(arguments.deals)]))


if __name__ == "__main__":
    main()
