"""One recurrent layer over a whole sequence, with its first and second derivative written out.

Autograd would record every small operation of every time step, and again for every derivative.
Here one function runs the layer, one its derivative, one the derivative of that; each is a loop
over time with one batched product and a few element-wise operations in it, everything else being
done for all time steps at once.

Notation.  The layer computes, from inputs p_t and weights W, the products q_t = h_{t-1} W and the
states h_t (for an LSTM also c_t).  Linearised about the states it went through, it reads

    RNN, GRU:   ĥ_t = Σ_gates B_t q̂_t + k_t ĥ_{t-1}                       + (terms in p̂_t)
    LSTM:       ĉ_t = Σ_{i,f,g} B_t q̂_t + f_t ĉ_{t-1},   ĥ_t = B_t q̂_t|_o + A_t ĉ_t + k_t ĥ_{t-1}

with element-wise coefficients B, k, A, f.  Run forwards this gives directional derivatives (the
tangent scan), run backwards gradients (the adjoint scan).  The gradient g = ∇⟨G, h(p, W)⟩ is one
adjoint scan.  Its own derivative in direction u, the Hessian-vector product that second-order
meta-gradients consist of, is Pearlmutter's R-operator (1994): a tangent scan in direction u, whose
states are at once ∂⟨u, g⟩/∂G, and an adjoint scan over the same coefficients whose sources are the
tangents B̂, k̂, Â, f̂ of the coefficients.  A third derivative does not exist.

A step beyond an example's length repeats the state before it: there B = A = 0 and k = f = 1.

Shape legend: E episodes, T time steps, N examples, H hidden units, G gates.  Within this file time
comes first, `[T, E, N, ...]`: the batched product wants its result contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Cell = Literal["rnn", "gru", "lstm"]

NUM_GATES: dict[Cell, int] = {"rnn": 1, "gru": 3, "lstm": 4}


def recurrence(
    cell: Cell,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The states `[E, T, N, H]` of one recurrent layer that starts at zero; twice differentiable.

    Args:
        cell: `rnn` (tanh), `gru` (the form of `torch.nn.GRU`) or `lstm`.
        inputs: the projected inputs p `[E, T, N, G * H]`, with all biases that only add up; gates
            in torch's order: reset, update, new; or input, forget, cell, output.
        weight: recurrent weights W `[E, H, G * H]`.
        bias: of the recurrent product, `[E, G * H]`; the GRU's, whose reset gate acts on it.
        valid: bool `[E, T, N]`: steps within the example; None for all.
    """
    if bias is None:
        bias = weight.new_zeros(weight.shape[0], weight.shape[2])
    kept = None if valid is None else valid.transpose(0, 1).unsqueeze(-1).contiguous()
    states: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
        cell, inputs.transpose(0, 1), weight, bias, kept
    )
    return states.transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """Inputs `[T, E, N, G * H]` to states `[T, E, N, H]`."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None
    ) -> Tensor:
        ctx.cell = cell
        trace = _run(cell, inputs, weight, bias, kept)
        ctx.save_for_backward(inputs, weight, bias, kept, *trace.tensors())
        return trace.states[1:]

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, kept, *trace = ctx.saved_tensors
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            ctx.cell, grad_states, inputs, weight, bias, kept, *trace
        )
        return (None, *grads, None)


class _Gradient(torch.autograd.Function):
    """∇⟨G, h⟩ with respect to inputs, weight and bias, as a function of G and of those three.

    The trace is a function of the three as well; it comes along as constants, since the derivative
    below already follows every path through them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        grad_states: Tensor,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,  # noqa: ARG004  (its value is in the trace; its gradient goes here)
        kept: Tensor | None,
        *trace_tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        trace = _Trace(*trace_tensors)
        linear = _linearise(cell, trace, kept)
        adjoint = _adjoint_scan(
            linear,
            weight,
            source_h=grad_states.clone(memory_format=torch.contiguous_format),
            source_q=torch.zeros_like(inputs, memory_format=torch.contiguous_format),
        )
        ctx.cell, ctx.linear = cell, linear
        ctx.save_for_backward(weight, kept, *adjoint.tensors(), *trace_tensors)
        grad_inputs = _input_gradient(cell, linear, adjoint.h, adjoint.q)
        return grad_inputs, _outer(trace.states[:-1], adjoint.q), _sum_examples(adjoint.q)

    @staticmethod
    def backward(
        ctx: Any, u_inputs: Tensor, u_weight: Tensor, u_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # What follows is not recorded: its derivative would be silently wrong.
            raise RuntimeError("recurrence has no third derivative: leave create_graph out")
        weight, kept, adjoint_h, adjoint_q, adjoint_c, *trace_tensors = ctx.saved_tensors
        cell, linear, trace = ctx.cell, ctx.linear, _Trace(*trace_tensors)
        previous = trace.states[:-1]

        # Tangents in direction u of all q and all states.
        tangent_q = _product(previous, u_weight) + u_bias.unsqueeze(1)
        tangent = _tangent_scan(cell, linear, weight, u_inputs, tangent_q)
        turned = _linearise_tangent(cell, trace, kept, u_inputs, tangent)

        # Tangents of the adjoints: the same scan, with what the turning coefficients add.
        source_h = torch.zeros_like(adjoint_h)
        carried = _product(adjoint_q, u_weight.transpose(1, 2))
        if turned.keep is not None:
            carried.addcmul_(adjoint_h, turned.keep)
        source_h[:-1] = carried[1:]
        source_c = None
        if turned.cell is not None and turned.forget is not None:
            source_c = adjoint_h * turned.cell
            source_c[:-1].addcmul_(adjoint_c[1:], turned.forget[1:])
        source_q = _spread(cell, turned.gates, adjoint_h, adjoint_c)
        moved = _adjoint_scan(
            linear, weight, source_h=source_h, source_q=source_q, source_c=source_c
        )

        grad_inputs = moved.q
        if turned.new is not None:
            grad_inputs = _input_gradient(cell, linear, moved.h, moved.q)
            hidden = adjoint_h.shape[-1]
            grad_inputs[..., 2 * hidden :].addcmul_(adjoint_h, turned.new)
        grad_weight = _outer(previous, moved.q)
        grad_weight += _outer(tangent.h[:-1], adjoint_q)
        grads = (tangent.h[1:], grad_inputs, grad_weight, _sum_examples(moved.q))
        return (None, *grads, None, *[None] * len(trace_tensors))


@dataclass(frozen=True)
class _Trace:
    """What the layer went through: states h_0 … h_T, activated gates, and what the cell needs more.

    `extra` are the recurrent products of a GRU's new gate `[T, E, N, H]`, or an LSTM's cell states
    c_0 … c_T `[T + 1, E, N, H]`; empty for an RNN.
    """

    states: Tensor
    gates: Tensor
    extra: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.states, self.gates, self.extra


@dataclass(frozen=True)
class _Linear:
    """The coefficients of the linearised layer, or their tangents; None for what is zero.

    `gates` is B `[T, E, N, G * H]`, `keep` k, `cell` A, `forget` f and `new` the coefficient of a
    GRU's new-gate input, each `[T, E, N, H]`.
    """

    gates: Tensor
    keep: Tensor | None = None
    cell: Tensor | None = None
    forget: Tensor | None = None
    new: Tensor | None = None


@dataclass(frozen=True)
class _Scan:
    """The h, q and c of a tangent or adjoint scan; `c` is empty without a cell state."""

    h: Tensor
    q: Tensor
    c: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.h, self.q, self.c


def _run(cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None) -> _Trace:
    steps, episodes, examples, width = inputs.shape
    hidden = weight.shape[1]
    states = inputs.new_empty(steps + 1, episodes, examples, hidden)
    states[0] = 0
    gates = inputs.clone(memory_format=torch.contiguous_format)
    extra = inputs.new_empty(0)
    if cell == "gru":
        products = bias.unsqueeze(1).expand(steps, episodes, examples, width).clone()
        extra = products[..., 2 * hidden :]
    else:
        gates += bias.unsqueeze(1)
        if cell == "lstm":
            extra = torch.empty_like(states)
            extra[0] = 0
    h, g, x = states.unbind(0), gates.unbind(0), extra.unbind(0)
    m = kept.unbind(0) if kept is not None else None
    for t in range(steps):
        new, gate = h[t + 1], g[t]
        match cell:
            case "rnn":
                torch.tanh(gate.baddbmm_(h[t], weight), out=new)
            case "gru":
                product = products[t].baddbmm_(h[t], weight)
                gate[..., : 2 * hidden].add_(product[..., : 2 * hidden]).sigmoid_()
                r, z, n = gate.chunk(3, dim=-1)
                torch.lerp(n.addcmul_(r, x[t]).tanh_(), h[t], z, out=new)
            case "lstm":
                gate.baddbmm_(h[t], weight)
                gate[..., : 2 * hidden].sigmoid_()
                gate[..., 2 * hidden : 3 * hidden].tanh_()
                gate[..., 3 * hidden :].sigmoid_()
                i, f, c, o = gate.chunk(4, dim=-1)
                torch.mul(f, x[t], out=x[t + 1]).addcmul_(i, c)
                torch.tanh(x[t + 1], out=new).mul_(o)
        if m is not None:
            torch.where(m[t], new, h[t], out=new)
            if cell == "lstm":
                torch.where(m[t], x[t + 1], x[t], out=x[t + 1])
    if cell == "rnn" and kept is None:
        gates = states[1:]
    elif cell == "rnn":
        gates.tanh_()
    return _Trace(states, gates, extra)


def _linearise(cell: Cell, trace: _Trace, kept: Tensor | None) -> _Linear:
    """The coefficients about the states the layer went through."""
    previous = trace.states[:-1]
    match cell:
        case "rnn":
            linear = _Linear(_one_minus_square(trace.gates))
        case "gru":
            r, z, n = trace.gates.chunk(3, dim=-1)
            gates = torch.empty_like(trace.gates)
            b_r, b_z, b_n = gates.chunk(3, dim=-1)
            new = _times_one_minus(_one_minus_square(n), z)
            torch.mul(new, r, out=b_n)
            _times_one_minus(torch.mul(b_n, trace.extra, out=b_r), r)
            _times_one_minus(torch.sub(previous, n, out=b_z).mul_(z), z)
            linear = _Linear(gates, keep=z, new=new)
        case "lstm":
            i, f, g, o = trace.gates.chunk(4, dim=-1)
            gates = torch.empty_like(trace.gates)
            b_i, b_f, b_g, b_o = gates.chunk(4, dim=-1)
            squashed = trace.extra[1:].tanh()
            _times_one_minus(torch.mul(g, i, out=b_i), i)
            _times_one_minus(torch.mul(trace.extra[:-1], f, out=b_f), f)
            torch.mul(_one_minus_square(g), i, out=b_g)
            _times_one_minus(torch.mul(squashed, o, out=b_o), o)
            linear = _Linear(gates, cell=_one_minus_square(squashed).mul_(o), forget=f)
    if kept is None:
        return linear
    return _Linear(
        gates=linear.gates * kept,
        keep=(~kept).to(previous.dtype)
        if linear.keep is None
        else torch.where(kept, linear.keep, 1.0),
        cell=None if linear.cell is None else linear.cell * kept,
        forget=None if linear.forget is None else torch.where(kept, linear.forget, 1.0),
        new=None if linear.new is None else linear.new * kept,
    )


def _linearise_tangent(
    cell: Cell, trace: _Trace, kept: Tensor | None, u_inputs: Tensor, tangent: _Scan
) -> _Linear:
    """The tangents of `_linearise`'s coefficients, given those of inputs, products and states."""
    previous, tangent_previous = trace.states[:-1], tangent.h[:-1]
    match cell:
        case "rnn":
            h = trace.gates
            turned = _Linear(_one_minus_square(h).mul_(h).mul_(tangent.q).mul_(-2))
        case "gru":
            r, z, n = trace.gates.chunk(3, dim=-1)
            ur, uz, un = u_inputs.chunk(3, dim=-1)
            qr, qz, qn = tangent.q.chunk(3, dim=-1)
            product = trace.extra
            # Tangents of the gates …
            r_ = _times_one_minus((ur + qr).mul_(r), r)
            z_ = _times_one_minus((uz + qz).mul_(z), z)
            slope_n = _one_minus_square(n)
            n_ = torch.addcmul(un, r_, product).addcmul_(r, qn).mul_(slope_n)
            # … and of the coefficients' factors, in the order of `_linearise`.
            new = _times_one_minus(slope_n.clone(), z)
            new_ = (n * n_).mul_(-2)
            new_ = _times_one_minus(new_, z).addcmul_(slope_n, z_, value=-1)
            gates = torch.empty_like(trace.gates)
            b_r, b_z, b_n = gates.chunk(3, dim=-1)
            torch.mul(new_, r, out=b_n).addcmul_(new, r_)
            # B_r = (new r) · product · (1 - r)
            left = new * r
            torch.mul(b_n, product, out=b_r).addcmul_(left, qn)
            _times_one_minus(b_r, r).addcmul_(left.mul_(product), r_, value=-1)
            # B_z = (h - n) · z (1 - z)
            _turn_sigmoid(b_z, previous - n, tangent_previous - n_, z, z_)
            turned = _Linear(gates, keep=z_, new=new_)
        case "lstm":
            i, f, g, o = trace.gates.chunk(4, dim=-1)
            ai, af, ag, ao = tangent.q.chunk(4, dim=-1)
            c, c_ = trace.extra[:-1], tangent.c[:-1]
            i_ = _times_one_minus(ai * i, i)
            f_ = _times_one_minus(af * f, f)
            g_ = _one_minus_square(g).mul_(ag)
            o_ = _times_one_minus(ao * o, o)
            squashed = trace.extra[1:].tanh()
            slope = _one_minus_square(squashed)
            squashed_ = slope * tangent.c[1:]
            gates = torch.empty_like(trace.gates)
            b_i, b_f, b_g, b_o = gates.chunk(4, dim=-1)
            _turn_sigmoid(b_i, g, g_, i, i_)
            _turn_sigmoid(b_f, c, c_, f, f_)
            _turn_sigmoid(b_o, squashed, squashed_, o, o_)
            torch.mul(_one_minus_square(g), i_, out=b_g).addcmul_((i * g), g_, value=-2)
            a = slope.mul_(o_).addcmul_(squashed.mul_(o), squashed_, value=-2)
            turned = _Linear(gates, cell=a, forget=f_)
    if kept is None:
        return turned
    return _Linear(
        gates=turned.gates * kept,
        keep=None if turned.keep is None else turned.keep * kept,
        cell=None if turned.cell is None else turned.cell * kept,
        forget=None if turned.forget is None else turned.forget * kept,
        new=None if turned.new is None else turned.new * kept,
    )


def _adjoint_scan(
    linear: _Linear,
    weight: Tensor,
    *,
    source_h: Tensor,
    source_q: Tensor,
    source_c: Tensor | None = None,
) -> _Scan:
    """Runs the linearised layer backwards; the sources are overwritten by the result."""
    steps, episodes, examples, hidden = source_h.shape
    transposed = weight.transpose(1, 2)
    h, q = source_h.unbind(0), source_q.unbind(0)
    q_by_gate = source_q.view(steps, episodes, examples, -1, hidden).unbind(0)
    h_by_gate = source_h.unsqueeze(-2).unbind(0)
    gates = linear.gates.view(steps, episodes, examples, -1, hidden)
    keep = linear.keep.unbind(0) if linear.keep is not None else None
    if linear.forget is None:
        b = gates.unbind(0)
        for t in range(steps - 1, -1, -1):
            q_by_gate[t].addcmul_(h_by_gate[t], b[t])
            if t:
                if keep is not None:
                    h[t - 1].addcmul_(h[t], keep[t])
                h[t - 1].baddbmm_(q[t], transposed)
        return _Scan(source_h, source_q, source_h.new_empty(0))

    assert linear.cell is not None
    if source_c is None:
        source_c = torch.zeros_like(source_h)
    c, c_by_gate = source_c.unbind(0), source_c.unsqueeze(-2).unbind(0)
    b_ifg, b_o = gates[..., :3, :].unbind(0), gates[..., 3, :].unbind(0)
    a, forget = linear.cell.unbind(0), linear.forget.unbind(0)
    for t in range(steps - 1, -1, -1):
        c[t].addcmul_(h[t], a[t])
        q_by_gate[t][..., :3, :].addcmul_(c_by_gate[t], b_ifg[t])
        q_by_gate[t][..., 3, :].addcmul_(h[t], b_o[t])
        if t:
            c[t - 1].addcmul_(c[t], forget[t])
            if keep is not None:
                h[t - 1].addcmul_(h[t], keep[t])
            h[t - 1].baddbmm_(q[t], transposed)
    return _Scan(source_h, source_q, source_c)


def _tangent_scan(
    cell: Cell, linear: _Linear, weight: Tensor, u_inputs: Tensor, source_q: Tensor
) -> _Scan:
    """Runs the linearised layer forwards in direction `u_inputs`.

    `source_q`, the part of q̂ that needs no state, is overwritten by the scan's q: q̂ for a GRU, and
    for the other cells, where inputs and products only add up, p̂ + q̂.
    """
    steps, episodes, examples, _ = source_q.shape
    hidden = weight.shape[1]
    by_gate = (steps, episodes, examples, -1, hidden)
    h = source_q.new_zeros(steps + 1, episodes, examples, hidden)
    # What the inputs add by themselves, for all steps at once.
    gates = linear.gates.view(by_gate)
    if cell == "gru":
        assert linear.new is not None
        ur, uz, un = u_inputs.chunk(3, dim=-1)
        br, bz, _ = linear.gates.chunk(3, dim=-1)
        torch.mul(br, ur, out=h[1:]).addcmul_(bz, uz).addcmul_(linear.new, un)
        total = source_q
    else:
        total = source_q.add_(u_inputs)
    states, q = h.unbind(0), total.unbind(0)
    q_by_gate = total.view(by_gate).unbind(0)
    keep = linear.keep.unbind(0) if linear.keep is not None else None
    c = source_q.new_empty(0)
    if linear.forget is None:
        b = gates.unbind(0)
        for t in range(steps):
            q[t].baddbmm_(states[t], weight)
            _add_products(states[t + 1], q_by_gate[t], b[t])
            if keep is not None:
                states[t + 1].addcmul_(states[t], keep[t])
    else:
        assert linear.cell is not None
        c = torch.empty_like(h)
        c[0] = 0
        cells, a, forget = c.unbind(0), linear.cell.unbind(0), linear.forget.unbind(0)
        b_ifg, b_o = gates[..., :3, :].unbind(0), gates[..., 3, :].unbind(0)
        for t in range(steps):
            q[t].baddbmm_(states[t], weight)
            torch.mul(cells[t], forget[t], out=cells[t + 1])
            _add_products(cells[t + 1], q_by_gate[t][..., :3, :], b_ifg[t])
            torch.mul(q_by_gate[t][..., 3, :], b_o[t], out=states[t + 1])
            states[t + 1].addcmul_(cells[t + 1], a[t])
            if keep is not None:
                states[t + 1].addcmul_(states[t], keep[t])
    return _Scan(h, total, c)


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds Σ_gates left · right, both `[E, N, G, H]`, to `total` `[E, N, H]`."""
    for a, b in zip(left.unbind(-2), right.unbind(-2), strict=True):
        total.addcmul_(a, b)


def _one_minus_square(x: Tensor) -> Tensor:
    """The derivative of tanh where tanh is `x`, in one pass."""
    return torch.addcmul(x.new_ones(()), x, x, value=-1)


def _times_one_minus(x: Tensor, y: Tensor) -> Tensor:
    """Makes `x` x (1 - y), in place."""
    return x.addcmul_(x, y, value=-1)


def _turn_sigmoid(out: Tensor, x: Tensor, x_: Tensor, s: Tensor, s_: Tensor) -> None:
    """Writes the tangent of x s (1 - s) to `out`, given those of x and s (marked by `_`)."""
    _times_one_minus(torch.mul(x_, s, out=out), s).addcmul_(x, s_)
    out.addcmul_(x * s, s_, value=-2)


def _spread(cell: Cell, gates: Tensor, adjoint_h: Tensor, adjoint_c: Tensor) -> Tensor:
    """The adjoints of q that coefficients `gates` `[T, E, N, G * H]` give, all steps at once."""
    hidden = adjoint_h.shape[-1]
    by_gate = gates.view(*gates.shape[:-1], -1, hidden)
    if cell != "lstm":
        return (by_gate * adjoint_h.unsqueeze(-2)).flatten(-2)
    ifg = by_gate[..., :3, :] * adjoint_c.unsqueeze(-2)
    return torch.cat([ifg.flatten(-2), by_gate[..., 3, :] * adjoint_h], dim=-1)


def _input_gradient(cell: Cell, linear: _Linear, adjoint_h: Tensor, adjoint_q: Tensor) -> Tensor:
    """The adjoint of the inputs: that of q, but for a GRU's new gate, which sees q through r."""
    if cell != "gru":
        return adjoint_q
    hidden = adjoint_h.shape[-1]
    assert linear.new is not None
    return torch.cat([adjoint_q[..., : 2 * hidden], adjoint_h * linear.new], dim=-1)


def _product(sequence: Tensor, weight: Tensor) -> Tensor:
    """`[T, E, N, A]` times `[E, A, B]` for all time steps at once: `[T, E, N, B]`."""
    steps, episodes, examples, size = sequence.shape
    flat = sequence.transpose(0, 1).reshape(episodes, steps * examples, size)
    product = torch.bmm(flat, weight).view(episodes, steps, examples, -1)
    return product.transpose(0, 1).contiguous()


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Σ_{t,n} left ⊗ right, `[E, A, B]`: the gradient of the weight between them."""
    steps, episodes, examples, size = left.shape
    flat_left = left.transpose(0, 1).reshape(episodes, steps * examples, size)
    flat_right = right.transpose(0, 1).reshape(episodes, steps * examples, -1)
    return torch.bmm(flat_left.transpose(1, 2), flat_right)


def _sum_examples(sequence: Tensor) -> Tensor:
    """Σ_{t,n} of `[T, E, N, A]`: `[E, A]`."""
    return sequence.sum(dim=(0, 2))
