"""What packed trials could gain: several trials in the meta-steps of one process.

Trials of equal shape, each with its own weights and rates, could share a batched meta-step, as
episodes do.  Such a step does at least the work of one whose episodes all share one trial's
weights.  The time of the trials' steps one after another, over that of this step, is therefore what
packing could gain by sharing calls; where it is below 1, larger batches cost more than calls save.
"""

from __future__ import annotations

import time

import torch

from raymeta.experiment.file import load_experiment
from raymeta.training.trainer import Trainer, build_trainer

WARM_UP_STEPS = 3


def _trainer(name: str, pack: int) -> Trainer:
    """Builds a trainer with the episodes of `pack` trials in a meta-step, and warms it up."""
    alone = ["search.space={}", "resources.num_workers=1", "training.pretrain_steps=0"]
    size = pack * load_experiment(name, alone).training.meta_batch_size
    trainer = build_trainer(load_experiment(name, [*alone, f"training.meta_batch_size={size}"]))
    trainer.train(WARM_UP_STEPS)
    return trainer


def packing_gains(name: str, pack: int, rounds: int, steps: int) -> list[float]:
    """Time of `pack` meta-steps over that of one with all their episodes, a ratio a round.

    Both are the processor's seconds of one thread, taken in turns.

    Args:
        name: a shipped experiment.
        pack: how many trials.
        rounds: how often both are timed.
        steps: meta-steps of the packed trainer in each round.
    """
    torch.set_num_threads(1)
    alone, packed = _trainer(name, 1), _trainer(name, pack)

    def seconds(trainer: Trainer, num_steps: int) -> float:
        began = time.process_time()
        trainer.train(num_steps)
        return time.process_time() - began

    return [seconds(alone, pack * steps) / seconds(packed, steps) for _ in range(rounds)]
