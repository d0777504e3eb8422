"""The facts about its support set that an adapted network keeps for explanations.

Shape legend: S support examples, N examples, T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.inference.vectors import FloatNetwork
from raymeta.nn.networks import Params
from raymeta.training.recipe import Recipe

SUPPORT_PREFIX = "support-"  # of its tensors in a file
_MEANS, _ROWS = f"{SUPPORT_PREFIX}mean-", f"{SUPPORT_PREFIX}rows"


@dataclass(frozen=True)
class Support:
    """The support set behind an adapted network.

    `means` `[D]` float64, one of each network, are the mean of the vectors that it reads, over all
    support examples and time steps.  `rows` int64 `[S]` are the places that the examples, as the
    network has them, have among those of their user.
    """

    means: tuple[Tensor, ...]
    rows: Tensor

    @classmethod
    def of(
        cls, recipe: Recipe, params: Sequence[Params], examples: Examples, rows: Sequence[int]
    ) -> Support:
        """Computes the means of the support examples, a batch of one episode."""
        steps = torch.arange(examples.x.shape[2])
        inside = None if examples.lengths is None else steps < examples.lengths[0][:, None]

        def mean(vectors: Tensor) -> Tensor:
            return vectors.mean(dim=(0, 1)) if inside is None else vectors[inside].mean(dim=0)

        if examples.x.is_floating_point():  # the same for all networks
            means = [mean(examples.x[0].double())] * len(params)
        else:
            means = [mean(FloatNetwork(recipe, own).vectors(examples)) for own in params]
        return cls(tuple(means), torch.tensor(rows, dtype=torch.int64))

    def check(self, num_examples: int) -> None:
        """Refuses another number of support examples than the network has.

        Raises:
            ValueError: naming both.
        """
        if len(self.rows) != num_examples:
            raise ValueError(f"its support has {len(self.rows)} examples, not {num_examples}")

    def to_tensors(self) -> Params:
        """Converts to the tensors of a file, for `from_tensors`."""
        # Copies: networks may have a mean in common, which safetensors refuses.
        means = {f"{_MEANS}{number}": mean.clone() for number, mean in enumerate(self.means)}
        return {**means, _ROWS: self.rows}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], recipe: Recipe, num_networks: int
    ) -> Support | None:
        """Reads the tensors that `to_tensors` wrote; None if a file has none, as older files.

        Raises:
            ValueError: the tensors do not fit the networks.
        """
        own = {name: value for name, value in tensors.items() if name.startswith(SUPPORT_PREFIX)}
        if not own:
            return None
        means = tuple(own.pop(f"{_MEANS}{number}") for number in range(num_networks))
        rows = own.pop(_ROWS)
        if own:
            raise ValueError(f"it holds a tensor {min(own)!r:.60}")
        shape = (recipe.spec.input_size,)
        if any(m.shape != shape or m.dtype != torch.float64 for m in means):
            raise ValueError(f"its support's means are not {recipe.spec.input_size} numbers")
        if not all(mean.isfinite().all() for mean in means):
            raise ValueError("its support's means are not finite")
        if rows.dtype != torch.int64 or not rows.sort().values.equal(torch.arange(rows.numel())):
            raise ValueError("its support's rows are no order of examples")
        return cls(means, rows)
