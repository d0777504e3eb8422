"""Predictions while sequences are under way: one time step at a time, the state kept.

Shape legend: N streams, C channels, K classes, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raymeta.errors import DataError
from raymeta.inference.examples import read_examples
from raymeta.inference.heads import affine_head
from raymeta.nn.native.step import Steps, serves
from raymeta.nn.networks import Params
from raymeta.nn.stepwise import State, first_state, next_features
from raymeta.tasks.inputs import Inputs
from raymeta.training.recipe import Recipe


class Stream:
    """N sequences that grow by a step at a time; `Adapted.stream` begins it.

    Args:
        recipe: of the networks.
        inputs: what their examples are.
        params: of each adapted network.
        num_classes: of the task; None for regression.
        num_streams: N.
        temperature: that divides logits.

    Raises:
        DataError: the networks or their inputs need whole sequences.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: Inputs,
        params: Sequence[Params],
        num_classes: int | None,
        num_streams: int,
        temperature: float = 1.0,
    ) -> None:
        if inputs.stream_steps is None:
            keys = " and ".join(inputs.prepared_by)
            why = f" ({keys})" if keys else ""
            without = ", or a network that was trained without" if keys else ""
            raise DataError(
                f"this network cannot be streamed: its examples are prepared as a whole{why}; use "
                f"predict{without}"
            )
        if recipe.learner.reads_steps:
            raise DataError(
                f"learner {recipe.learner.name} compares whole sequences, so that they cannot be "
                "streamed; use predict"
            )
        if num_streams < 1:
            raise DataError(f"num_streams must be at least 1, but got {num_streams}")
        self._recipe, self._inputs, self._most = recipe, inputs, inputs.stream_steps
        self._params, self._num_classes = list(params), num_classes
        learner, spec = recipe.learner, recipe.spec
        self._networks = [learner.adapted_network(spec, own) for own in self._params]
        try:
            self._states: list[State] = [
                first_state(spec, network, num_streams) for network in self._networks
            ]
        except ValueError as error:
            raise DataError(f"this network cannot be streamed: {error}; use predict") from error
        self._shape, self._temperature = (num_streams, len(inputs.channels)), temperature
        self._compiled = self._compiled_steps()

    @property
    def num_steps(self) -> int:
        """The time steps so far."""
        return self._states[0].num_steps if self._compiled is None else self._compiled.num_steps

    def step(self, x: Any) -> np.ndarray:
        """The answers to the sequences up to this step, as of `predict_proba` for all of it.

        A step that is refused changes nothing.

        Args:
            x: the next time step of each stream, `[N, C]` (`[C]` for one stream), before any
                preparation.

        Returns:
            Probabilities `[N, K]`, or for regression values `[N, O]`; float64.

        Raises:
            DataError: the step breaks a rule, or the streams are as long as any in training.
        """
        if self.num_steps >= self._most:
            raise DataError(
                f"the streams have {self._most} time steps, the most that the network was trained "
                "on; begin a new stream"
            )
        values = np.asarray(x)
        if values.shape == self._shape[1:] and self._shape[0] == 1:
            values = values[None]
        if values.shape != self._shape:
            raise DataError(
                f"a step must be [N, C] = {list(self._shape)}, N streams of the channels "
                f"{', '.join(self._inputs.channels)}, but has the shape {list(values.shape)}"
            )
        found = None
        if self._compiled is None:
            found = self._next(self._prepared(values))
        elif values.dtype.kind in "fiub":
            found = self._compiled.step(values)
        else:
            found = self._compiled.step(self._numbers(values))
        if found is None:
            self._prepared(values)  # raises, if that is where it was not finite
            raise DataError(
                "the network's answer is not finite; see that the step is in the units of the "
                "training data"
            )
        scale = self._inputs.target_scale
        return found if scale is None else scale[0] + scale[1] * found

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        """A step as float64, or an error that says why it is none."""
        raw = read_examples(values[:, None, :], self._inputs, axes="NTC")
        return np.concatenate(raw.x)

    def _prepared(self, values: np.ndarray) -> torch.Tensor:
        """A step `[1, N, D]` as the networks read it, or an error that says why it is none."""
        names = [f"stream {number}" for number in range(1, self._shape[0] + 1)]
        steps = [step[None] for step in self._numbers(values)]
        prepared = torch.from_numpy(np.stack(self._inputs.prepare(steps, names))[:, 0])
        return prepared[None].to(self._recipe.dtype)

    @torch.no_grad()
    def _next(self, now: torch.Tensor) -> np.ndarray | None:
        """The answers by torch's operations; None if they are not finite."""
        learner, spec = self._recipe.learner, self._recipe.spec
        answers, states = [], []
        for own, network, state in zip(self._params, self._networks, self._states, strict=True):
            features, after = next_features(spec, network, now, state)
            answers.append(learner.adapted_answers(spec, own, features))
            states.append(after)
        outputs = torch.stack(answers) / self._temperature
        if self._num_classes is not None:
            outputs = outputs[..., : self._num_classes]
        found: np.ndarray = self._recipe.problem.mean_outputs(outputs)[0].numpy()
        if not np.isfinite(found).all():
            return None
        self._states = states
        return found

    def _compiled_steps(self) -> Steps | None:
        """The same in one compiled call, some thirty times as fast; None where that has no form."""
        recipe, scaling = self._recipe, self._inputs.scaling
        if scaling is None or not serves(recipe.spec, recipe.dtype):
            return None
        heads = [affine_head(recipe.learner, recipe.spec, own) for own in self._params]
        known = [head for head in heads if head is not None]
        if len(known) < len(heads):
            return None
        return Steps(
            recipe.spec,
            [{name: value[0] for name, value in own.items()} for own in self._networks],
            known,
            num_streams=self._shape[0],
            num_classes=self._num_classes,
            temperature=self._temperature,
            mean=scaling[0],
            deviation=scaling[1],
        )
