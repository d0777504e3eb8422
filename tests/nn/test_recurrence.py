"""The fused recurrence and its two written-out derivatives, against torch's own derivatives."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from raymeta.nn.cells import NUM_GATES, Cell
from raymeta.nn.recurrence import recurrence

pytestmark = pytest.mark.usefixtures("backend")

PADDINGS = ("none", "behind", "before", "between")
every_cell = pytest.mark.parametrize("cell", get_args(Cell))
Problem = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # inputs, weight, bias, valid


def problem(
    cell: Cell,
    *,
    sizes: tuple[int, int, int, int] = (1, 3, 2, 2),
    padding: str = "none",
    bias: bool = True,
    seed: int = 0,
) -> Problem:
    """Makes a random layer of `sizes` (episodes, steps, examples, hidden units)."""
    episodes, steps, examples, hidden = sizes
    generator = torch.Generator().manual_seed(seed)
    width = NUM_GATES[cell] * hidden

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    lengths = torch.randint(1, steps + 1, (episodes, 1, examples), generator=generator)
    inside = torch.arange(steps)[None, :, None] < lengths
    holes = torch.rand(episodes, steps, examples, generator=generator) < 0.6
    valid = {"none": None, "behind": inside, "before": inside.flip(1), "between": holes}[padding]
    return (
        leaf(episodes, steps, examples, width),
        leaf(episodes, hidden, width),
        leaf(episodes, width) if bias else None,
        valid,
    )


def plain_recurrence(
    cell: Cell, inputs: Tensor, weight: Tensor, bias: Tensor | None, valid: Tensor | None
) -> Tensor:
    """Computes the layer step by step in operations that autograd follows."""
    episodes, steps, examples, _ = inputs.shape
    h = c = inputs.new_zeros(episodes, examples, weight.shape[1])
    states = []
    for t in range(steps):
        product = h @ weight if bias is None else h @ weight + bias[:, None]
        total = (inputs[:, t] + product).chunk(NUM_GATES[cell], dim=-1)
        new_c = c
        match cell:
            case "rnn":
                new = total[0].tanh()
            case "gru":
                reset, update = total[0].sigmoid(), total[1].sigmoid()
                given = inputs[:, t].chunk(3, dim=-1)[2]
                candidate = (given + reset * product.chunk(3, dim=-1)[2]).tanh()
                new = (1 - update) * candidate + update * h
            case "lstm":
                new_c = total[1].sigmoid() * c + total[0].sigmoid() * total[2].tanh()
                new = total[3].sigmoid() * new_c.tanh()
        if valid is not None:
            inside = valid[:, t, :, None]
            new, new_c = torch.where(inside, new, h), torch.where(inside, new_c, c)
        h, c = new, new_c
        states.append(h)
    return torch.stack(states, dim=1)


def derivatives(states: Tensor, leaves: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Returns the states, a gradient, and that gradient's gradient, also by its direction."""
    generator = torch.Generator().manual_seed(seed)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    direction = like(states).requires_grad_()
    first = grad((states * direction).sum(), leaves, create_graph=True)
    along = torch.stack([(g * like(g)).sum() for g in first]).sum()
    second = grad(along, [*leaves, direction])
    return [states, *first, *second]


@every_cell
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradient_and_its_gradient_are_those_of_finite_differences(cell, padding, bias):
    inputs, weight, own_bias, valid = problem(cell, padding=padding, bias=bias)

    def states(inputs: Tensor, weight: Tensor, own_bias: Tensor | None = None) -> Tensor:
        return recurrence(cell, inputs, weight, own_bias, valid)

    leaves = [leaf for leaf in (inputs, weight, own_bias) if leaf is not None]
    assert gradcheck(states, leaves)
    assert gradgradcheck(states, leaves)


@settings(deadline=None, max_examples=30)
@given(
    cell=st.sampled_from(get_args(Cell)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)),
    padding=st.sampled_from(PADDINGS),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_states_and_both_derivatives_are_those_of_single_steps(cell, sizes, padding, bias, seed):
    layer = problem(cell, sizes=sizes, padding=padding, bias=bias, seed=seed)
    leaves = [leaf for leaf in layer[:3] if leaf is not None]
    torch.testing.assert_close(
        derivatives(recurrence(cell, *layer), leaves),
        derivatives(plain_recurrence(cell, *layer), leaves),
        rtol=1e-10,
        atol=1e-10,
    )


@every_cell
def test_derivatives_by_the_weight_match_single_steps(cell):
    inputs, weight, bias, valid = problem(cell, padding="behind")
    assert bias is not None
    layer = (inputs.detach(), weight, bias.detach(), valid)
    torch.testing.assert_close(
        derivatives(recurrence(cell, *layer), [weight]),
        derivatives(plain_recurrence(cell, *layer), [weight]),
    )


@every_cell
def test_strides_of_the_arguments_do_not_matter(cell):
    def strided(value: Tensor) -> Tensor:
        """Copies a tensor to memory with permuted axes and gaps."""
        turned = value.detach().permute(*reversed(range(value.dim()))).contiguous()
        spaced = turned.repeat_interleave(2, dim=-1).permute(*reversed(range(value.dim())))[::2]
        assert not spaced.is_contiguous()
        return spaced.requires_grad_(value.requires_grad)

    layer = problem(cell, sizes=(3, 4, 2, 3), padding="behind")
    assert layer[2] is not None
    assert layer[3] is not None
    other = (strided(layer[0]), strided(layer[1]), strided(layer[2]), strided(layer[3]))
    torch.testing.assert_close(
        derivatives(recurrence(cell, *other), list(other[:3])),
        derivatives(recurrence(cell, *layer), [layer[0], layer[1], layer[2]]),
    )


@every_cell
def test_gradient_of_an_expanded_sum_is_that_of_a_dense_one(cell):
    inputs, weight, bias, valid = problem(cell)
    states = recurrence(cell, inputs, weight, bias, valid)
    dense = grad(states, weight, torch.ones_like(states), retain_graph=True)
    # The gradient of a sum arrives as one number expanded over all states.
    torch.testing.assert_close(grad(states.sum(), weight), dense)


@every_cell
def test_a_padded_step_repeats_the_state_before_it_and_gets_no_gradient(cell):
    inputs, weight, bias, valid = problem(cell, sizes=(2, 5, 3, 2), padding="behind")
    assert valid is not None
    states = recurrence(cell, inputs, weight, bias, valid)
    for t in range(1, 5):
        padded = ~valid[:, t]
        assert torch.equal(states[:, t][padded], states[:, t - 1][padded])
    (gradient,) = grad(states.square().sum(), inputs)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).any(dim=-1).all()


@every_cell
def test_leading_padding_leaves_the_state_at_zero(cell):
    inputs, weight, bias, valid = problem(cell, sizes=(2, 5, 3, 2), padding="before")
    assert valid is not None
    states = recurrence(cell, inputs, weight, bias, valid)
    assert (states[~valid] == 0).all()
    assert (states[valid] != 0).all()


@every_cell
@pytest.mark.parametrize("sizes", [(2, 1, 1, 2), (2, 3, 2, 2)])
def test_arguments_are_never_written_to(cell, sizes):
    layer = problem(cell, sizes=sizes, padding="behind")
    before = [value.detach().clone() for value in layer if value is not None]
    states = recurrence(cell, *layer)
    derivatives(states, [layer[0], layer[1]])
    with torch.no_grad():
        recurrence(cell, *layer)
    torch.testing.assert_close(
        [value.detach() for value in layer if value is not None], before, rtol=0, atol=0
    )


@every_cell
def test_third_derivative_is_refused(cell):
    inputs, weight, bias, valid = problem(cell)
    states = recurrence(cell, inputs, weight, bias, valid)
    (first,) = grad(states.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        grad(first.square().sum(), weight, create_graph=True)


@every_cell
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_infinity_propagate_as_in_single_steps(cell, bad, dtype):
    inputs, weight, bias, _ = problem(cell, sizes=(2, 4, 3, 20))
    assert bias is not None
    with torch.no_grad():
        inputs[0, 1, 2, ::3] = bad
    p, w, b = layer = [x.detach().to(dtype).requires_grad_() for x in (inputs, weight, bias)]
    mine = derivatives(recurrence(cell, p, w, b), layer)
    plain = derivatives(plain_recurrence(cell, p, w, b, None), layer)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(mine, plain, rtol=tolerance, atol=tolerance, equal_nan=True)
    # The other example of the episode, and the other episode, see nothing of it.
    assert mine[0][0, :, :2].isfinite().all()
    assert mine[2][1].isfinite().all()


@every_cell
def test_single_precision_is_within_a_few_units_of_double_precision(cell):
    inputs, weight, bias, valid = problem(cell, sizes=(3, 12, 7, 33), padding="behind")
    assert bias is not None
    exact = [value.detach().requires_grad_() for value in (inputs * 3, weight / 6, bias)]
    single = [value.detach().float().requires_grad_() for value in exact]
    states = [recurrence(cell, p, w, b, valid) for p, w, b in (single, exact)]
    torch.testing.assert_close(states[0].double(), states[1], rtol=0, atol=2e-6)
    grads = [
        grad(s.pow(2).sum(), leaves) for s, leaves in zip(states, (single, exact), strict=True)
    ]
    for mine, wanted in zip(*grads, strict=True):
        assert (mine.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
