"""Integrated gradients and occlusion of a function of sequences.

    IG_d(x) = (x_d - b_d) ∫₀¹ ∂f/∂x_d (b + α (x - b)) dα     (Sundararajan et al. 2017, equation 1)

The baseline b is the same at every time step.  The attributions of an example add up to f(x) - f(b)
(their proposition 1, completeness), which also tells how well the integral, a Gauss-Legendre sum,
is known.  Occlusion (Zeiler and Fergus 2014, section 4.2) replaces a window of
time by the baseline, in one channel after another, and takes the loss of f.

Shape legend: N examples, T time steps, C channels, D features of the network's vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from raymeta.errors import DataWarning

TOLERANCE = 1e-6  # of attributions and their sum, relative to an answer's difference above one
_NODES = (16, 32, 64, 128, 256, 512)  # tried one after the other
_AT_ONCE = 2**20  # numbers of a batch's vectors with derivatives; bounds memory

# Vectors [M, T, D] of examples of these rows [M] -> the answer of each [M].
Answer = Callable[[Tensor, Tensor], Tensor]


def integrated_gradients(
    answer: Answer,
    x: Tensor,
    baseline: Tensor,
    *,
    num_nodes: int | None = None,
    names: Sequence[str] = (),
) -> Tensor:
    """Integrated gradients `[N, T, D]`; zero for what f does not depend on, such as padding.

    Args:
        answer: f.
        x: the examples' vectors `[N, T, D]`.
        baseline: b, `[D]`, at every time step.
        num_nodes: of the sum.  None: twice as many again until the attributions are complete, and
            change no more, to `TOLERANCE`.
        names: of the examples, for the warning.

    Warns:
        DataWarning: attributions are not known to `TOLERANCE` with the most nodes.
    """
    rows = torch.arange(len(x))
    with torch.no_grad():
        ends = answer(x, rows) - answer(baseline.expand_as(x), rows)
    if num_nodes is not None:
        return _integral(answer, x, baseline, rows, num_nodes)
    scale = ends.abs().clamp(min=1)
    values = torch.full_like(x, torch.nan)
    for count in _NODES:
        before = values[rows]
        values[rows] = _integral(answer, x, baseline, rows, count)
        # Errors may cancel in the sum: neither may the values themselves still move.
        gaps = (values[rows].sum(dim=(1, 2)) - ends[rows]).abs()
        gaps = torch.maximum(gaps, (values[rows] - before).abs().amax(dim=(1, 2))) / scale[rows]
        rows = rows[~(gaps <= TOLERANCE)]
        if not len(rows):
            return values
    name = names[int(rows[0])] if names else f"example {int(rows[0]) + 1}"
    warnings.warn(
        f"{name}: its attributions are known to {gaps.max():.1g} only, with {_NODES[-1]} nodes; "
        "the answer changes abruptly on the way from the baseline",
        DataWarning,
        stacklevel=2,
    )
    return values


def _integral(answer: Answer, x: Tensor, baseline: Tensor, rows: Tensor, num_nodes: int) -> Tensor:
    """The Gauss-Legendre sum for the examples of `rows`, `[R, T, D]`."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)  # on [-1, 1]
    alphas, shares = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    most = max(1, _AT_ONCE // (x.shape[1] * x.shape[2]))  # of examples at once
    found = []
    for own in torch.split(rows, most):
        way = x[own] - baseline
        total = torch.zeros_like(way)
        num = max(1, most // len(own))
        for part, share in zip(torch.split(alphas, num), torch.split(shares, num), strict=True):
            with torch.enable_grad():
                points = (baseline + part[:, None, None, None] * way).flatten(0, 1)
                points.requires_grad_()
                summed = answer(points, own.repeat(len(part))).sum()
                (grads,) = torch.autograd.grad(summed, points)
            total += torch.einsum("a,artd->rtd", share, grads.view(len(part), *way.shape))
        found.append(way * total)
    return torch.cat(found)


@torch.no_grad()
def occlusion(
    answer: Answer,
    x: Tensor,
    baseline: Tensor,
    lengths: Tensor,
    *,
    window: int,
    channels: Sequence[slice],
) -> Tensor:
    """The drop of the answer when a window of time is replaced by the baseline, `[N, T, C]`.

    A window goes to every place within an example, one channel at a time.  A time step has the mean
    over the windows with it; a window longer than an example covers all of it.

    Args:
        answer: f.
        x: the examples' vectors `[N, T, D]`.
        baseline: `[D]`, at every time step.
        lengths: valid steps of each example, `[N]`.
        window: time steps.
        channels: the features of each of the C channels.
    """
    num_steps = x.shape[1]
    whole = answer(x, torch.arange(len(x)))
    steps = torch.arange(num_steps)
    total = x.new_zeros(*x.shape[:2], len(channels))
    count = x.new_zeros(*x.shape[:2], 1)
    for start in range(num_steps):
        rows = torch.nonzero((start + window <= lengths) | (start == 0)).flatten()
        if not len(rows):
            break
        ends = torch.minimum(start + torch.tensor(window), lengths[rows])
        inside = (steps >= start) & (steps < ends[:, None])  # [R, T]
        count[rows] += inside[..., None]
        for number, channel in enumerate(channels):
            occluded = x[rows]
            own = occluded[..., channel]
            occluded[..., channel] = torch.where(inside[..., None], baseline[channel], own)
            lost = whole[rows] - answer(occluded, rows)
            total[rows, :, number] += inside * lost[:, None]
    return torch.where(count > 0, total / count.clamp(min=1), 0.0)
