"""The training of a model's networks, and the preparation of examples for them.

Shape legend: T time steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.experiment.data_files import DATA
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.inference.examples import RawExamples
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.load import load_inputs
from raymeta.training.identity import Identity
from raymeta.training.recipe import Recipe

_SECTIONS = {"name", "seed", "tasks", "model", "learner", "training", "evaluation"}


@dataclass(frozen=True)
class Trained:
    """The training of networks, which a model shares with its adapted networks.

    `experiment` has the best trial's values in it.  `identity` is that of the first network, with
    the facts of its data.
    """

    experiment: Experiment
    identity: Identity
    recipe: Recipe

    @cached_property
    def inputs(self) -> Inputs:
        """The format of an example, and its preparation."""
        return load_inputs(self.experiment.tasks, self.identity.facts)

    @property
    def settings(self) -> dict[str, Any]:
        """The experiment as files that travel have it: plain values, without the data's place."""
        experiment = self.experiment
        if experiment.tasks.data_dir is not None:
            experiment = with_values(experiment, {"tasks.data_dir": DATA})
        return experiment.model_dump(mode="json", include=_SECTIONS | {experiment.learner})

    @property
    def is_classification(self) -> bool:
        """Whether the networks predict classes rather than numbers."""
        return self.recipe.problem.name == "classification"

    def examples(self, raw: RawExamples, y: Tensor) -> Examples:
        """Prepares and pads examples as training does; returns a batch of one episode."""
        prepared = [torch.from_numpy(x) for x in self.inputs.prepare(raw.x, raw.names)]
        sizes = torch.tensor([[len(x) for x in prepared]])
        padded = torch.nn.utils.rnn.pad_sequence(prepared, batch_first=True)
        lengths = None if bool((sizes == padded.shape[1]).all()) else sizes
        examples = Examples(padded[None], y[None], lengths)
        return examples.to(torch.device("cpu"), self.recipe.dtype)

    def standardised(self, y: Tensor) -> Tensor:
        """A user's numbers as the networks learned them."""
        scale = self.inputs.target_scale
        return y if scale is None else (y - scale[0]) / scale[1]

    def in_own_units(self, values: Any) -> Any:
        """The networks' numbers as their user has them: the inverse of `standardised`."""
        scale = self.inputs.target_scale
        return values if scale is None else scale[0] + scale[1] * values

    @property
    def target_unit(self) -> float:
        """The factor that converts differences from the networks' unit to the user's."""
        scale = self.inputs.target_scale
        return 1.0 if scale is None else scale[1]
