from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.experiment.file import load_experiment
from raymeta.tasks.load import load_tasks
from raymeta.training.curves import adaptation_curves
from raymeta.training.recipe import build_recipe, initial_meta_params

CPU = torch.device("cpu")
TINY = (
    "model.hidden_size=8",
    "training.meta_steps=3",
    "training.meta_batch_size=2",
    "training.val_episodes=4",
    "evaluation.adaptation_steps=3",
    "search.space={}",
)


@pytest.fixture(autouse=True)
def few_choice_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "NUM_CHOICE_EPISODES", 10)


@pytest.fixture
def untrained() -> Callable[..., Network]:
    """Makes the untrained network of a shipped experiment of fractions of a second."""

    def make(name: str, *overrides: str) -> Network:
        experiment = load_experiment(name, [*TINY, *overrides])
        tasks = load_tasks(experiment)
        recipe = build_recipe(experiment, tasks)
        return Network(tasks, recipe, initial_meta_params(recipe, CPU))

    return make


@pytest.fixture
def contest_of() -> Callable[..., Contest]:
    """Makes the contest of a network with the networks that controls need."""

    def make(own: Network, num_episodes: int = 5, **networks: Network) -> Contest:
        scores = adaptation_curves(
            own.tasks,
            own.recipe,
            own.params,
            "test",
            num_episodes=num_episodes,
            num_steps=own.recipe.eval_steps,
        )
        return Contest(own, scores, networks)

    return make
