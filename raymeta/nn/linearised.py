"""A recurrent layer, linearised about its states: what the scans of its derivatives go by.

Shape legend: E episodes, T time steps, N examples, H hidden units, G gates.  All has time first,
`[T, E, N, ...]`, but for what `Trace` holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.nn.cells import Cell, Trace


@dataclass(frozen=True)
class Linear:
    """The coefficients of the linearised layer, or their tangents; None stands for zero.

    `gates` is B `[T, E, N, G * H]`, `keep` k, `cell` A, `forget` f and `new` the coefficient of a
    GRU's new-gate input, each `[T, E, N, H]`.
    """

    gates: Tensor
    keep: Tensor | None = None
    cell: Tensor | None = None
    forget: Tensor | None = None
    new: Tensor | None = None


def linearise(cell: Cell, trace: Trace, kept: Tensor | None) -> Linear:
    """The coefficients of the layer, linearised about its states."""
    states, activated, extra = _cell_trace(trace)
    previous = states[:-1]
    match cell:
        case "rnn":
            linear = Linear(_one_minus_square(activated))
        case "gru":
            r, z, n = activated.chunk(3, dim=-1)
            gates = torch.empty_like(activated)
            b_r, b_z, b_n = gates.chunk(3, dim=-1)
            new = _times_one_minus(_one_minus_square(n), z)
            torch.mul(new, r, out=b_n)
            _times_one_minus(torch.mul(b_n, extra, out=b_r), r)
            _times_one_minus(torch.sub(previous, n, out=b_z).mul_(z), z)
            linear = Linear(gates, keep=z, new=new)
        case "lstm":
            i, f, g, o = activated.chunk(4, dim=-1)
            gates = torch.empty_like(activated)
            b_i, b_f, b_g, b_o = gates.chunk(4, dim=-1)
            squashed = extra[1:].tanh()
            _times_one_minus(torch.mul(g, i, out=b_i), i)
            _times_one_minus(torch.mul(extra[:-1], f, out=b_f), f)
            torch.mul(_one_minus_square(g), i, out=b_g)
            _times_one_minus(torch.mul(squashed, o, out=b_o), o)
            linear = Linear(gates, cell=_one_minus_square(squashed).mul_(o), forget=f)
    if kept is None:
        return linear
    return Linear(
        gates=linear.gates * kept,
        keep=(~kept).to(previous.dtype)
        if linear.keep is None
        else torch.where(kept, linear.keep, 1.0),
        cell=None if linear.cell is None else linear.cell * kept,
        forget=None if linear.forget is None else torch.where(kept, linear.forget, 1.0),
        new=None if linear.new is None else linear.new * kept,
    )


def linearise_tangent(
    cell: Cell,
    trace: Trace,
    kept: Tensor | None,
    u_inputs: Tensor,
    tangent_h: Tensor,
    tangent_q: Tensor,
    tangent_c: Tensor | None,
) -> Linear:
    """The tangents of `linearise`'s coefficients, given those of inputs, products and states."""
    states, activated, extra = _cell_trace(trace)
    previous, tangent_previous = states[:-1], tangent_h[:-1]
    match cell:
        case "rnn":
            h = activated
            tangents = Linear(_one_minus_square(h).mul_(h).mul_(tangent_q).mul_(-2))
        case "gru":
            r, z, n = activated.chunk(3, dim=-1)
            ur, uz, un = u_inputs.chunk(3, dim=-1)
            qr, qz, qn = tangent_q.chunk(3, dim=-1)
            product = extra
            # Tangents of the gates …
            r_ = _times_one_minus((ur + qr).mul_(r), r)
            z_ = _times_one_minus((uz + qz).mul_(z), z)
            slope_n = _one_minus_square(n)
            n_ = torch.addcmul(un, r_, product).addcmul_(r, qn).mul_(slope_n)
            # … and of the coefficients' factors, in the order of `linearise`.
            new = _times_one_minus(slope_n.clone(), z)
            new_ = (n * n_).mul_(-2)
            new_ = _times_one_minus(new_, z).addcmul_(slope_n, z_, value=-1)
            gates = torch.empty_like(activated)
            b_r, b_z, b_n = gates.chunk(3, dim=-1)
            torch.mul(new_, r, out=b_n).addcmul_(new, r_)
            # B_r = (new r) · product · (1 - r)
            left = new * r
            torch.mul(b_n, product, out=b_r).addcmul_(left, qn)
            _times_one_minus(b_r, r).addcmul_(left.mul_(product), r_, value=-1)
            # B_z = (h - n) · z (1 - z)
            _sigmoid_tangent(b_z, previous - n, tangent_previous - n_, z, z_)
            tangents = Linear(gates, keep=z_, new=new_)
        case "lstm":
            i, f, g, o = activated.chunk(4, dim=-1)
            ai, af, ag, ao = tangent_q.chunk(4, dim=-1)
            assert tangent_c is not None
            c, c_ = extra[:-1], tangent_c[:-1]
            i_ = _times_one_minus(ai * i, i)
            f_ = _times_one_minus(af * f, f)
            g_ = _one_minus_square(g).mul_(ag)
            o_ = _times_one_minus(ao * o, o)
            squashed = extra[1:].tanh()
            slope = _one_minus_square(squashed)
            squashed_ = slope * tangent_c[1:]
            gates = torch.empty_like(activated)
            b_i, b_f, b_g, b_o = gates.chunk(4, dim=-1)
            _sigmoid_tangent(b_i, g, g_, i, i_)
            _sigmoid_tangent(b_f, c, c_, f, f_)
            _sigmoid_tangent(b_o, squashed, squashed_, o, o_)
            torch.mul(_one_minus_square(g), i_, out=b_g).addcmul_((i * g), g_, value=-2)
            a = slope.mul_(o_).addcmul_(squashed.mul_(o), squashed_, value=-2)
            tangents = Linear(gates, cell=a, forget=f_)
    if kept is None:
        return tangents
    return Linear(
        gates=tangents.gates * kept,
        keep=None if tangents.keep is None else tangents.keep * kept,
        cell=None if tangents.cell is None else tangents.cell * kept,
        forget=None if tangents.forget is None else tangents.forget * kept,
        new=None if tangents.new is None else tangents.new * kept,
    )


def _one_minus_square(x: Tensor) -> Tensor:
    """The derivative of tanh where tanh is `x`, in one pass."""
    return torch.addcmul(x.new_ones(()), x, x, value=-1)


def _times_one_minus(x: Tensor, y: Tensor) -> Tensor:
    """Multiplies `x` by 1 - y in place."""
    return x.addcmul_(x, y, value=-1)


def _sigmoid_tangent(out: Tensor, x: Tensor, x_: Tensor, s: Tensor, s_: Tensor) -> None:
    """Writes the tangent of x s (1 - s) to `out`, given those of x and s (marked by `_`)."""
    _times_one_minus(torch.mul(x_, s, out=out), s).addcmul_(x, s_)
    out.addcmul_(x * s, s_, value=-2)


def _cell_trace(trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
    """States, gates and extra with time first; an RNN's gates are its states."""
    states = swapped(trace.states)
    if trace.gates is None or trace.extra is None:
        return states, states[1:], states.new_empty(0)
    return states, swapped(trace.gates), swapped(trace.extra)


def kept_steps(valid: Tensor | None) -> Tensor | None:
    """The valid steps `[E, T, N]` as `[T, E, N, 1]`, to multiply by."""
    return None if valid is None else swapped(valid).unsqueeze(-1).contiguous()


def swapped(tensor: Tensor) -> Tensor:
    """Swaps the axes of episodes and time."""
    return tensor.transpose(0, 1)
