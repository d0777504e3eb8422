"""Prototypical networks (Snell et al. 2017, "Prototypical Networks for Few-shot Learning").

    c_k = mean of the features of class k's support examples,   logit_k = -a d(z, c_k)

with d the squared Euclidean distance (their equation 2), or 1 - cosine; the factor a is learned, as
the temperature of Oreshkin et al. 2018 ("TADAM", section 3.1).  A class without a support example
is never the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raymeta.meta.embedding import Embedded, EmbeddingLearner, logarithm
from raymeta.meta.settings import PrototypesSettings
from raymeta.nn.networks import Params

SCALE = "log_scale"


@dataclass(frozen=True, kw_only=True)
class Prototypes(PrototypesSettings, EmbeddingLearner):
    """Prototypical networks; see `PrototypesSettings`."""

    name: ClassVar[str] = "prototypes"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters without its head, and the logarithm of a."""
        meta_params = super().init_meta_params(params, seed)
        start = self.scale or (1.0 if self.distance == "euclidean" else 10.0)
        return meta_params | {SCALE: logarithm(start, next(iter(params.values())))}

    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Logits from the distance of each query to each class's mean support feature."""
        members = embedded.target_rows.transpose(1, 2)  # [E, O, N]
        counts = members.sum(dim=-1)
        prototypes = members @ embedded.support / counts.clamp(min=1).unsqueeze(-1)
        logits = self._logits(meta_params, embedded.query, prototypes)
        return logits.masked_fill((counts == 0).unsqueeze(1), -torch.inf)

    def example_weights(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The classes' probabilities if every support example were a class of its own."""
        return self._logits(meta_params, embedded.query, embedded.support).softmax(dim=-1)

    def _logits(
        self, meta_params: Mapping[str, Tensor], query: Tensor, prototypes: Tensor
    ) -> Tensor:
        """-a d(z, c) `[E, M, O]` up to a constant over the prototypes `[E, O, F]`."""
        if self.distance == "cosine":
            prototypes, query = normalize(prototypes, dim=-1), normalize(query, dim=-1)
        # |z - c|² without |z|², which is the same for all classes; for unit vectors twice the
        # cosine.
        near = 2 * query @ prototypes.transpose(1, 2)
        if self.distance == "cosine":
            near = near / 2
        else:
            near = near - prototypes.square().sum(dim=-1).unsqueeze(1)
        return meta_params[SCALE].exp() * near
