"""The compiled scans (`scans.cpp`) behind the functions of `raymeta.scans`.

Shape legend as there; in memory, too, episodes come first.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from raymeta.native import library
from raymeta.scans import NUM_SOURCES, Adjoint, Cell, Trace

_CELLS: dict[Cell, int] = {"rnn": 0, "gru": 1, "lstm": 2}


def serves(inputs: Tensor) -> bool:
    """Whether the compiled scans can take these inputs."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype in (torch.float32, torch.float64)
        and library() is not None
    )


def run(cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None) -> Trace:
    """`raymeta.scans.run`."""
    p = inputs.contiguous()
    episodes, steps, examples, _ = p.shape
    hidden = weight.shape[1]
    states = p.new_empty(episodes, steps + 1, examples, hidden)
    gates = torch.empty_like(p) if cell != "rnn" else None
    extra = None
    if cell != "rnn":
        longer = steps + (cell == "lstm")
        extra = p.new_empty(episodes, longer, examples, hidden)
    trace = Trace(states, gates, extra)
    _call("run", cell, states, p, weight.contiguous(), bias.contiguous(), _mask(valid), *trace)
    return trace


def adjoint(
    cell: Cell,
    trace: Trace,
    weight: Tensor,
    valid: Tensor | None,
    grad_states: Tensor,
    sources: Tensor | None,
) -> Adjoint:
    """`raymeta.scans.adjoint`."""
    h = grad_states.clone(memory_format=torch.contiguous_format)
    q = h.new_empty(*h.shape[:3], weight.shape[2])
    c = torch.empty_like(h) if cell == "lstm" else None
    found = Adjoint(h, q, c, inputs=torch.empty_like(q) if cell == "gru" else None)
    transposed = weight.transpose(1, 2).contiguous()
    add = None if sources is None else sources.contiguous()
    _call("adjoint", cell, trace.states, transposed, _mask(valid), *trace, add, *found)
    return found


def turn(
    cell: Cell,
    trace: Trace,
    adjoint: Adjoint,
    weight: Tensor,
    valid: Tensor | None,
    u_inputs: Tensor,
    u_weight: Tensor,
    u_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`raymeta.scans.turn`."""
    tangent = torch.empty_like(trace.states)
    add_h = torch.empty_like(adjoint.h)
    hidden = add_h.shape[-1]
    sources = add_h.new_empty(*add_h.shape[:3], NUM_SOURCES[cell] * hidden)
    _call(
        "turn",
        cell,
        trace.states,
        weight.contiguous(),
        _mask(valid),
        *trace,
        adjoint.h,
        adjoint.q,
        adjoint.c,
        u_inputs.contiguous(),
        u_weight.contiguous(),
        u_weight.transpose(1, 2).contiguous(),
        None if u_bias is None else u_bias.contiguous(),
        tangent,
        add_h,
        sources,
    )
    return tangent, add_h, sources


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, `[E, A, B]` by `[E, B, C]`."""
    episodes, rows, inner = left.shape
    columns = right.shape[2]
    a = left if 1 in left.stride()[1:] else left.contiguous()
    b = right if right.stride(2) == 1 else right.contiguous()
    product = a.new_empty(episodes, rows, columns)
    function = _function("multiply", a.dtype)
    function(
        torch.get_num_threads(),
        (ctypes.c_long * 4)(episodes, rows, columns, inner),
        ctypes.c_void_p(a.data_ptr()),
        (ctypes.c_long * 3)(*a.stride()),
        ctypes.c_void_p(b.data_ptr()),
        (ctypes.c_long * 2)(*b.stride()[:2]),
        ctypes.c_void_p(product.data_ptr()),
    )
    return product


def _call(scan: str, cell: Cell, states: Tensor, *tensors: Tensor | None) -> None:
    """Calls a scan of `scans.cpp`; all tensors are contiguous, and None is a null pointer."""
    episodes, longer, examples, hidden = states.shape
    sizes = (ctypes.c_long * 4)(episodes, longer - 1, examples, hidden)
    pointers = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]
    _function(scan, states.dtype)(_CELLS[cell], torch.get_num_threads(), sizes, *pointers)


def _function(name: str, dtype: torch.dtype) -> Any:
    compiled = library()
    assert compiled is not None, "serves() comes first"
    function = compiled[f"{name}_{str(dtype).removeprefix('torch.')}"]
    function.restype = None
    return function


def _mask(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.contiguous()
