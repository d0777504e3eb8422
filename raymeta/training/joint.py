"""Joint training: one network on all meta-training tasks at once, by ordinary gradient steps.

With `training.pretrain_steps` it initialises meta-training: features learned on all classes
together are a better start than random ones (Chen et al. 2021, "Meta-Baseline").  With fine-tuning
it is the
control that meta-training must beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymeta.episodes import TaskDistribution
from raymeta.meta.joint import joint_batch, joint_gradient, joint_spec
from raymeta.nn.networks import NetworkSpec, Params, init_params
from raymeta.problem import Problem
from raymeta.training.distributed import Group
from raymeta.training.outer import OuterLoop, OuterOptimizer, cosine_rate, flat_sums


def train_joint(
    tasks: TaskDistribution,
    spec: NetworkSpec,
    problem: Problem,
    outer: OuterLoop,
    *,
    num_steps: int,
    lr: float,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    group: Group | None = None,
) -> Params:
    """Trains a network jointly; its head has a row for every class of meta-training.

    Args:
        tasks: the batch of a step is every example of the episodes of a meta-step.
        spec: the network; its head is replaced where classes differ from task to task.
        problem: whose loss is minimised.
        outer: batch size, clipping and weight decay.
        num_steps: of AdamW.
        lr: at the start; half a cosine takes it to zero.
        seed: of the initial weights.
        dtype: of the weights.
        device: to train on.
        group: the ranks that share the work; all get the same network.
    """
    group = group or Group()
    tasks = tasks.for_joint_training()
    spec = joint_spec(spec, tasks.num_train_classes, tasks.fixed_labels)
    generator = torch.Generator().manual_seed(seed)
    params = {k: v.to(device) for k, v in init_params(spec, generator, dtype).items()}
    optimizer = OuterOptimizer(params, clip=outer.clip, weight_decay=outer.weight_decay)

    def local_sums(indices: Sequence[int], step: int) -> Tensor:
        if len(indices) == 0:
            size = sum(value.numel() for value in params.values())
            return torch.zeros(size + 1, dtype=torch.float64, device=device)
        episodes = tasks.episodes("train", indices).to(device, dtype)
        batch = joint_batch(episodes, tasks.fixed_labels)
        count = batch.y.shape[1]
        grads, _ = joint_gradient(spec, problem, params, batch, seed=step)
        sums = {name: grad * count for name, grad in grads.items()}
        return flat_sums(sums, torch.tensor(float(count), device=device))

    for step in range(num_steps):
        first = step * outer.meta_batch_size
        mine = group.shard(range(first, first + outer.meta_batch_size))
        sums = group.sum(local_sums(mine, step))
        if bool(sums.isfinite().all()):
            optimizer.step(sums[:-1] / sums[-1], cosine_rate(lr, step, num_steps))
    return params
