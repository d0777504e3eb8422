"""One network for the examples of all episodes: no parameter and no gradient has a copy of each.

Shape legend: E episodes, N examples, T time steps, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raymeta.nn.checks import check_inputs, check_params
from raymeta.nn.networks import (
    NetworkSpec,
    attention_weights,
    expand_params,
    is_head,
    param_shapes,
    pool,
    recurrent_features,
)


def shared_features(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None = None,
    masks: list[Tensor] | None = None,
) -> Tensor:
    """The features that one network's head sees of the examples of all episodes, `[E, N, F]`.

    The arguments are those of `forward`, but no parameter has an episode axis, and a head is not
    needed: the episodes are one batch of E * N examples, so that neither a parameter nor its
    gradient is copied for each.

    Raises:
        ValueError: as for `forward`.
    """
    own = expand_params(params, 1)
    sequence, valid = _shared_sequence(spec, own, x, lengths, masks)
    return pool(spec, own, sequence, valid).view(*x.shape[:2], -1)


def shared_steps(
    spec: NetworkSpec,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None = None,
    masks: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The states `[E, N, T, F]` that `shared_features` pools, and their weights `[E, N, T]`.

    The weights of an example add up to one: those of `attention_weights` with such a pooling, else
    equal ones.  Padding has none.

    Raises:
        ValueError: as for `forward`.
    """
    own = expand_params(params, 1)
    sequence, valid = _shared_sequence(spec, own, x, lengths, masks)
    sequence = sequence[0].transpose(0, 1)  # [E * N, T, F]
    inside = None if valid is None else valid[0, ..., 0].T
    if spec.pooling == "attention":
        weights = attention_weights(own, sequence.transpose(0, 1)[None], valid)[0].T
    else:
        kept = torch.ones_like(sequence[..., 0]) if inside is None else inside.to(sequence.dtype)
        weights = kept / kept.sum(dim=1, keepdim=True)
    shape = (*x.shape[:2], sequence.shape[1])
    return sequence.reshape(*shape, -1), weights.reshape(shape)


def _shared_sequence(
    spec: NetworkSpec,
    own: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None,
    masks: list[Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """`recurrent_features` of one network `own` for E * N examples, as those of one episode."""
    episodes, examples = x.shape[:2]
    check_params({k: v for k, v in param_shapes(spec).items() if not is_head(k)}, own, 1)
    check_inputs(spec.num_features, spec.vocabulary_size, episodes, x, lengths)
    flat = None if lengths is None else lengths.flatten()[None]
    if masks is not None:
        masks = [m.expand(-1, 1, examples, -1).reshape(1, 1, -1, m.shape[-1]) for m in masks]
    return recurrent_features(spec, own, x.flatten(0, 1)[None], flat, masks)
