"""An adapted network in float64, as a function that can be differentiated by what it reads.

Shape legend: N examples, T time steps, D features, S support examples, K classes, O outputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from raymeta.episodes import Examples
from raymeta.nn.networks import (
    Params,
    attention_weights,
    expand_params,
    recurrent_features,
)
from raymeta.training.recipe import Recipe


class FloatNetwork:
    """One adapted network, computed in float64 whatever the precision of its training.

    Real-valued examples are the vectors `[N, T, D]` themselves; of texts with a learned embedding
    they are the rows of the embedding, by which a derivative exists, as it does not by words.

    Args:
        recipe: of the network.
        adapted: of its learner's `adapted_params`, for one task.
        temperature: that divides logits.
    """

    def __init__(self, recipe: Recipe, adapted: Params, temperature: float = 1.0) -> None:
        self._recipe, self._temperature = recipe, temperature
        self._adapted = {k: v.double() if v.is_floating_point() else v for k, v in adapted.items()}
        network = recipe.learner.adapted_network(recipe.spec, self._adapted)
        self._network = {name: value[0] for name, value in network.items()}
        self._spec = replace(recipe.spec, layer_dtype=None)
        if self._spec.vocabulary_size is not None:
            self._spec = replace(
                self._spec,
                num_features=self._spec.embedding_size,
                vocabulary_size=None,
                embedding_size=0,
            )

    @property
    def size(self) -> int:
        """Numbers of a time step, of the layers' inputs or states, whichever are more."""
        return max(self._spec.input_size, self._spec.output_size)

    def vectors(self, examples: Examples) -> Tensor:
        """The vectors of one episode's examples that the recurrent layers read, `[N, T, D]`."""
        if examples.x.is_floating_point():
            return examples.x[0].double()
        return embedding(examples.x[0], self._network["embedding.weight"])

    def outputs(self, vectors: Tensor, lengths: Tensor | None, num_classes: int | None) -> Tensor:
        """Probabilities `[N, K]`, or values `[N, O]`, with derivatives by the vectors.

        Args:
            vectors: `[N, T, D]`.
            lengths: valid steps of each example `[N]`; None for all T.
            num_classes: K of the task; None for regression.
        """
        learner, spec = self._recipe.learner, self._recipe.spec
        found = learner.adapted_answers(spec, self._adapted, self._features(vectors, lengths))[0]
        if num_classes is None:
            return found
        return (found[:, :num_classes] / self._temperature).softmax(dim=-1)

    def attention(self, vectors: Tensor, lengths: Tensor | None) -> Tensor | None:
        """The weights `[N, T]` by which it pools the time steps; None if it pools otherwise.

        Steps that are read at once share their weight.
        """
        if self._spec.pooling != "attention":
            return None
        params = expand_params(self._network, 1)
        own = None if lengths is None else lengths[None]
        sequence, valid = recurrent_features(self._spec, params, vectors[None], own, None)
        weights, steps = attention_weights(params, sequence, valid)[0].T, vectors.shape[1]
        stack = self._spec.stacked_steps
        if stack == 1:
            return weights
        inside = torch.arange(self._spec.num_stacks(steps) * stack) < (
            torch.tensor(steps) if lengths is None else lengths[:, None]
        )  # [N, T], or [T]
        inside = inside.expand(len(weights), -1)
        counts = inside.reshape(len(weights), -1, stack).sum(dim=2).clamp(min=1)
        shared = (weights / counts).repeat_interleave(stack, dim=1)
        return (shared * inside)[:, :steps]

    def support_weights(self, vectors: Tensor, lengths: Tensor | None) -> Tensor | None:
        """The weights `[N, S]` of the support examples; see `Learner.support_weights`."""
        found = self._recipe.learner.support_weights(
            self._recipe.spec, self._adapted, self._features(vectors, lengths)
        )
        return None if found is None else found[0]

    def _features(self, vectors: Tensor, lengths: Tensor | None) -> Tensor:
        own = None if lengths is None else lengths[None]
        return self._recipe.learner.features(self._spec, self._network, vectors[None], own)
