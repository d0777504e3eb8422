"""The contract of a control: what it serves, what it needs, and how it is judged.

Shape legend: E episodes, M queries of an episode, S adaptation steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymeta.episodes import TaskDistribution
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.problem import PROBLEMS
from raymeta.training.recipe import Recipe

NUM_CHOICE_EPISODES = 100  # meta-validation episodes on which a control's settings are chosen

# The kind of an example; vectors are a pretrained encoder's features of tokens.
Input = Literal["features", "tokens", "vectors"]


@dataclass(frozen=True)
class Network:
    """A trained network with the tasks and the recipe that it was trained with."""

    tasks: TaskDistribution
    recipe: Recipe
    params: Params


@dataclass(frozen=True)
class Contest:
    """The meta-test in which a control is judged.

    `scores` (float64 `[E, M, S + 1]`) are those of the run's own network on the M queries of each
    of the first E meta-test episodes; `networks` holds the networks that controls need, by control
    name.
    """

    own: Network
    scores: Tensor
    networks: Mapping[str, Network]

    @property
    def as_recorded(self) -> TaskDistribution:
        """The tasks as controls without a network read them: no spectra but the signals."""
        return self.own.tasks.recorded or self.own.tasks

    @property
    def num_episodes(self) -> int:
        """Meta-test episodes."""
        return self.scores.shape[0]

    @property
    def num_steps(self) -> int:
        """Adaptation steps of the meta-test."""
        return self.scores.shape[2] - 1


@dataclass(frozen=True)
class Judgement:
    """A control's scores on every query of the meta-test episodes, float64 `[E, M]`.

    A control that adapts also has `curves` `[E, M, S + 1]`, its scores after 0 … S steps, and
    `steps`, the number of steps it was judged after.  `detail` names what was chosen on
    meta-validation.  `outputs` `[E, M, O]` are the answers of a control for forecasts or numbers.
    """

    scores: Tensor
    steps: int | None = None
    curves: Tensor | None = None
    detail: str = ""
    outputs: Tensor | None = None


class Control(ABC):
    """One control of the meta-test; a subclass sets `name` and `label` and has a `judge`.

    `name` is the row's key in results.json, `label` what the table calls it.  `needs` says which
    network the control is judged with beside the run's own: `nothing`; `steps`: the same, one that
    adapts step by step; `trial`: the network of a trial of the search, without which the control is
    left out; `training`: one that a `TrainedControl` makes, kept as RUN/models/NAME.safetensors.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    problems: ClassVar[frozenset[str]] = frozenset(PROBLEMS)
    inputs: ClassVar[frozenset[Input]] = frozenset({"features", "tokens", "vectors"})
    needs: ClassVar[Literal["nothing", "steps", "trial", "training"]] = "nothing"

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether the control can be judged on these tasks."""
        spec = tasks.input_spec
        given: Input = "features" if spec.vocabulary_size is None else "tokens"
        if tasks.encoded:
            given = "vectors"
        return spec.problem in self.problems and given in self.inputs

    def lacks(self) -> str | None:
        """The missing package that the control needs, as a message; None if it can be judged."""
        return None

    @abstractmethod
    def judge(self, contest: Contest) -> Judgement:
        """Scores the control on the meta-test episodes of the contest."""


class TrainedControl(Control):
    """A control that trains a network of its own."""

    needs: ClassVar[Literal["nothing", "steps", "trial", "training"]] = "training"

    @abstractmethod
    def network_spec(self, tasks: TaskDistribution, recipe: Recipe) -> NetworkSpec:
        """The network that `train` makes."""

    @abstractmethod
    def train(self, tasks: TaskDistribution, recipe: Recipe, device: torch.device) -> Params:
        """Trains the network with the budget of the run's own network."""
