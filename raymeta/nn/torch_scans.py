"""The scans of one recurrent layer over time, in torch's operations; see `raymeta.nn.recurrence`.

Shape legend: E episodes, T time steps, N examples, H hidden units, G gates.  Arguments and results
have the episodes first, `[E, T, N, ...]`; in memory time comes first, `[T, E, N, ...]`, since the
batched product of a step wants its result contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymeta.nn.cells import Adjoint, Cell, Trace
from raymeta.nn.linearised import Linear, kept_steps, linearise, linearise_tangent, swapped


def run(cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None) -> Trace:
    """The forward pass; arguments as in `raymeta.nn.recurrence.recurrence`."""
    inputs, kept = swapped(inputs), kept_steps(valid)
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
    if cell == "rnn":
        return Trace(swapped(states), None, None)
    return Trace(swapped(states), swapped(gates), swapped(extra))


def adjoint(
    cell: Cell,
    trace: Trace,
    weight: Tensor,
    valid: Tensor | None,
    grad_states: Tensor,
    sources: Tensor | None,
) -> Adjoint:
    """The adjoint scan.

    Args:
        cell: as in `run`, like `weight` and `valid`.
        trace: of `run`.
        weight: the recurrent one.
        valid: steps within the examples.
        grad_states: the gradient of the states `[E, T, N, H]`.
        sources: added to the adjoints, `[E, T, N, NUM_SOURCES * H]`; None for zero.
    """
    linear = linearise(cell, trace, kept_steps(valid))
    width = weight.shape[2]
    source_h = swapped(grad_states).clone(memory_format=torch.contiguous_format)
    source_c = torch.zeros_like(source_h) if cell == "lstm" else None
    if sources is None:
        source_q = torch.zeros_like(linear.gates)
    else:
        add_q, add = swapped(sources).tensor_split([width], dim=-1)
        source_q = add_q.contiguous()
        source_c = add.contiguous() if cell == "lstm" else None
    _adjoint_scan(linear, weight, source_h, source_q, source_c)
    grad_inputs = None
    if linear.new is not None:  # a GRU's new gate sees q through the reset gate, but p directly
        new = source_h * linear.new
        if sources is not None:
            new += add
        grad_inputs = torch.cat([source_q[..., : width // 3 * 2], new], dim=-1)
    return Adjoint(
        h=swapped(source_h),
        q=swapped(source_q),
        c=None if source_c is None else swapped(source_c),
        inputs=None if grad_inputs is None else swapped(grad_inputs),
    )


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
    """The tangent scan in direction u, and its contributions to the adjoint scan.

    Returns:
        The tangents of the states h_0 … h_T; a summand of the gradient of the states
        `[E, T, N, H]`; and the sources `[E, T, N, NUM_SOURCES * H]`.
    """
    kept = kept_steps(valid)
    linear = linearise(cell, trace, kept)
    adjoint_h, adjoint_q = swapped(adjoint.h), swapped(adjoint.q)
    u_inputs = swapped(u_inputs)
    tangent_q = _product(swapped(trace.states)[:-1], u_weight)
    if u_bias is not None:
        tangent_q += u_bias.unsqueeze(1)
    tangent_h, tangent_c = _tangent_scan(cell, linear, weight, u_inputs, tangent_q)
    tangents = linearise_tangent(cell, trace, kept, u_inputs, tangent_h, tangent_q, tangent_c)

    add_h = torch.zeros_like(adjoint_h)
    carried = _product(adjoint_q, u_weight.transpose(1, 2))
    if tangents.keep is not None:
        carried.addcmul_(adjoint_h, tangents.keep)
    add_h[:-1] = carried[1:]
    hidden = adjoint_h.shape[-1]
    by_gate = tangents.gates.view(*tangents.gates.shape[:-1], -1, hidden)
    if cell == "lstm":
        assert adjoint.c is not None
        assert tangents.cell is not None
        assert tangents.forget is not None
        adjoint_c = swapped(adjoint.c)
        add_ifg = (by_gate[..., :3, :] * adjoint_c.unsqueeze(-2)).flatten(-2)
        add_c = adjoint_h * tangents.cell
        add_c[:-1].addcmul_(adjoint_c[1:], tangents.forget[1:])
        sources = [add_ifg, by_gate[..., 3, :] * adjoint_h, add_c]
    else:
        sources = [(by_gate * adjoint_h.unsqueeze(-2)).flatten(-2)]
        if tangents.new is not None:
            sources.append(adjoint_h * tangents.new)
    return swapped(tangent_h), swapped(add_h), swapped(torch.cat(sources, dim=-1))


def _adjoint_scan(
    linear: Linear,
    weight: Tensor,
    source_h: Tensor,
    source_q: Tensor,
    source_c: Tensor | None,
) -> None:
    """Runs the linearised layer backwards; the sources are overwritten by the adjoints."""
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
        return

    assert linear.cell is not None
    assert source_c is not None
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


def _tangent_scan(
    cell: Cell, linear: Linear, weight: Tensor, u_inputs: Tensor, source_q: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Runs the linearised layer forwards in direction `u_inputs`: the tangents of h_t and c_t.

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
    c = None
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
    return h, c


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds Σ_gates left · right, both `[E, N, G, H]`, to `total` `[E, N, H]`."""
    for a, b in zip(left.unbind(-2), right.unbind(-2), strict=True):
        total.addcmul_(a, b)


def _product(sequence: Tensor, weight: Tensor) -> Tensor:
    """`[T, E, N, A]` times `[E, A, B]` for all time steps at once: `[T, E, N, B]`."""
    steps, episodes, examples, size = sequence.shape
    flat = sequence.transpose(0, 1).reshape(episodes, steps * examples, size)
    product = torch.bmm(flat, weight).view(episodes, steps, examples, -1)
    return product.transpose(0, 1).contiguous()
