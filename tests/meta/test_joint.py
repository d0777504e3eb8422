"""Joint training's batches and gradients against an ordinary training step of torch.nn."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raymeta.episodes import NO_CLASS, Episodes, Examples
from raymeta.meta.joint import joint_batch, joint_gradient, joint_spec, with_fresh_head
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, Params, dropout_masks, expand_params, forward
from raymeta.problem import PROBLEMS
from tests.reference import (
    ReferenceNetwork,
    crps_of,
    loss_of,
    pairs,
    random_episodes,
    random_params,
    thinned,
)

SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4, bidirectional=True)
NUM_CLASSES = 6
WAYS = torch.tensor([[5, 1, 0], [2, 3, 4]])


def problem(spec: NetworkSpec = SPEC, name: str = "classification") -> tuple[Params, Episodes]:
    network = ReferenceNetwork(**asdict(spec))
    levels = len(PROBLEMS[name].levels) or 1
    episodes = random_episodes(
        network, 2, regression=name != "classification", num_levels=levels, padded=True
    )
    return random_params(network), replace(episodes, way_classes=WAYS)


def torch_gradient(
    spec: NetworkSpec, params: Params, batch: Examples, name: str = "classification"
) -> tuple[Params, Tensor]:
    """Computes the gradient of a torch module on one ordinary batch of a problem."""
    references: dict[str, Any] = {"forecast": F.huber_loss, "quantiles": crps_of}
    reference = references.get(name, loss_of)
    network = ReferenceNetwork(**asdict(spec))
    network.load_state_dict(params)
    assert batch.lengths is not None
    loss = reference(network(batch.x[0], batch.lengths[0]), batch.y[0])
    weights = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, grads, strict=True)), loss.detach()


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)  # padding


@pytest.mark.parametrize("fixed_labels", [False, True])
def test_batch_holds_every_example_with_its_class_of_the_distribution(fixed_labels):
    _, episodes = problem()
    batch = joint_batch(episodes, fixed_labels)
    sets = [pair[0] for pair in pairs(episodes)] + [pair[1] for pair in pairs(episodes)]
    owners = [0, 1, 0, 1]
    assert_same(batch.x, torch.cat([one.x for one in sets])[None])
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [
        [length for one in sets if one.lengths is not None for length in one.lengths.tolist()]
    ]
    expected = [
        label if fixed_labels else WAYS[owner, label].item()
        for owner, one in zip(owners, sets, strict=True)
        for label in one.y.tolist()
    ]
    assert batch.y.tolist() == [expected]


def test_batch_of_whole_sequences_has_no_lengths():
    episodes = random_episodes(ReferenceNetwork(**asdict(SPEC)), padded=False)
    assert joint_batch(episodes, fixed_labels=True).lengths is None


@pytest.mark.parametrize("cell", get_args(Cell))
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_is_that_of_an_ordinary_training_step(cell, name):
    spec = replace(SPEC, cell=cell)
    params, episodes = problem(spec, name)
    batch = joint_batch(episodes, fixed_labels=True)
    assert_same(
        joint_gradient(spec, PROBLEMS[name], params, batch, seed=0),
        torch_gradient(spec, params, batch, name),
    )


def test_gradient_over_all_classes_is_that_of_an_ordinary_training_step():
    spec = joint_spec(SPEC, NUM_CLASSES, fixed_labels=False)
    assert spec == replace(SPEC, num_outputs=NUM_CLASSES)
    params, _ = problem(spec)
    _, episodes = problem()
    batch = joint_batch(episodes, fixed_labels=False)
    assert_same(
        joint_gradient(spec, PROBLEMS["classification"], params, batch, seed=0),
        torch_gradient(spec, params, batch),
    )


def test_fixed_labels_keep_the_network_as_it_is():
    assert joint_spec(SPEC, NUM_CLASSES, fixed_labels=True) == SPEC


def test_dropout_masks_follow_the_seed():
    spec = replace(SPEC, dropout=0.4)
    params, episodes = problem(spec)
    batch = joint_batch(episodes, fixed_labels=True)
    (mask,) = dropout_masks(spec, torch.tensor([7]), params)
    _, expected = torch_gradient(spec, thinned(params, [mask.flatten()]), batch)
    _, loss = joint_gradient(spec, PROBLEMS["classification"], params, batch, seed=7)
    assert_same(loss, expected)
    _, other = joint_gradient(spec, PROBLEMS["classification"], params, batch, seed=8)
    assert not torch.equal(other, loss)


def test_examples_of_made_up_classes_have_no_gradient():
    spec = joint_spec(SPEC, NUM_CLASSES, fixed_labels=False)
    params, _ = problem(spec)
    _, episodes = problem()
    assert episodes.way_classes is not None
    made_up = episodes.way_classes.index_fill(0, torch.tensor(0), NO_CLASS)
    batch = joint_batch(replace(episodes, way_classes=made_up), fixed_labels=False)
    known = batch.y[0] != NO_CLASS
    assert batch.lengths is not None
    rest = Examples(batch.x[:, known], batch.y[:, known], batch.lengths[:, known])
    # They count in the mean, so that batches of any mixture weigh their examples alike.
    share = known.double().mean()
    grads, loss = joint_gradient(spec, PROBLEMS["classification"], params, batch, seed=0)
    expected_grads, expected_loss = torch_gradient(spec, params, rest)
    assert_same(loss, share * expected_loss)
    assert_same(grads, {name: share * grad for name, grad in expected_grads.items()})


def test_a_fresh_head_is_zero_and_keeps_other_parameters():
    params, episodes = problem()
    fresh = with_fresh_head(params, 5)
    spec = replace(SPEC, num_outputs=5)
    support = episodes.support
    outputs = forward(spec, expand_params(fresh, 2), support.x, support.lengths)
    assert outputs.shape == (2, 4, 5)
    assert torch.equal(outputs, torch.zeros_like(outputs))
    rest = {name for name in params if not name.startswith("head.")}
    assert_same({name: fresh[name] for name in rest}, {name: params[name] for name in rest})
