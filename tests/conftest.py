"""What the tests share."""

from __future__ import annotations

import pytest
import torch

from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment

TINY = (
    "model.hidden_size=4",
    "model.num_layers=1",
    "maml.adaptation_steps=2",
    "training.pretrain_steps=0",
    "training.meta_steps=8",
    "training.meta_batch_size=3",
    "training.val_episodes=5",
    "training.precision=float64",
    "resources.num_workers=1",
    "search.space={}",
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """A shipped experiment cut down to fractions of a second, with overrides."""

    def load(name: str, *overrides: str) -> Experiment:
        return load_experiment(name, [*TINY, *overrides])

    return load
