"""Reptile against a loop written by hand, and on sine waves."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from raymeta.episodes import Examples, joined
from raymeta.experiment.file import load_experiment
from raymeta.meta.learners.reptile import Reptile
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.problem import PROBLEMS
from raymeta.training.trainer import build_trainer
from tests.reference import (
    ExampleSet,
    ReferenceNetwork,
    loss_of,
    pairs,
    random_episodes,
    random_params,
)

SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4)
TEXT = NetworkSpec(num_outputs=3, vocabulary_size=7, embedding_size=3, hidden_size=4)


def by_hand(
    network: ReferenceNetwork,
    params: Params,
    reptile: Reptile,
    support: ExampleSet,
    query: ExampleSet,
) -> Params:
    """Computes θ - φ_S of one episode by torch.optim.SGD on torch.nn's own network."""
    network.load_state_dict(params)
    optimizer = torch.optim.SGD(network.parameters(), lr=reptile.inner_lr)
    for _ in range(reptile.adaptation_steps):
        optimizer.zero_grad()
        losses = [
            loss_of(network(one.x, one.lengths), one.y) * len(one.y) for one in (support, query)
        ]
        torch.autograd.backward(sum(losses, torch.tensor(0.0)) / (len(support.y) + len(query.y)))
        if reptile.inner_clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), reptile.inner_clip)
        optimizer.step()
    return {k: params[k] - v.detach() for k, v in network.named_parameters()}


@pytest.mark.parametrize("spec", [SPEC, TEXT], ids=["numbers", "tokens"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("inner_clip", [None, 0.1])
def test_meta_gradient_is_that_of_a_loop_by_hand(
    spec: NetworkSpec, cell: str, regression: bool, padded: bool, inner_clip: float | None
) -> None:
    spec = replace(spec, cell=cell)  # type: ignore[arg-type]
    network = ReferenceNetwork(**asdict(spec))
    params = random_params(network)
    episodes = random_episodes(network, 3, regression=regression, padded=padded)
    reptile = Reptile(adaptation_steps=4, inner_lr=0.3, inner_clip=inner_clip)
    problem = PROBLEMS["regression" if regression else "classification"]
    found = reptile.meta_gradient(spec, problem, params, episodes)
    each = [by_hand(network, params, reptile, s, q) for s, q in pairs(episodes)]
    wanted = {name: torch.stack([one[name] for one in each]).sum(dim=0) for name in params}
    tolerance = 1e-10 if inner_clip is None else 1e-5  # torch's clipping adds 1e-6 to the norm
    torch.testing.assert_close(found.grads, wanted, rtol=tolerance, atol=tolerance)


def test_one_step_is_the_gradient_of_joint_training() -> None:
    network = ReferenceNetwork(**asdict(SPEC))
    params, episodes = random_params(network), random_episodes(network, 2)
    one = Reptile(adaptation_steps=1, inner_lr=0.5).meta_gradient(
        SPEC, PROBLEMS["classification"], params, episodes
    )
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for support, query in pairs(episodes):
        network.load_state_dict(params)
        network.zero_grad()
        x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
        torch.autograd.backward(loss_of(network(x, None), y))
        for name, value in network.named_parameters():
            assert value.grad is not None
            total[name] += 0.5 * value.grad
    torch.testing.assert_close(one.grads, total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 3), (4, 4)])
def test_joined_sets_keep_every_example_and_its_length(
    tokens: bool, first: int, second: int
) -> None:
    def examples(count: int, steps: int, lengths: Tensor | None) -> Examples:
        shape = (2, count, steps) if tokens else (2, count, steps, 3)
        x = torch.ones(shape, dtype=torch.int64 if tokens else torch.float64)
        return Examples(x, torch.zeros(2, count, dtype=torch.int64), lengths)

    both = joined(examples(2, first, None), examples(1, second, torch.full((2, 1), 2)))
    longest = max(first, second)
    assert both.x.shape[:3] == (2, 3, longest)
    assert both.lengths is not None
    assert both.lengths.tolist() == [[first, first, 2]] * 2
    assert not both.x[:, :2, first:].any()
    without = joined(examples(2, first, None), examples(1, second, None))
    assert (without.lengths is None) == (first == second)


@pytest.mark.slow
def test_reptile_learns_sine_waves() -> None:
    experiment = load_experiment(
        "sinusoid",
        [
            "learner=reptile",
            "reptile={adaptation_steps: 8, inner_lr: 0.02, inner_clip: 10.0}",
            "model={cell: rnn, hidden_size: 20}",
            "training={meta_steps: 150, meta_batch_size: 8, outer_lr: 0.01, val_episodes: 100}",
            "evaluation.adaptation_steps=8",
            "search.space={}",
        ],
    )
    trainer = build_trainer(experiment)
    before = trainer.validate()["val_loss"]
    trainer.train(150)
    after = trainer.validate()["val_loss"]
    assert after < 0.75 * before, (before, after)
