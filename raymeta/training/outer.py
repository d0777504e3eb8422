"""The outer loop's optimiser: AdamW on a flat gradient that all ranks share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.meta.inner import is_decayed
from raymeta.nn.networks import Params


@dataclass(frozen=True, kw_only=True)
class OuterLoop:
    """The settings of the outer loop; AdamW (Loshchilov and Hutter 2019) on the mean gradient.

    Counts are in meta-steps; `clip` bounds the norm of the mean gradient.  The first
    `pretrain_steps` train one network on all tasks jointly, the `meta_steps` after them meta-train.
    """

    pretrain_steps: int
    meta_steps: int
    meta_batch_size: int
    lr: float
    clip: float | None
    weight_decay: float
    cosine: bool
    val_episodes: int
    max_skipped: int

    def lr_at(self, step: int) -> float:
        """The learning rate of meta-step `step`: constant, or half a cosine down to zero."""
        return cosine_rate(self.lr, step, self.meta_steps) if self.cosine else self.lr


def cosine_rate(start: float, step: int, num_steps: int) -> float:
    """Half a cosine from `start` at step 0 down to zero at `num_steps`."""
    return start * 0.5 * (1 + math.cos(math.pi * step / num_steps))


class OuterOptimizer:
    """AdamW over a dict of parameters, which it updates in place."""

    def __init__(self, params: Params, *, clip: float | None, weight_decay: float) -> None:
        self._params = params
        self._clip = clip
        # Weight decay pulls to zero: the logarithm of a rate to a rate of one, a rate to no step.
        weights = [value for name, value in params.items() if is_decayed(name)]
        others = [value for name, value in params.items() if not is_decayed(name)]
        groups: list[dict[str, object]] = [{"params": weights, "weight_decay": weight_decay}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        self._adamw = torch.optim.AdamW(groups)
        for value in params.values():
            # The moments exist from the start, so that step 0 is saved like any other.
            self._adamw.state[value] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": torch.zeros_like(value),
            }

    def step(self, gradient: Tensor, lr: float) -> float:
        """Takes one step.

        Args:
            gradient: flat, in the order of the parameters.
            lr: of this step.

        Returns:
            The gradient's norm before clipping.
        """
        norm = gradient.norm().item()
        scale = 1.0 if self._clip is None else min(1.0, self._clip / max(norm, 1e-30))
        offset = 0
        for value in self._params.values():
            flat = gradient[offset : offset + value.numel()] * scale
            value.grad = flat.view(value.shape).to(value.dtype)
            offset += value.numel()
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        return norm

    def moments(self) -> Params:
        """The optimiser's state by name: the tensors themselves, to read or to overwrite."""
        return {
            f"adamw.{key}.{name}": moment
            for name, value in self._params.items()
            for key, moment in self._adamw.state[value].items()
        }


def flat_sums(grads: Params, *rest: Tensor) -> Tensor:
    """Gradients and further sums in one flat float64 buffer, which one all-reduce adds up."""
    parts = [grad.flatten().double() for grad in grads.values()]
    return torch.cat([*parts, *(value.double().view(-1) for value in rest)])
