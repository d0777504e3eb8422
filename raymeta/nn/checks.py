"""Refuses parameters and examples that do not fit a network or each other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def check_params(
    shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, Tensor], episodes: int
) -> None:
    """Checks that every parameter exists with its shape behind an axis of `episodes`.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, shape in shapes.items():
        value = params.get(name)
        if value is None or value.shape != (episodes, *shape):
            found = "no such parameter" if value is None else f"{list(value.shape)}"
            raise ValueError(
                f"parameter {name} must be {[episodes, *shape]} in this network, but got {found}"
            )


def check_inputs(
    num_features: int | None,
    vocabulary_size: int | None,
    episodes: int,
    x: Tensor,
    lengths: Tensor | None,
) -> None:
    """Checks the examples of a network of numbers, or of tokens if it has a vocabulary.

    Values are checked on the CPU alone: on a GPU every check would wait for it.

    Raises:
        ValueError: naming what does not fit.
    """
    if num_features is not None:
        wanted = f"floating-point [{episodes}, N, T, {num_features}]"
        fits = x.dim() == 4 and x.shape[3] == num_features and x.is_floating_point()
    else:
        wanted = f"int64 token ids [{episodes}, N, T]"
        fits = x.dim() == 3 and x.dtype == torch.int64
    if not fits or x.shape[0] != episodes or 0 in x.shape:
        raise ValueError(
            f"x must be {wanted}, not empty, for this network, but got {x.dtype} {list(x.shape)}"
        )
    if vocabulary_size is not None and x.is_cpu:
        _check_range("token ids", x, 0, vocabulary_size - 1)
    if lengths is None:
        return
    if lengths.shape != x.shape[:2] or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths must be int64 {list(x.shape[:2])}, but got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    if lengths.is_cpu:
        _check_range("lengths", lengths, 1, x.shape[2])


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    least, most = (int(value) for value in values.aminmax())
    if least < low or most > high:
        raise ValueError(f"{name} must be from {low} to {high}, but got {least} to {most}")
