"""Implicit MAML against dense Hessians of torch's own network, and on sine waves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from raymeta.experiment.file import load_experiment
from raymeta.meta.learners.imaml import Imaml, conjugate_gradients
from raymeta.nn.cells import Cell
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

SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=3)
TEXT = NetworkSpec(num_outputs=3, vocabulary_size=5, embedding_size=2, hidden_size=3)
SPECS = {
    **{cell: replace(SPEC, cell=cell) for cell in get_args(Cell)},
    "two layers, both directions": replace(SPEC, hidden_size=2, num_layers=2, bidirectional=True),
    "tokens": TEXT,
}
Loss = Callable[[Tensor], Tensor]  # of all parameters in one vector
Solver = Callable[[np.ndarray, np.ndarray], np.ndarray]


def by_hand(
    network: ReferenceNetwork,
    params: Params,
    imaml: Imaml,
    support: ExampleSet,
    query: ExampleSet,
    solvers: Iterable[Solver],
) -> list[Params]:
    """Computes the meta-gradients of one episode with a dense Hessian, one for each solver."""

    def named(flat: Tensor) -> Params:
        found, start = {}, 0
        for name, value in params.items():
            found[name] = flat[start : start + value.numel()].view_as(value)
            start += value.numel()
        return found

    def loss_on(data: ExampleSet) -> Loss:
        def loss(flat: Tensor) -> Tensor:
            outputs = functional_call(network, named(flat), (data.x, data.lengths))
            return loss_of(outputs, data.y)

        return loss

    def gradient(loss: Loss, at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    theta = torch.cat([value.flatten() for value in params.values()])
    phi = theta.clone()
    for _ in range(imaml.adaptation_steps):
        slope = gradient(loss_on(support), phi) + imaml.proximity * (phi - theta)
        phi = phi - imaml.inner_lr * slope
    hessian = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        loss_on(support), phi
    )
    matrix = np.eye(len(theta)) + hessian.numpy() / imaml.proximity
    of_query = gradient(loss_on(query), phi).numpy()
    return [named(torch.from_numpy(solve(matrix, of_query))) for solve in solvers]


def plain_conjugate_gradients(matrix: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    x, r = np.zeros_like(b), b.copy()
    d = r.copy()
    for _ in range(steps):
        length = r @ r / (d @ matrix @ d)
        x = x + length * d
        after = r - length * matrix @ d
        d = after + (after @ after) / (r @ r) * d
        r = after
    return x


# Iterations to what they come to: 40 are as good as all.
SOLVERS: dict[int, Solver] = {
    3: lambda matrix, b: plain_conjugate_gradients(matrix, b, 3),
    40: np.linalg.solve,
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_the_meta_gradient_is_that_of_dense_hessians(
    spec: NetworkSpec, regression: bool, padded: bool
) -> None:
    network = ReferenceNetwork(**asdict(spec))
    params = random_params(network)
    episodes = random_episodes(network, 2, regression=regression, padded=padded)
    problem = PROBLEMS["regression" if regression else "classification"]
    imaml = Imaml(adaptation_steps=4, inner_lr=0.1, proximity=8.0)
    each = [by_hand(network, params, imaml, s, q, SOLVERS.values()) for s, q in pairs(episodes)]
    for number, solver_steps in enumerate(SOLVERS):
        learner = replace(imaml, solver_steps=solver_steps)
        found = learner.meta_gradient(spec, problem, params, episodes).grads
        sums = {name: sum(one[number][name] for one in each) for name in params}
        torch.testing.assert_close(found, sums, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_at_the_end_of_adaptation_it_is_the_gradient_by_the_start() -> None:
    network = ReferenceNetwork(**asdict(SPEC))
    params, episodes = random_params(network), random_episodes(network, 1)
    imaml = Imaml(adaptation_steps=200, inner_lr=0.15, proximity=4.0, solver_steps=40)
    problem = PROBLEMS["classification"]

    def loss_from(start: Params) -> float:
        """Returns the query's loss after adaptation from `start`."""
        found = imaml.meta_gradient(SPEC, problem, start, episodes)
        return float(found.loss)

    found = imaml.meta_gradient(SPEC, problem, params, episodes).grads
    for name in ("rnn.weight_hh_l0", "head.weight"):
        place = (0,) * params[name].dim()
        losses = []
        for side in (1e-5, -1e-5):
            moved = {key: value.clone() for key, value in params.items()}
            moved[name][place] += side
            losses.append(loss_from(moved))
        assert float(found[name][place]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def test_conjugate_gradients_solve_every_episode_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    matrices = roots @ roots.mT + torch.eye(6, dtype=torch.float64)
    wanted = torch.randn(3, 6, generator=generator, dtype=torch.float64)

    def multiply(vectors: Params) -> Params:
        flat = torch.cat([vectors["a"], vectors["b"].flatten(1)], dim=1)
        product = (matrices @ flat.unsqueeze(-1)).squeeze(-1)
        return {"a": product[:, :2], "b": product[:, 2:].view(3, 2, 2)}

    found = conjugate_gradients(
        multiply, {"a": wanted[:, :2], "b": wanted[:, 2:].view(3, 2, 2)}, num_steps=12
    )
    flat = torch.cat([found["a"], found["b"].flatten(1)], dim=1)
    torch.testing.assert_close(flat, torch.linalg.solve(matrices, wanted), rtol=1e-8, atol=1e-8)


def test_a_direction_of_negative_curvature_ends_an_episodes_solution() -> None:
    scales = torch.tensor([[2.0, 4.0], [-1.0, -1.0], [4.0, -1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    found = conjugate_gradients(lambda v: {"x": scales * v["x"]}, {"x": b}, num_steps=5)["x"]
    torch.testing.assert_close(found[0], b[0] / scales[0])
    torch.testing.assert_close(found[1], b[1])  # b itself: the gradient without a Hessian
    first = b[2] * (b[2] @ b[2]) / (b[2] @ (scales[2] * b[2]))
    torch.testing.assert_close(found[2], first)  # after the step that still had a curvature


@pytest.mark.slow
def test_implicit_maml_learns_sine_waves() -> None:
    experiment = load_experiment(
        "sinusoid",
        [
            "learner=imaml",
            "imaml={adaptation_steps: 8, inner_lr: 0.02, proximity: 1.0, inner_clip: 10.0}",
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
