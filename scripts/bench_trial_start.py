"""Time from a trial's start to its first result: raymeta's trial actor and nested Ray Train.

Both ways run the same meta-training on two data-parallel gloo workers, one trial after another in
one local Ray:

- raymeta: the trial actor owns its workers and hands them to the next trial (`reuse_actors`);
- nested: a Tune function that runs a Ray Train `TorchTrainer`, which starts its workers anew.

A trial starts when the one before it has ended, the first one when Tune does.

    python scripts/bench_trial_start.py [--trials N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console
from rich.table import Table

from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.placement import placement_bundles
from raymeta.training.distributed import Group
from raymeta.training.trainer import build_trainer
from raymeta.trial.actor import MetaTrial

NUM_WORKERS = 2
LIMIT_S = 0.5
CLAIM = f"a second trial on a reused actor starts training within {LIMIT_S} s"
OVERRIDES = [
    "search.space={}",
    f"resources={{num_workers: {NUM_WORKERS}}}",
    "training={meta_steps: 4, eval_every: 2, meta_batch_size: 4, val_episodes: 8}",
]
TRAINING_S = "time_this_iter_s"  # Tune's name


@dataclass
class StartTimes(tune.Callback):
    """Seconds from each trial's start to its first result, and how many of them were training."""

    started: float = field(default_factory=time.perf_counter)
    first_result_s: list[float] = field(default_factory=list)
    training_s: list[float] = field(default_factory=list)
    _reported: bool = False

    def on_trial_result(self, *, result: dict[str, Any], **_: Any) -> None:
        """Notes the first one."""
        if not self._reported:
            self._reported = True
            self.first_result_s.append(time.perf_counter() - self.started)
            self.training_s.append(result.get("interval_s", result[TRAINING_S]))

    def on_trial_complete(self, **_: Any) -> None:
        """The next trial starts now."""
        self.started, self._reported = time.perf_counter(), False


def train_one_rank(config: dict[str, Any]) -> None:
    """Runs in each of Ray Train's workers the loop of `raymeta.trial.workers.Worker`."""
    torch.set_num_threads(1)
    context = train.get_context()
    experiment = Experiment.model_validate(config["experiment"])
    trainer = build_trainer(experiment, Group(context.get_world_rank(), context.get_world_size()))
    while trainer.step < experiment.training.meta_steps:
        start = time.perf_counter()
        metrics = trainer.train(experiment.training.eval_every) | trainer.validate()
        seconds = time.perf_counter() - start
        train.report({STEP_METRIC: trainer.step, "interval_s": seconds, **metrics})


def nested_trial(config: dict[str, Any], folder: str) -> None:
    """A Tune trial that starts a Ray Train run of its own."""
    TorchTrainer(
        train_one_rank,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=NUM_WORKERS, resources_per_worker={"CPU": 1}
        ),
        run_config=train.RunConfig(storage_path=folder, callbacks=[TuneReportCallback()]),
    ).fit()


def measure(
    trainable: Any, experiment: Experiment, folder: str, num_trials: int, reuse: bool
) -> StartTimes:
    """Runs so many trials one after another."""
    times = StartTimes()
    results = tune.Tuner(
        trainable,
        param_space={"experiment": experiment.model_dump()},
        tune_config=tune.TuneConfig(
            num_samples=num_trials, max_concurrent_trials=1, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[times]),
    ).fit()
    if results.errors:
        raise results.errors[0]
    return times


def row(name: str, seconds: list[float], nested: list[float]) -> dict[str, Any]:
    """A line of the table."""
    median = statistics.median(seconds)
    return {
        "way": name,
        "trials": len(seconds),
        "median_s": median,
        "min_s": min(seconds),
        "max_s": max(seconds),
        "times_faster_than_nested": statistics.median(nested) / median,
    }


def main() -> None:
    """Measures, prints the table, and writes it if asked."""
    parser = argparse.ArgumentParser(description="Time from trial start to first result.")
    parser.add_argument("--trials", type=int, default=3, help="of each way, at least 2 (default 3)")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    if arguments.trials < 2:
        parser.error("--trials must be at least 2, for a second trial on a reused actor")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)

    experiment = load_experiment("pen-maml", OVERRIDES)
    bundles = tune.PlacementGroupFactory(placement_bundles(experiment.resources))
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            "local",
            num_cpus=NUM_WORKERS + 1,  # one for the Tune function that waits for Ray Train
            object_store_memory=100_000_000,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        try:
            own_way = tune.with_resources(MetaTrial, bundles)
            own = measure(own_way, experiment, folder, arguments.trials, reuse=True)
            nested_way = tune.with_resources(
                tune.with_parameters(nested_trial, folder=folder), {"CPU": 1}
            )
            nested = measure(nested_way, experiment, folder, arguments.trials, reuse=False)
        finally:
            ray.shutdown()

    rows = [
        row("nested Ray Train TorchTrainer", nested.first_result_s, nested.first_result_s),
        row("raymeta, first trial", own.first_result_s[:1], nested.first_result_s),
        row("raymeta, later trials", own.first_result_s[1:], nested.first_result_s),
    ]
    second_s = own.first_result_s[1] - own.training_s[1]
    verdict = "holds" if second_s <= LIMIT_S else "falls short"

    title = f"From trial start to first result, {NUM_WORKERS} gloo workers"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "trials", "median s", "min–max s", "× faster"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for line in rows:
        table.add_row(
            line["way"],
            str(line["trials"]),
            f"{line['median_s']:.2f}",
            f"{line['min_s']:.2f}–{line['max_s']:.2f}",
            f"{line['times_faster_than_nested']:.1f}",
        )
    console = Console()
    console.print(table)
    sentence = f"{verdict}: {CLAIM} (measured: {second_s:.2f} s)"
    console.print(sentence, highlight=False, soft_wrap=True)
    if arguments.json is not None:
        content = {
            "rows": rows,
            "claim": CLAIM,
            "second_trial_s": second_s,
            "verdict": verdict,
            "first_result_s": {"raymeta": own.first_result_s, "nested": nested.first_result_s},
            "cores": os.cpu_count(),
            "ray": ray.__version__,
            "torch": torch.__version__,
        }
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
