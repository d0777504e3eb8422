"""One time step of networks in one compiled call (`step.cpp`), from raw numbers to the answer.

A step of a small network takes a few microseconds, a single operation of torch about as many.  So
all that a step needs lies in memory of its own, laid out once, and a call passes one pointer.

Shape legend: N streams, C channels, H hidden units, G gates, O outputs, K classes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.nn.cells import NUM_GATES
from raymeta.nn.native import library
from raymeta.nn.networks import NetworkSpec, param_shapes

_CELLS = ("rnn", "gru", "lstm")  # in the order of products.h
_POOLINGS = ("last", "mean", "attention")  # in the order of step.cpp
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class _Plan(ctypes.Structure):
    """`Plan` of step.cpp."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("cell", "layers", "streams", "channels", "hidden")),
        *((name, ctypes.c_long) for name in ("outputs", "classes", "pooling", "has_unit_length")),
        *((name, ctypes.c_long) for name in ("num_steps", "current")),
        ("temperature", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "mean", "deviation")),
        *((name, ctypes.c_void_p) for name in ("head_weight", "head_bias", "params")),
        ("states", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("scratch", "features", "out")),
    )


@dataclass(frozen=True)
class AffineHead:
    """A linear head: answers are `features @ weight + bias`, `[H, O]` and `[O]` float64.

    `has_unit_length`: the features are divided by their length first.
    """

    weight: np.ndarray
    bias: np.ndarray
    has_unit_length: bool = False


class Steps:
    """Networks that answer together, one time step of N streams after another.

    Args:
        spec: the networks.
        networks: the parameters of each, without an episode axis.
        heads: of each.
        num_streams: N.
        num_classes: K, of the first outputs, whose probabilities are averaged; None for values.
        temperature: that divides outputs.
        mean: of the channels `[C]`, subtracted from raw numbers.
        deviation: of the channels `[C]`, by which the rest is divided.

    Raises:
        ValueError: the networks have no such form (`serves` tells), or sizes do not fit.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        networks: Sequence[Mapping[str, Tensor]],
        heads: Sequence[AffineHead],
        *,
        num_streams: int,
        num_classes: int | None,
        temperature: float,
        mean: np.ndarray,
        deviation: np.ndarray,
    ) -> None:
        dtype = networks[0]["rnn.weight_hh_l0"].dtype
        compiled = library()
        if compiled is None or not serves(spec, dtype):
            raise ValueError("these networks have no compiled steps here")
        channels, hidden, outputs = spec.input_size, spec.hidden_size, spec.num_outputs
        if not num_streams >= 1 or not 1 <= (num_classes or 1) <= outputs:
            raise ValueError(f"{num_streams} streams of {num_classes} classes do not fit {spec}")
        if len(heads) != len(networks):
            raise ValueError(f"{len(networks)} networks need as many heads, but got {len(heads)}")
        kind, gates = _DTYPES[dtype], NUM_GATES[spec.cell] * hidden
        cells = 2 if spec.cell == "lstm" else 1
        size = num_streams * (cells * spec.num_layers * hidden + hidden + 2)
        self._x = np.zeros((num_streams, channels))
        self._out = np.zeros((num_streams, num_classes or outputs))
        shared = {
            "x": self._x,
            "out": self._out,
            "mean": _checked("mean", mean, (channels,)),
            "deviation": _checked("deviation", deviation, (channels,)),
            "scratch": np.zeros(num_streams * (2 * gates + channels), kind),
            "features": np.zeros(hidden + outputs),
        }
        self._kept: list[Any] = [shared]  # what the plans point at
        self._plans = (_Plan * len(networks))()
        for plan, network, head in zip(self._plans, networks, heads, strict=True):
            own = {
                "params": _packed(spec, network, dtype),
                "head_weight": _checked("head.weight", head.weight, (hidden, outputs)),
                "head_bias": _checked("head.bias", head.bias, (outputs,)),
            }
            states = np.zeros((2, size), kind)
            states[:, size - num_streams :] = -np.inf  # the highest scores so far
            self._kept += [own, states]
            plan.cell, plan.pooling = _CELLS.index(spec.cell), _POOLINGS.index(spec.pooling)
            plan.layers, plan.streams, plan.channels = spec.num_layers, num_streams, channels
            plan.hidden, plan.outputs, plan.classes = hidden, outputs, num_classes or 0
            plan.has_unit_length, plan.temperature = head.has_unit_length, temperature
            for name, array in (shared | own).items():
                setattr(plan, name, array.ctypes.data)
            plan.states[:] = [state.ctypes.data for state in states]
        function = compiled[f"step_{str(dtype).removeprefix('torch.')}"]
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_void_p, ctypes.c_long]
        self._function, self._pointer = function, ctypes.addressof(self._plans)

    @property
    def num_steps(self) -> int:
        """The time steps so far."""
        return int(self._plans[0].num_steps)

    def step(self, x: np.ndarray) -> np.ndarray | None:
        """Probabilities `[N, K]` or values `[N, O]` after one more step; float64.

        None if the numbers, or the answer, are not finite; nothing has changed then.

        Args:
            x: raw numbers `[N, C]`.
        """
        np.copyto(self._x, x)
        if self._function(self._pointer, len(self._plans)):
            return None
        return self._out.copy()


def serves(spec: NetworkSpec, dtype: torch.dtype) -> bool:
    """Whether networks have compiled steps on this machine."""
    return (
        dtype in _DTYPES
        and not spec.bidirectional
        and spec.num_features is not None
        and spec.layer_dtype is None
        and library() is not None
    )


def _packed(spec: NetworkSpec, network: Mapping[str, Tensor], dtype: torch.dtype) -> np.ndarray:
    """All parameters of the layers and of the attention, as step.cpp has them."""
    shapes, parts = param_shapes(spec), []
    names = [
        f"rnn.{kind}_l{layer}"
        for layer in range(spec.num_layers)
        for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    ]
    for name in (*names, *["attention.weight"] * (spec.pooling == "attention")):
        value = network[name]
        if tuple(value.shape) != shapes[name] or value.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} {list(shapes[name])}, but got {value.dtype} "
                f"{list(value.shape)}"
            )
        parts.append((value.T if value.dim() == 2 else value).detach().cpu().numpy().ravel())
    return np.concatenate(parts)


def _checked(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    found = np.array(values, dtype=np.float64, order="C")
    if found.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, but got {list(found.shape)}")
    return found
