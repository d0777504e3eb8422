"""One recurrent layer over a whole sequence, with its first and second derivative written out.

Autograd would record every small operation of every time step, and again for every derivative.
Here one function runs the layer, one its derivative, one the derivative of that; each is a scan
over time with one product and a few element-wise operations a step, everything else being done for
all time steps at once.  The scans are there twice: compiled (`raymeta.native`) and in torch's own
operations (`raymeta.scans`).

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

That last adjoint scan is the layer's own: what else of the loss depends on the states (its
curvature) comes in as one more source of the same scan.  Autograd brings the two together, since
the gradient is recorded as a function of the layer's states and of its sources, which are zero.

A step beyond an example's length repeats the state before it: there B = A = 0 and k = f = 1.

Shape legend: E episodes, T time steps, N examples, H hidden units, G gates.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from raymeta import scans as torch_scans
from raymeta.native import scans as native_scans
from raymeta.scans import NUM_SOURCES, Adjoint, Cell, Trace


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
    backend = native_scans if native_scans.serves(inputs) else torch_scans
    states: Tensor
    states, _ = _Recurrence.apply(backend, cell, inputs, weight, bias, valid)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    """Inputs `[E, T, N, G * H]` to states `[E, T, N, H]`, and to sources that are zero.

    The gradient by a source is what is added to an adjoint.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: ModuleType,
        cell: Cell,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        trace = backend.run(cell, inputs, weight, bias, valid)
        states = trace.states[:, 1:]
        sources = inputs.new_zeros(()).expand(
            *states.shape[:3], NUM_SOURCES[cell] * weight.shape[1]
        )
        ctx.backend, ctx.cell = backend, cell
        ctx.has_bias = ctx.needs_input_grad[4]
        ctx.save_for_backward(weight, valid, states, sources, *trace)
        ctx.set_materialize_grads(False)
        return states, sources

    @staticmethod
    def backward(
        ctx: Any, grad_states: Tensor | None, grad_sources: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight, valid, states, sources, *trace = ctx.saved_tensors
        if grad_states is None:
            grad_states = torch.zeros_like(states)
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            ctx.backend,
            ctx.cell,
            ctx.has_bias,
            grad_states,
            grad_sources,
            weight,
            valid,
            states,
            sources,
            *trace,
        )
        return (None, None, *grads, None)


class _Gradient(torch.autograd.Function):
    """∇⟨G, h⟩ by inputs, weight and bias, as a function of G, W, the states and the sources."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: ModuleType,
        cell: Cell,
        has_bias: bool,
        grad_states: Tensor,
        grad_sources: Tensor | None,
        weight: Tensor,
        valid: Tensor | None,
        _states: Tensor,  # its value is in the trace; its gradient goes here, as do
        _sources: Tensor,  # those that are added to the adjoints
        *trace_tensors: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        trace = Trace(*trace_tensors)
        adjoint = backend.adjoint(cell, trace, weight, valid, grad_states, grad_sources)
        ctx.backend, ctx.cell = backend, cell
        ctx.num_adjoints = len(adjoint)
        ctx.save_for_backward(weight, valid, *adjoint, *trace)
        grad_inputs = adjoint.q if adjoint.inputs is None else adjoint.inputs
        grad_bias = _sum_examples(adjoint.q) if has_bias else None
        return grad_inputs, _outer(trace.states[:, :-1], adjoint.q), grad_bias

    @staticmethod
    def backward(
        ctx: Any, u_inputs: Tensor, u_weight: Tensor, u_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # What follows is not recorded: its derivative would be silently wrong.
            raise RuntimeError("recurrence has no third derivative: leave create_graph out")
        weight, valid, *rest = ctx.saved_tensors
        adjoint = Adjoint(*rest[: ctx.num_adjoints])
        trace = Trace(*rest[ctx.num_adjoints :])
        tangent, add_states, add_sources = ctx.backend.turn(
            ctx.cell, trace, adjoint, weight, valid, u_inputs, u_weight, u_bias
        )
        grad_weight = _outer(tangent[:, :-1], adjoint.q)
        before = (None, None, None, tangent[:, 1:], None, grad_weight, None)
        return (*before, add_states, add_sources, *[None] * len(trace))


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, `[E, A, B]` by `[E, B, C]`; differentiable as often as one likes."""
    if not native_scans.serves(left):
        return torch.bmm(left, right)
    result: Tensor = _Product.apply(left, right)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """The compiled product: on small matrices it is faster than the one that torch calls."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return native_scans.multiply(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        by_left, by_right = ctx.needs_input_grad
        return (
            product(grad, right.transpose(1, 2)) if by_left else None,
            product(left.transpose(1, 2), grad) if by_right else None,
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Σ_{t,n} left ⊗ right, `[E, A, B]`: the gradient of the weight between them."""
    return product(left.flatten(1, 2).transpose(1, 2), right.flatten(1, 2))


def _sum_examples(sequence: Tensor) -> Tensor:
    """Σ_{t,n} of `[E, T, N, A]`: `[E, A]`."""
    return sequence.sum(dim=(1, 2))
