"""Ordinary joint training: one network on all meta-training tasks at once, then fine-tuning.

The control that every meta-learner must beat: for classification the network learns all classes of
the distribution together (Chen et al. 2019, "A Closer Look at Few-shot Classification"); for
regression, or where labels mean the same in every task, it learns all tasks as if they were one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.nn.networks import NetworkSpec, Params, dropout_masks, expand_params, forward
from raymeta.problem import Problem


def joint_spec(spec: NetworkSpec, num_train_classes: int, fixed_labels: bool) -> NetworkSpec:
    """The network with a head for all classes of meta-training; fixed labels keep its own head."""
    return spec if fixed_labels else replace(spec, num_outputs=num_train_classes)


def joint_batch(episodes: Episodes, fixed_labels: bool) -> Examples:
    """All examples of all episodes as one ordinary batch, `[1, E * N, ...]`."""
    parts = []
    for examples in (episodes.support, episodes.query):
        y = examples.y
        if not fixed_labels:
            assert episodes.way_classes is not None, "classification episodes name their classes"
            y = episodes.way_classes.to(y.device).gather(1, y)
        lengths = examples.lengths
        parts.append(
            Examples(
                examples.x.flatten(0, 1),
                y.flatten(0, 1),
                None if lengths is None else lengths.flatten(0, 1),
            )
        )
    all_lengths = [part.lengths for part in parts if part.lengths is not None]
    return Examples(
        torch.cat([part.x for part in parts])[None],
        torch.cat([part.y for part in parts])[None],
        torch.cat(all_lengths)[None] if all_lengths else None,
    )


def joint_gradient(
    spec: NetworkSpec, problem: Problem, params: Params, batch: Examples, seed: int
) -> tuple[Params, Tensor]:
    """The gradient of the batch's mean loss, and the loss."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    expanded = expand_params(leaves, 1)
    masks = None
    if spec.dropout > 0:
        masks = dropout_masks(spec, torch.tensor([seed]), expanded)
    outputs = forward(spec, expanded, batch.x, batch.lengths, masks)
    loss = problem.loss(outputs, batch.y).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), loss.detach()


def with_fresh_head(params: Params, num_outputs: int) -> Params:
    """The network with a head of zeros for `num_outputs` new classes: no class is favoured."""
    weight = params["head.weight"]
    return params | {
        "head.weight": weight.new_zeros(num_outputs, weight.shape[1]),
        "head.bias": weight.new_zeros(num_outputs),
    }
