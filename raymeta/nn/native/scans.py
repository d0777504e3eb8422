"""The compiled scans (`scans.cpp`) behind the functions of `raymeta.nn.torch_scans`.

Shape legend as there; in memory, too, episodes come first.  Compiled code reads whatever memory it
is pointed at, so every argument of every call is checked here: shape, dtype, device, contiguity.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymeta.nn.cells import NUM_GATES, NUM_SOURCES, Adjoint, Cell, Trace
from raymeta.nn.native import library

_CELLS: dict[Cell, int] = {"rnn": 0, "gru": 1, "lstm": 2}
_DTYPES = (torch.float32, torch.float64)
_NUM_TENSORS = {"run": 7, "adjoint": 10, "double_backward": 15}  # of the entries in scans.cpp


class _Argument(NamedTuple):
    """A tensor with the shape it must have; shape None where the cell has no such tensor."""

    name: str
    tensor: Tensor | None
    shape: tuple[int, ...] | None
    optional: bool = False


class _Sizes(NamedTuple):
    """A layer's sizes: episodes, time steps, examples, hidden units, and the width of all gates."""

    episodes: int
    steps: int
    examples: int
    hidden: int
    width: int

    @property
    def states(self) -> tuple[int, ...]:
        """The shape of h_1 … h_T."""
        return (self.episodes, self.steps, self.examples, self.hidden)

    @property
    def states_from_zero(self) -> tuple[int, ...]:
        """The shape of h_0 … h_T."""
        return (self.episodes, self.steps + 1, self.examples, self.hidden)

    @property
    def gates(self) -> tuple[int, ...]:
        """The shape of tensors with a value for every gate and step."""
        return (self.episodes, self.steps, self.examples, self.width)

    def sources(self, cell: Cell) -> tuple[int, ...]:
        """The shape of a scan's sources."""
        return (*self.states[:3], NUM_SOURCES[cell] * self.hidden)


def serves(inputs: Tensor) -> bool:
    """Whether the compiled scans can take these inputs."""
    return inputs.is_cpu and inputs.dtype in _DTYPES and library() is not None


def run(cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None) -> Trace:
    """`raymeta.nn.torch_scans.run`.

    Raises:
        ValueError: an argument has another shape, dtype or device than the others ask for; so do
            the functions below.
    """
    sizes = _sizes(cell, "inputs", inputs, weight, has_gates=True)
    p = inputs.contiguous()
    states = p.new_empty(sizes.states_from_zero)
    gates = torch.empty_like(p) if cell != "rnn" else None
    extra = None
    if cell != "rnn":
        extra = p.new_empty(sizes.states_from_zero if cell == "lstm" else sizes.states)
    trace = Trace(states, gates, extra)
    _call(
        "run",
        cell,
        sizes,
        p.dtype,
        _Argument("inputs", p, sizes.gates),
        _Argument("weight", weight.contiguous(), (sizes.episodes, sizes.hidden, sizes.width)),
        _Argument("bias", bias.contiguous(), (sizes.episodes, sizes.width)),
        _valid(valid, sizes),
        *_trace(cell, trace, sizes),
    )
    return trace


def adjoint(
    cell: Cell,
    trace: Trace,
    weight: Tensor,
    valid: Tensor | None,
    grad_states: Tensor,
    sources: Tensor | None,
) -> Adjoint:
    """`raymeta.nn.torch_scans.adjoint`."""
    sizes = _sizes(cell, "grad_states", grad_states, weight, has_gates=False)
    h = grad_states.clone(memory_format=torch.contiguous_format)
    q = h.new_empty(sizes.gates)
    c = torch.empty_like(h) if cell == "lstm" else None
    found = Adjoint(h, q, c, inputs=torch.empty_like(q) if cell == "gru" else None)
    transposed = weight.transpose(1, 2).contiguous()
    add = None if sources is None else sources.contiguous()
    _call(
        "adjoint",
        cell,
        sizes,
        h.dtype,
        _Argument("weight", transposed, (sizes.episodes, sizes.width, sizes.hidden)),
        _valid(valid, sizes),
        *_trace(cell, trace, sizes),
        _Argument("sources", add, sizes.sources(cell), optional=True),
        *_adjoint(cell, found, sizes),
        _Argument("adjoint.inputs", found.inputs, sizes.gates if cell == "gru" else None),
    )
    return found


def double_backward(
    cell: Cell,
    trace: Trace,
    adjoint: Adjoint,
    weight: Tensor,
    valid: Tensor | None,
    u_inputs: Tensor,
    u_weight: Tensor,
    u_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`raymeta.nn.torch_scans.double_backward`."""
    sizes = _sizes(cell, "adjoint.h", adjoint.h, weight, has_gates=False)
    by_weight = (sizes.episodes, sizes.hidden, sizes.width)
    if tuple(u_weight.shape) != by_weight:  # before it is transposed
        raise ValueError(
            f"double_backward: u_weight must be {list(by_weight)}, but got {_told(u_weight)}"
        )
    tangent = adjoint.h.new_empty(sizes.states_from_zero)
    add_h = torch.empty_like(adjoint.h)
    sources = add_h.new_empty(sizes.sources(cell))
    _call(
        "double_backward",
        cell,
        sizes,
        add_h.dtype,
        _Argument("weight", weight.contiguous(), by_weight),
        _valid(valid, sizes),
        *_trace(cell, trace, sizes),
        *_adjoint(cell, adjoint, sizes),
        _Argument("u_inputs", u_inputs.contiguous(), sizes.gates),
        _Argument("u_weight", u_weight.contiguous(), by_weight),
        _Argument(
            "u_weight, transposed",
            u_weight.transpose(1, 2).contiguous(),
            (sizes.episodes, sizes.width, sizes.hidden),
        ),
        _Argument(
            "u_bias",
            None if u_bias is None else u_bias.contiguous(),
            (sizes.episodes, sizes.width),
            optional=True,
        ),
        _Argument("tangent", tangent, sizes.states_from_zero),
        _Argument("add_h", add_h, sizes.states),
        _Argument("sources", sources, sizes.sources(cell)),
    )
    return tangent, add_h, sources


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, `[E, A, B]` by `[E, B, C]`.

    Raises:
        ValueError: the two do not fit each other.
    """
    if (
        left.dim() != 3
        or right.dim() != 3
        or left.shape[0] != right.shape[0]
        or left.shape[2] != right.shape[1]
        or left.dtype != right.dtype
        or left.dtype not in _DTYPES
        or not (left.is_cpu and right.is_cpu)
    ):
        raise ValueError(
            "a product is of [E, A, B] by [E, B, C], both float32 or both float64 on the CPU, but "
            f"got {_told(left)} by {_told(right)}"
        )
    episodes, rows, inner = left.shape
    columns = right.shape[2]
    a = left if 1 in left.stride()[1:] else left.contiguous()
    b = right if right.stride(2) == 1 else right.contiguous()
    product = a.new_empty(episodes, rows, columns)
    _function("multiply", a.dtype)(
        torch.get_num_threads(),
        (ctypes.c_long * 4)(episodes, rows, columns, inner),
        a.data_ptr(),
        (ctypes.c_long * 3)(*a.stride()),
        b.data_ptr(),
        (ctypes.c_long * 2)(*b.stride()[:2]),
        product.data_ptr(),
    )
    return product


def _sizes(cell: Cell, name: str, sequence: Tensor, weight: Tensor, *, has_gates: bool) -> _Sizes:
    """The sizes that a sequence `[E, T, N, H or G * H]` and a weight `[E, H, G * H]` agree on."""
    if cell not in _CELLS:
        raise ValueError(f"cell must be one of {', '.join(_CELLS)}, but got {cell!r}")
    if sequence.dim() != 4 or weight.dim() != 3 or 0 in sequence.shape or 0 in weight.shape:
        raise ValueError(
            f"{name} must be [E, T, N, _] and weight [E, H, {NUM_GATES[cell]} * H], none of them "
            f"empty, but got {_told(sequence)} and {_told(weight)}"
        )
    episodes, steps, examples, last = sequence.shape
    hidden = weight.shape[1]
    width = NUM_GATES[cell] * hidden
    if tuple(weight.shape) != (episodes, hidden, width) or last != (width if has_gates else hidden):
        raise ValueError(
            f"{name} {_told(sequence)} and the weight {_told(weight)} of a {cell} do not fit each "
            "other"
        )
    return _Sizes(episodes, steps, examples, hidden, width)


def _valid(valid: Tensor | None, sizes: _Sizes) -> _Argument:
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, but got {_told(valid)}")
    valid = None if valid is None else valid.contiguous()
    return _Argument("valid", valid, sizes.states[:3], optional=True)


def _trace(cell: Cell, trace: Trace, sizes: _Sizes) -> tuple[_Argument, ...]:
    extra = {"rnn": None, "gru": sizes.states, "lstm": sizes.states_from_zero}[cell]
    return (
        _Argument("trace.states", trace.states, sizes.states_from_zero),
        _Argument("trace.gates", trace.gates, None if cell == "rnn" else sizes.gates),
        _Argument("trace.extra", trace.extra, extra),
    )


def _adjoint(cell: Cell, adjoint: Adjoint, sizes: _Sizes) -> tuple[_Argument, ...]:
    return (
        _Argument("adjoint.h", adjoint.h, sizes.states),
        _Argument("adjoint.q", adjoint.q, sizes.gates),
        _Argument("adjoint.c", adjoint.c, sizes.states if cell == "lstm" else None),
    )


def _call(scan: str, cell: Cell, sizes: _Sizes, dtype: torch.dtype, *arguments: _Argument) -> None:
    """Calls a scan of `scans.cpp`, every argument checked; None is a null pointer."""
    pointers: list[int | None] = []
    for name, tensor, shape, optional in arguments:
        if tensor is None and (optional or shape is None):
            pointers.append(None)
        elif (
            tensor is None
            or tensor.shape != shape
            or tensor.dtype != (torch.bool if name == "valid" else dtype)
            or not tensor.is_cpu
            or not tensor.is_contiguous()
            or tensor.is_neg()  # its memory holds the negated numbers
        ):
            raise ValueError(
                f"{scan}: {name} must be "
                + ("None" if shape is None else f"{list(shape)}, contiguous {dtype} on the CPU")
                + f", but got {_told(tensor)}"
            )
        else:
            pointers.append(tensor.data_ptr())
    numbers = (ctypes.c_long * 4)(*sizes[:4])
    _function(scan, dtype)(_CELLS[cell], torch.get_num_threads(), numbers, *pointers)


def _told(tensor: Tensor | None) -> str:
    """Describes a tensor's shape, dtype, device and layout for a message."""
    if tensor is None:
        return "None"
    dense = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{list(tensor.shape)} ({tensor.dtype} on {tensor.device}{dense})"


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    """Gets an entry of `scans.cpp` with declared argument types, so that wrong calls raise."""
    compiled = library()
    if compiled is None or dtype not in _DTYPES:
        raise ValueError(f"there are no compiled scans for {dtype} here")
    function = compiled[f"{name}_{str(dtype).removeprefix('torch.')}"]
    function.restype = None
    pointer, number, numbers = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_long)
    if name == "multiply":
        function.argtypes = [number, numbers, pointer, numbers, pointer, numbers, pointer]
    else:
        function.argtypes = [number, number, numbers, *[pointer] * _NUM_TENSORS[name]]
    return function
