"""Networks against torch.nn's: padding, dropout, embedding and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from raymeta.episodes import Examples
from raymeta.nn.cells import NUM_GATES, Cell
from raymeta.nn.networks import (
    NetworkSpec,
    Params,
    Pooling,
    dropout_masks,
    expand_params,
    forward,
    init_params,
    is_head,
    recurrent_features,
)
from raymeta.nn.shared import shared_features, shared_steps
from tests.reference import ReferenceNetwork, random_episodes, random_params, thinned

every_cell = pytest.mark.parametrize("cell", get_args(Cell))
every_pooling = pytest.mark.parametrize("pooling", get_args(Pooling))
SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4)
TEXT = NetworkSpec(num_outputs=3, vocabulary_size=7, embedding_size=3, hidden_size=4)


def reference(spec: NetworkSpec) -> ReferenceNetwork:
    return ReferenceNetwork(**asdict(spec))


def problem(
    spec: NetworkSpec, *, padded: bool, num_episodes: int = 2, num_steps: int = 5, seed: int = 0
) -> tuple[Params, Examples]:
    """Makes different random parameters for every episode, and examples."""
    network = reference(spec)
    drawn = [random_params(network, seed + index) for index in range(num_episodes)]
    params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    episodes = random_episodes(network, num_episodes, num_steps=num_steps, padded=padded, seed=seed)
    return params, episodes.support


def with_gradients(
    network: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor
) -> tuple[Tensor, Params]:
    """Returns outputs, and the gradients of their sum with a different weight for each."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    x = x.clone()
    differentiable = leaves | ({"x": x.requires_grad_()} if x.is_floating_point() else {})
    outputs = network(leaves, x)
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    grads = torch.autograd.grad((outputs * weights).sum(), list(differentiable.values()))
    return outputs.detach(), dict(zip(differentiable, grads, strict=True))


def of_raymeta(spec: NetworkSpec, params: Params, examples: Examples) -> tuple[Tensor, Params]:
    return with_gradients(
        lambda leaves, x: forward(spec, leaves, x, examples.lengths), params, examples.x
    )


def of_torch(spec: NetworkSpec, params: Params, examples: Examples) -> tuple[Tensor, Params]:
    """Computes the same by torch's modules, episode by episode."""
    network = reference(spec)

    def outputs(leaves: Params, x: Tensor) -> Tensor:
        lengths = [None] * len(x) if examples.lengths is None else examples.lengths
        return torch.stack(
            [
                functional_call(network, {k: v[e] for k, v in leaves.items()}, (x[e], lengths[e]))
                for e in range(len(x))
            ]
        )

    return with_gradients(outputs, params, examples.x)


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_cell
@every_pooling
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_torch_nn(
    cell, pooling, num_layers, bidirectional, padded
):
    spec = replace(
        SPEC, cell=cell, pooling=pooling, num_layers=num_layers, bidirectional=bidirectional
    )
    params, examples = problem(spec, padded=padded)
    assert_same(of_raymeta(spec, params, examples), of_torch(spec, params, examples))


@settings(deadline=None, max_examples=30)
@given(
    spec=st.builds(
        NetworkSpec,
        num_outputs=st.integers(1, 4),
        cell=st.sampled_from(get_args(Cell)),
        num_features=st.integers(1, 3),
        hidden_size=st.integers(1, 5),
        num_layers=st.integers(1, 3),
        bidirectional=st.booleans(),
        pooling=st.sampled_from(get_args(Pooling)),
        stacked_steps=st.integers(1, 4),
    ),
    num_episodes=st.integers(1, 3),
    num_steps=st.integers(1, 6),
    padded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_architecture_on_any_shape_is_that_of_torch_nn(
    spec, num_episodes, num_steps, padded, seed
):
    params, examples = problem(
        spec, padded=padded, num_episodes=num_episodes, num_steps=num_steps, seed=seed
    )
    assert_same(of_raymeta(spec, params, examples), of_torch(spec, params, examples))


@every_pooling
@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stacked_steps", [2, 3, 9])
def test_steps_that_are_read_at_once_are_one_longer_vector(spec, pooling, padded, stacked_steps):
    spec = replace(spec, stacked_steps=stacked_steps, pooling=pooling, bidirectional=True)
    params, examples = problem(spec, padded=padded)
    assert params["rnn.weight_ih_l0"].shape[2] == stacked_steps * spec.input_size
    assert_same(of_raymeta(spec, params, examples), of_torch(spec, params, examples))


@every_cell
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_embedded_as_by_torch_nn(cell, padded):
    spec = replace(TEXT, cell=cell, bidirectional=True)
    params, examples = problem(spec, padded=padded)
    assert_same(of_raymeta(spec, params, examples), of_torch(spec, params, examples))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_within_the_lengths_are_those_of_packed_sequences(cell, bidirectional):
    spec = replace(SPEC, cell=cell, num_layers=2, bidirectional=bidirectional)
    params, examples = problem(spec, padded=True)
    assert examples.lengths is not None
    states, valid = recurrent_features(spec, params, examples.x, examples.lengths, None)
    assert valid is not None
    network = reference(spec)
    for episode, lengths in enumerate(examples.lengths):
        network.load_state_dict({name: value[episode] for name, value in params.items()})
        expected, _ = network.states(examples.x[episode], lengths)
        inside = valid[episode].squeeze(-1)
        assert_same(states[episode][inside], expected.transpose(0, 1)[inside])


@every_pooling
@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
@pytest.mark.parametrize("stacked_steps", [1, 2])
def test_padding_changes_neither_outputs_nor_gradients(spec, pooling, stacked_steps):
    spec = replace(spec, pooling=pooling, num_layers=2, bidirectional=True)
    spec = replace(spec, stacked_steps=stacked_steps)
    params, examples = problem(spec, padded=True)
    assert examples.lengths is not None
    outside = torch.arange(examples.x.shape[2]) >= examples.lengths[..., None]
    results = []
    for filler in (torch.nan, torch.inf, 3.0) if spec.num_features else (0, 5):
        x = examples.x.clone()
        x[outside] = torch.tensor(filler, dtype=x.dtype)
        results.append(of_raymeta(spec, params, replace(examples, x=x)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    outputs, grads = results[0]
    assert outputs.isfinite().all()
    if "x" in grads:
        assert (grads["x"][outside] == 0).all()


@pytest.mark.parametrize("stacked_steps", [1, 4])
def test_more_padding_changes_nothing(stacked_steps):
    spec = replace(SPEC, bidirectional=True, pooling="attention", stacked_steps=stacked_steps)
    params, examples = problem(spec, padded=True)
    longer = torch.nn.functional.pad(examples.x, (0, 0, 0, 3))
    assert_same(
        forward(spec, params, longer, examples.lengths),
        forward(spec, params, examples.x, examples.lengths),
    )


@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
@every_pooling
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropping_a_unit_equals_zero_weights_after_it(spec, pooling, bidirectional):
    spec = replace(spec, pooling=pooling, bidirectional=bidirectional, num_layers=2, dropout=0.4)
    params, examples = problem(spec, padded=True)
    masks = dropout_masks(spec, torch.tensor([1, 2]), params)
    rows = [
        thinned({k: v[episode] for k, v in params.items()}, [m[episode].flatten() for m in masks])
        for episode in range(2)
    ]
    thin = {name: torch.stack([row[name] for row in rows]) for name in params}
    assert_same(
        forward(spec, params, examples.x, examples.lengths, masks),
        forward(spec, thin, examples.x, examples.lengths),
    )


@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
def test_a_dropout_mask_depends_on_its_episodes_seed_only(spec):
    spec = replace(spec, num_layers=2, dropout=0.5)
    params = init_params(spec, torch.Generator().manual_seed(0))
    together = dropout_masks(spec, torch.tensor([3, 1, 2]), params)
    torch.rand(5)  # what else draws random numbers makes no difference
    alone = dropout_masks(spec, torch.tensor([1]), params)
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many[1:2], one)
        assert not torch.equal(many[0], many[1])


def test_dropout_keeps_the_mean():
    spec = replace(SPEC, hidden_size=50, dropout=0.3)
    params = init_params(spec, torch.Generator().manual_seed(0), torch.float64)
    (masks,) = dropout_masks(spec, torch.arange(400), params)
    assert sorted(set(masks.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    # Mean 1, variance p / (1 - p): four standard errors.
    assert masks.mean().item() == pytest.approx(1, abs=4 * (0.3 / 0.7 / masks.numel()) ** 0.5)


def test_every_layer_has_its_own_dropout_mask():
    spec = replace(TEXT, num_layers=2, bidirectional=True, dropout=0.5, hidden_size=30)
    masks = dropout_masks(
        spec, torch.tensor([0]), init_params(spec, torch.Generator().manual_seed(0))
    )
    assert [mask.shape for mask in masks] == [(1, 1, 1, 3), (1, 1, 1, 60), (1, 1, 1, 60)]
    assert not torch.equal(masks[1], masks[2])


@every_cell
@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
def test_parameters_have_the_names_and_shapes_of_torch_nn(spec, cell):
    spec = replace(spec, cell=cell, num_layers=2, bidirectional=True, pooling="attention")
    params = init_params(spec, torch.Generator().manual_seed(0))
    shapes = {name: value.shape for name, value in params.items()}
    assert shapes == {name: value.shape for name, value in reference(spec).named_parameters()}
    assert {name for name in params if is_head(name)} == {"head.weight", "head.bias"}


@every_cell
def test_initial_recurrent_weights_are_orthogonal_in_every_gate(cell):
    spec = replace(SPEC, cell=cell, num_layers=2, bidirectional=True)
    params = init_params(spec, torch.Generator().manual_seed(0), torch.float64)
    names = [name for name in params if "weight_hh" in name]
    assert len(names) == 4
    for name in names:
        gates = torch.split(params[name], spec.hidden_size)
        assert len(gates) == NUM_GATES[cell]
        for gate in gates:
            torch.testing.assert_close(gate @ gate.T, torch.eye(4, dtype=torch.float64))


@every_cell
def test_initial_biases_are_zero_but_for_an_lstms_forget_gate(cell):
    spec = replace(SPEC, cell=cell)
    params = init_params(spec, torch.Generator().manual_seed(0))
    total = params["rnn.bias_ih_l0"] + params["rnn.bias_hh_l0"]
    expected = torch.zeros(NUM_GATES[cell], spec.hidden_size)
    if cell == "lstm":
        expected[1] = 1
    assert torch.equal(total, expected.flatten())
    assert torch.equal(params["head.bias"], torch.zeros(3))


def test_initial_input_weights_are_glorot_uniform():
    spec = replace(SPEC, num_features=40, hidden_size=60)
    params = init_params(spec, torch.Generator().manual_seed(0), torch.float64)
    weight = params["rnn.weight_ih_l0"]
    bound = (6 / (40 + 60)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.02 * bound)


def test_initial_parameters_are_those_of_the_seed():
    def drawn(seed: int) -> Params:
        return init_params(TEXT, torch.Generator().manual_seed(seed), torch.float64)

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert not torch.equal(drawn(1)["head.weight"], drawn(2)["head.weight"])


@pytest.mark.parametrize("stacked_steps", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("padded", [False, True])
def test_steps_times_their_weights_are_what_is_pooled(padded, pooling, stacked_steps):
    spec = replace(SPEC, pooling=pooling, bidirectional=True, stacked_steps=stacked_steps)
    params, examples = problem(spec, padded=padded)
    own = {name: value[0] for name, value in params.items()}
    states, weights = shared_steps(spec, own, examples.x, examples.lengths)
    assert states.shape == (*examples.y.shape, spec.num_stacks(5), 8)
    found = torch.einsum("ents,ent->ens", states, weights)
    assert_same(found, shared_features(spec, own, examples.x, examples.lengths))
    if examples.lengths is not None:
        ended = torch.arange(5)[::stacked_steps] >= examples.lengths.unsqueeze(-1)
        assert not weights[ended].any()


def test_the_episode_axis_copies_no_parameter():
    params = init_params(SPEC, torch.Generator().manual_seed(0))
    for name, value in expand_params(params, 5).items():
        assert value.shape == (5, *params[name].shape)
        assert value.data_ptr() == params[name].data_ptr()
        assert value.stride(0) == 0


# ------------------------------------------------------------------- precision


@every_cell
@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["features", "tokens"])
def test_layers_in_bfloat16_are_near_those_in_double_precision(
    cell: Cell, spec: NetworkSpec
) -> None:
    exact = replace(spec, cell=cell, hidden_size=16, num_layers=2, bidirectional=True)
    params, examples = problem(exact, padded=True)
    single = {name: value.float() for name, value in params.items()}
    x = examples.x.float() if examples.x.is_floating_point() else examples.x

    def outputs(layer_dtype: torch.dtype | None) -> Tensor:
        spec = replace(exact, layer_dtype=layer_dtype, dropout=0.2)
        masks = dropout_masks(spec, torch.arange(2), single)
        return forward(spec, single, x, examples.lengths, masks)

    low, full = outputs(torch.bfloat16), outputs(None)
    assert low.dtype == torch.float32
    apart = ((low - full).norm() / full.norm()).item()
    assert 1e-5 < apart < 0.03, apart
