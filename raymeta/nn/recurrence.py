"""One recurrent layer over a whole sequence, with its first and second derivative written out.

Autograd would record every small operation of every time step, and again for every derivative.
Three functions replace that: the layer, its gradient, and the gradient's own derivative.  Each is a
scan over time with one matrix product and a few element-wise operations per step; all other work is
done for all time steps at once.  The scans exist twice: compiled (`raymeta.nn.native`) and in
torch's operations (`raymeta.nn.torch_scans`).

Notation.  The layer computes, from inputs p_t and weights W, the products q_t = h_{t-1} W and the
states h_t (for an LSTM also c_t).  Linearised about its states, it reads

    RNN, GRU:   ĥ_t = Σ_gates B_t q̂_t + k_t ĥ_{t-1}                       + (terms in p̂_t)
    LSTM:       ĉ_t = Σ_{i,f,g} B_t q̂_t + f_t ĉ_{t-1},   ĥ_t = B_t q̂_t|_o + A_t ĉ_t + k_t ĥ_{t-1}

with element-wise coefficients B, k, A, f.  Forwards in time this gives directional derivatives (the
tangent scan), backwards gradients (the adjoint scan).  The gradient g = ∇⟨G, h(p, W)⟩ is one
adjoint scan.  Second-order meta-gradients need its derivative in a direction u, a Hessian-vector
product.  By Pearlmutter's R-operator (1994) that is a tangent scan in direction u, whose states are
also ∂⟨u, g⟩/∂G, and an adjoint scan with the same coefficients and the tangents B̂, k̂, Â, f̂ of the
coefficients as sources.  There is no third derivative.

The second adjoint scan is shared with the layer's own backward pass: the loss's curvature in the
states enters it as one more source.  Autograd adds the two up, since the gradient is recorded as a
function of the layer's states and of sources that are zero.

A step beyond an example's length repeats the state before it: there B = A = 0 and k = f = 1.

Shape legend: E episodes, T time steps, N examples, H hidden units, G gates.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from raymeta.nn import torch_scans
from raymeta.nn.cells import NUM_GATES, NUM_SOURCES, Adjoint, Cell, Trace
from raymeta.nn.native import scans as native_scans


def recurrence(
    cell: Cell,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The states `[E, T, N, H]` of one recurrent layer from a zero state; twice differentiable.

    Args:
        cell: `rnn` (tanh), `gru` (the form of `torch.nn.GRU`) or `lstm`.
        inputs: the projected inputs p `[E, T, N, G * H]`, biases included; gates
            in torch's order: reset, update, new; or input, forget, cell, output.
        weight: recurrent weights W `[E, H, G * H]`.
        bias: of the recurrent product, `[E, G * H]`; only a GRU needs it, inside its reset gate.
        valid: bool `[E, T, N]`: steps within the example; None for all.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, or something is empty.
    """
    _check_layer(cell, inputs, weight, bias, valid)
    if bias is None:
        bias = weight.new_zeros(weight.shape[0], weight.shape[2])
    backend = native_scans if native_scans.serves(inputs) else torch_scans
    states: Tensor
    states, _ = _Recurrence.apply(backend, cell, inputs, weight, bias, valid)  # type: ignore[no-untyped-call]
    return states


def _check_layer(
    cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor | None, valid: Tensor | None
) -> None:
    """Refuses shapes that broadcasting, or reading past a tensor, would turn into numbers."""
    if cell not in NUM_GATES:
        raise ValueError(f"cell must be one of {', '.join(NUM_GATES)}, but got {cell!r}")
    if inputs.dim() != 4 or weight.dim() != 3 or 0 in inputs.shape or 0 in weight.shape:
        raise ValueError(
            "a layer takes inputs [E, T, N, G * H] and a weight [E, H, G * H], none of them empty, "
            f"but got {list(inputs.shape)} and {list(weight.shape)}"
        )
    episodes, _, _, width = inputs.shape
    hidden = weight.shape[1]
    if width != NUM_GATES[cell] * hidden or weight.shape != (episodes, hidden, width):
        raise ValueError(
            f"inputs {list(inputs.shape)} do not fit the recurrent weight {list(weight.shape)}: "
            f"a {cell} of {hidden} units takes {NUM_GATES[cell] * hidden} values a step"
        )
    if bias is not None and bias.shape != (episodes, width):
        raise ValueError(f"bias must be {[episodes, width]}, but got {list(bias.shape)}")
    if valid is not None and (valid.shape != inputs.shape[:3] or valid.dtype != torch.bool):
        raise ValueError(
            f"valid must be bool {list(inputs.shape[:3])}, but got {valid.dtype} "
            f"{list(valid.shape)}"
        )
    for other in (weight, bias):
        if other is not None and (other.dtype != inputs.dtype or other.device != inputs.device):
            raise ValueError(
                f"weight and bias must be {inputs.dtype} on {inputs.device} like the inputs, but "
                f"got {other.dtype} on {other.device}"
            )
    if valid is not None and valid.device != inputs.device:
        raise ValueError(f"valid must be on {inputs.device}, but is on {valid.device}")


class _Recurrence(torch.autograd.Function):
    """Inputs `[E, T, N, G * H]` to states `[E, T, N, H]`, and to sources that are zero.

    The sources' gradients feed the adjoint scan.
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
        _states: Tensor,  # receives a gradient; its value is in the trace
        _sources: Tensor,  # likewise; its value is zero
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
            # The code below is not recorded: its derivative would be silently wrong.
            raise RuntimeError("recurrence has no third derivative: leave create_graph out")
        weight, valid, *rest = ctx.saved_tensors
        adjoint = Adjoint(*rest[: ctx.num_adjoints])
        trace = Trace(*rest[ctx.num_adjoints :])
        tangent, add_states, add_sources = ctx.backend.double_backward(
            ctx.cell, trace, adjoint, weight, valid, u_inputs, u_weight, u_bias
        )
        grad_weight = _outer(tangent[:, :-1], adjoint.q)
        before = (None, None, None, tangent[:, 1:], None, grad_weight, None)
        return (*before, add_states, add_sources, *[None] * len(trace))


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, `[E, A, B]` by `[E, B, C]`; differentiable any number of times.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if (
        left.dim() != 3
        or right.dim() != 3
        or left.shape[0] != right.shape[0]
        or left.shape[2] != right.shape[1]
        or left.dtype != right.dtype
        or left.device != right.device
    ):
        raise ValueError(
            "a product is of [E, A, B] by [E, B, C] in one dtype on one device, but got "
            f"{list(left.shape)} {left.dtype} on {left.device} by {list(right.shape)} {right.dtype}"
            f" on {right.device}"
        )
    if not native_scans.serves(left):
        return torch.bmm(left, right)
    result: Tensor = _Product.apply(left, right)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """The compiled product, which is faster than torch's on small matrices."""

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
