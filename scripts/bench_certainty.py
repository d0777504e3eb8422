"""Do networks know what they do not know?  Warnings of strange tasks, intervals, prediction sets.

    python scripts/bench_certainty.py [--only NAME...] [--quick] [--json FILE]

Trains shipped configurations, once each and without Ray, calibrates them on meta-validation as the
meta-test of a run does, and opens them by `raymeta.load`.  Then meta-test tasks come in the data's
own units, as from a user:

- as they are, of which `adapted.familiarity` should call about one in a hundred unlike the
  training;
- spoilt: noise of each channel's level and spread, time steps in disorder, other units of one
  channel or of all, a constant; numbers as targets also in other units, or moved.  Every one of
  these should be called unlike the training;
- with their queries, of which `predict_interval` and `predict_set` should hold the stated share, on
  average over tasks (± 95 % over what is new to the network, such as engines).

Nothing is chosen by these tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import raymeta
from raymeta.console.text import plus_minus
from raymeta.episodes import TaskDistribution
from raymeta.errors import DataWarning
from raymeta.evaluation.calibration import keep_calibrations
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.familiarity import keep_reference
from raymeta.evaluation.networks import keep_network
from raymeta.evaluation.scores import Score
from raymeta.experiment.file import load_experiment
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.run_folder import Run
from raymeta.training.trainer import build_trainer

NETWORKS = {
    "vowels": ("vowels", []),
    "exercise": ("exercise", []),
    "engines": ("engines", []),
    "engines-alpaca": ("engines", ["learner=alpaca"]),
    "waves": ("sinusoid", []),
    "waves-ridge": ("sinusoid", ["learner=ridge"]),
    "waves-alpaca": ("sinusoid", ["learner=alpaca"]),
}
QUICK = ("vowels", "waves-alpaca")
NUM_TASKS, QUICK_TASKS, QUICK_STEPS = 200, 40, 20
MOST_ORDINARY, LEAST_SPOILT = 0.02, 0.9  # shares that are called unlike the training
COVERAGES = (0.5, 0.8, 0.9)

Signals = list[np.ndarray]  # of each example, [T, C]
Change = Callable[[Signals], Signals]


@dataclass(frozen=True)
class Claim:
    """A line of the table; `holds` is None for what is only shown."""

    network: str
    what: str
    must: str
    seen: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """The result in words."""
        return {True: "holds", False: "falls short", None: ""}[self.holds]


@dataclass(frozen=True)
class Tasks:
    """The first meta-test tasks in the data's own units."""

    distribution: TaskDistribution
    supports: list[tuple[Signals, np.ndarray]]
    queries: list[tuple[Signals, np.ndarray]]

    @classmethod
    def of(cls, model: Model, distribution: TaskDistribution, num_tasks: int) -> Tasks:
        """Undoes the preparation of a network's inputs and targets."""
        inputs = model.trained.inputs
        assert inputs.scaling is not None, "every step is standardised by itself"
        mean, deviation = inputs.scaling

        def own(x: np.ndarray, lengths: np.ndarray | None) -> Signals:
            sizes = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
            return [
                one[:size].astype(float) * deviation + mean
                for one, size in zip(x, sizes, strict=True)
            ]

        def answers(y: np.ndarray) -> np.ndarray:
            if inputs.classes:
                return np.array(inputs.classes)[y]
            return y if model.trained.is_classification else model.trained.in_own_units(y)

        episodes = [distribution.episode("test", number) for number in range(num_tasks)]
        return cls(
            distribution,
            [(own(e.support_x, e.support_lengths), answers(e.support_y)) for e in episodes],
            [(own(e.query_x, e.query_lengths), answers(e.query_y)) for e in episodes],
        )


def trained_model(
    name: str, sets: list[str], folder: Path, num_steps: int | None
) -> tuple[Model, TaskDistribution]:
    """A shipped configuration as the meta-test of a run leaves it."""
    experiment = load_experiment(name, ["search.space={}", *sets])
    trainer = build_trainer(experiment)
    trainer.train(num_steps or experiment.training.meta_steps)
    run = Run.create(folder, experiment)
    checkpoint = folder / "checkpoint"
    checkpoint.write_bytes(trainer.serialize())
    keep_network(run, "tuned", checkpoint)
    run.keep_best({})
    network = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
    keep_calibrations(run, [network])
    keep_reference(run, network)
    return raymeta.load(run.path), trainer.tasks


def adapted_to(model: Model, supports: list[tuple[Signals, np.ndarray]]) -> list[Adapted]:
    """Networks adapted to each support set; their warnings are counted elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return model.adapt_many(supports)


def share_unlike(adapted: list[Adapted]) -> float:
    """The share of tasks that are called unlike the training."""
    known = [one.familiarity for one in adapted]
    return float(np.mean([one is not None and one.is_unlike_training for one in known]))


def changes_of(supports: list[tuple[Signals, np.ndarray]]) -> dict[str, Change]:
    """The ways to spoil the examples of these tasks, by name."""
    rng = np.random.default_rng(0)
    every = np.concatenate([step for x, _ in supports for step in x])
    mean, deviation = every.mean(axis=0), every.std(axis=0)
    first = np.arange(every.shape[1]) == 0

    def each(change: Callable[[np.ndarray], np.ndarray]) -> Change:
        return lambda x: [change(one) for one in x]

    found = {
        "in units a tenth as large": each(lambda x: 10 * x),
        "in units a thousand times as large": each(lambda x: x / 1000),
    }
    if all(len(one) == 1 for x, _ in supports for one in x):
        return found  # a point has neither an order of steps nor a spread
    return found | {
        "noise of the same level and spread": each(lambda x: rng.normal(mean, deviation, x.shape)),
        "time steps in disorder": each(rng.permutation),
        "the first channel in °F for °C": each(lambda x: np.where(first, 1.8 * x + 32, x)),
        "a constant": each(lambda x: 0 * x + mean),
    }


def warning_claims(name: str, model: Model, tasks: Tasks, ordinary: list[Adapted]) -> list[Claim]:
    """Tests which tasks are called unlike the training."""
    share, most = share_unlike(ordinary), MOST_ORDINARY
    claims = [
        Claim(
            name,
            "held-out tasks called unlike the training",
            f"≤ {100 * most:.0f} %",
            f"{100 * share:.1f} %",
            share <= most,
        )
    ]
    spoilt = {
        what: [(change(x), y) for x, y in tasks.supports]
        for what, change in changes_of(tasks.supports).items()
    }
    if not model.trained.is_classification:
        deviation = np.concatenate([y for _, y in tasks.supports]).std()
        spoilt["targets in units a tenth as large"] = [(x, 10 * y) for x, y in tasks.supports]
        spoilt["targets moved by 5 deviations"] = [
            (x, y + 5 * deviation) for x, y in tasks.supports
        ]
    for what, supports in spoilt.items():
        share = share_unlike(adapted_to(model, supports))
        least, seen = f"≥ {100 * LEAST_SPOILT:.0f} %", f"{100 * share:.1f} %"
        claims.append(Claim(name, f"the same, {what}", least, seen, share >= LEAST_SPOILT))
    return claims


def coverage_claims(name: str, model: Model, tasks: Tasks, adapted: list[Adapted]) -> list[Claim]:
    """How often intervals and prediction sets hold the answer, and how large they are."""
    units = tasks.distribution.query_units("test", len(tasks.queries))
    claims = []
    for coverage in COVERAGES:
        hits, sizes = [], []
        for one, (x, y) in zip(adapted, tasks.queries, strict=True):
            hit, size = judged(one, x, y, coverage)
            hits.append(hit)
            sizes.append(size)
        share = Score.over(torch.from_numpy(np.stack(hits).astype(float)), units)
        mean, least, most = np.mean(sizes), np.min(sizes), np.max(sizes)
        if model.trained.is_classification:
            shape = f"{mean:.2f} classes on average"
        else:
            is_even = np.isclose(least, most, rtol=1e-3)
            shape = f"± {mean:.3g} wide" if is_even else f"± {least:.3g} to {most:.3g} wide"
        kind = "prediction sets" if model.trained.is_classification else "intervals"
        claims.append(
            Claim(
                name,
                f"answers that {kind} of {100 * coverage:.0f} % hold",
                f"{coverage:.2f}, or more",
                f"{plus_minus(share.mean, share.half_width)}; {shape}",
                None if share.half_width is None else share.mean + share.half_width >= coverage,
            )
        )
    return claims


def judged(
    adapted: Adapted, x: Signals, y: np.ndarray, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each answer is in its set or interval `[M]`, and the size or half the width."""
    if adapted.labels is not None:
        found = adapted.predict_set(x, coverage=coverage)
        is_in = [label in one for label, one in zip(y, found, strict=True)]
        return np.array(is_in), np.array([len(one) for one in found])
    lower, upper = adapted.predict_interval(x, coverage=coverage)
    values = y.reshape(len(x))
    return (lower <= values) & (values <= upper), (upper - lower) / 2


def table_of(claims: list[Claim]) -> Table:
    """The table."""
    table = Table(box=None, pad_edge=False)
    for column in ("network", "what", "must reach", "seen", "verdict"):
        table.add_column(column, overflow="fold")
    for claim in claims:
        table.add_row(claim.network, claim.what, claim.must, claim.seen, claim.verdict)
    return table


def claims_of(name: str, num_steps: int | None, num_tasks: int) -> list[Claim]:
    """All that is measured of one network."""
    source, sets = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        model, distribution = trained_model(source, sets, Path(folder), num_steps)
    tasks = Tasks.of(model, distribution, num_tasks)
    adapted = adapted_to(model, tasks.supports)
    claims = warning_claims(name, model, tasks, adapted)
    return claims + coverage_claims(name, model, tasks, adapted)


def main() -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="networks")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{' and '.join(QUICK)}, {QUICK_STEPS} meta-steps, {QUICK_TASKS} tasks",
    )
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.only or (QUICK if arguments.quick else tuple(NETWORKS))
    num_steps, num_tasks = (QUICK_STEPS, QUICK_TASKS) if arguments.quick else (None, NUM_TASKS)
    claims = list[Claim]()
    for name in names:
        claims += claims_of(name, num_steps, num_tasks)
        print(f"{name}: measured", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 150).print(table_of(claims))
    if arguments.json is not None:
        rows: list[Mapping[str, Any]] = [asdict(c) | {"verdict": c.verdict} for c in claims]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
