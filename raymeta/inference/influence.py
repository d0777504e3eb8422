"""Measures each support example's influence on answers by adapting without it (leave-one-out).

Shape legend: S support examples, N query examples, T time steps, D features, K classes, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.errors import DataError
from raymeta.inference.attribution import targets_of
from raymeta.nn.networks import Params
from raymeta.training.recipe import Recipe

_AT_ONCE = 2**22  # numbers of the support sets adapted to at once; bounds memory


@dataclass(frozen=True)
class Influence:
    """The influence of each support example on the answers to N examples.

    `changes` float64 `[N, S]` are the answers after adaptation to all support examples, less those
    after adaptation without each: positive for an example that speaks for the answer.  One that is
    alone in its class takes the class with it.  The support examples are in their user's order.

    `targets` `[N]` are the classes whose probability is explained, or the numbers of the outputs of
    a regression; `outputs` `[N]` are the answers after adaptation to all.  `names` and
    `support_names` are what messages or tables call the examples.
    """

    changes: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    names: tuple[str, ...]
    support_names: tuple[str, ...]
    is_classification: bool = True


def leave_one_out(
    recipe: Recipe,
    networks: Sequence[Params],
    support: Examples,
    query: Examples,
    labels: np.ndarray | None,
    rows: Sequence[int],
    support_names: tuple[str, ...],
    names: tuple[str, ...],
    *,
    target: Any = None,
    temperature: float = 1.0,
) -> Influence:
    """Adapts networks to a support set and to all of it but one example, in batches.

    Args:
        recipe: of the networks.
        networks: their meta-parameters.
        support: the support set as one episode.
        query: the examples whose answers are explained, as one episode.
        labels: the classes; None for regression.
        rows: the place of each support example among those of its user.
        support_names: in their user's order.
        names: of the query examples.
        target: as for `Adapted.attribute`.
        temperature: that divides logits.

    Raises:
        DataError: there is one support example only, a target is none, or an answer is not finite.
    """
    num_support = support.y.shape[1]
    if num_support < 2:
        raise DataError(
            "influence needs two support examples at least, since one is left out, but got one"
        )
    whole = _answers(recipe, networks, support, query, labels, temperature)[0]
    targets, named = targets_of(target, whole, labels)
    chosen = targets[:, None]
    outputs = whole.gather(1, chosen)[:, 0]
    keep = torch.arange(num_support).expand(num_support, -1)
    keep = keep[~torch.eye(num_support, dtype=torch.bool)].view(num_support, -1)
    changes = np.empty((len(outputs), num_support))
    at_once = max(1, _AT_ONCE // (support.x.numel() + query.x.numel()))
    for left_out in torch.split(torch.arange(num_support), at_once):
        kept = keep[left_out]
        lengths = None if support.lengths is None else support.lengths[0][kept]
        parts = Examples(support.x[0][kept], support.y[0][kept], lengths)
        found = _answers(recipe, networks, parts, query, labels, temperature)
        without = found.gather(2, chosen.expand(len(left_out), -1, -1))[..., 0]
        is_finite = without.isfinite().all(dim=1)
        places = [rows[number] for number in left_out.tolist()]
        if not is_finite.all():
            name = support_names[places[int(is_finite.int().argmin())]]
            raise DataError(
                f"without the support example {name} the network's answer is not finite; see that "
                "the examples are in the units of the training data"
            )
        changes[:, places] = (outputs - without).T.numpy()
    return Influence(changes, named, outputs.numpy(), names, support_names, labels is not None)


def _answers(
    recipe: Recipe,
    networks: Sequence[Params],
    support: Examples,
    query: Examples,
    labels: np.ndarray | None,
    temperature: float,
) -> Tensor:
    """The mean answers to the queries after adaptation to each support set, float64 `[E, N, K]`."""
    num = support.y.shape[0]
    lengths = None if query.lengths is None else query.lengths.expand(num, -1)
    asked = Examples(query.x.expand(num, *query.x.shape[1:]), query.y.expand(num, -1), lengths)
    answers = []
    for network in networks:
        adapted = recipe.learner.adapted_params(
            recipe.spec, recipe.problem, network, support, recipe.num_steps
        )
        answers.append(recipe.learner.adapted_outputs(recipe.spec, adapted, asked))
    found = torch.stack(answers)
    if labels is not None:
        found = found[..., : len(labels)] / temperature
    return recipe.problem.mean_outputs(found)
