"""Meta-gradients against closed forms, finite differences and an independent slow reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.experiment.schema import Experiment
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import RATE_PREFIX, clip_per_episode
from raymeta.meta.learners.maml import Maml
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, Params, dropout_masks, is_head
from raymeta.problem import PROBLEMS
from raymeta.tasks.load import load_tasks
from raymeta.training.recipe import build_recipe, initial_meta_params
from tests.reference import (
    ReferenceMaml,
    ReferenceNetwork,
    crps_of,
    loss_of,
    pairs,
    random_episodes,
    random_params,
)

pytestmark = pytest.mark.usefixtures("backend")

every_cell = pytest.mark.parametrize("cell", get_args(Cell))
SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4)
TEXT = NetworkSpec(num_outputs=2, vocabulary_size=7, embedding_size=3, hidden_size=4)
MAML = Maml(adaptation_steps=3, inner_lr=0.3)


class Case:
    """One random meta-gradient to compute, by raymeta and by the reference."""

    def __init__(
        self,
        spec: NetworkSpec = SPEC,
        maml: Maml = MAML,
        *,
        problem: str = "classification",
        **episodes: Any,
    ) -> None:
        self.spec, self.maml, self.problem = spec, maml, PROBLEMS[problem]
        self.network = ReferenceNetwork(**asdict(spec))
        self.meta_params = maml.init_meta_params(random_params(self.network))
        for index, name in enumerate(sorted(self.meta_params)):
            if name.startswith(RATE_PREFIX):  # every rate its own
                steps = torch.arange(maml.adaptation_steps)
                self.meta_params[name] += 0.2 * steps + 0.05 * index
            elif maml.shared_head and is_head(name):
                self.meta_params[name] += 0.1
        self.episodes = random_episodes(
            self.network,
            regression=problem != "classification",
            num_levels=len(self.problem.levels) or 1,
            **episodes,
        )

    def meta_gradient(self, graph_steps: int | None = None, **changes: Any) -> MetaGradient:
        maml = replace(self.maml, **changes)
        return maml.meta_gradient(
            self.spec,
            self.problem,
            self.meta_params,
            self.episodes,
            graph_steps=graph_steps,
        )

    def reference(self, **changes: Any) -> tuple[Params, Tensor]:
        masks = None
        if self.spec.dropout > 0:
            places = dropout_masks(self.spec, self.episodes.seeds, self.meta_params)
            masks = [[mask[e].flatten() for mask in places] for e in range(len(self.episodes))]
        reference = ReferenceMaml(network=self.network, **asdict(self.maml) | changes)
        return reference.meta_gradient(self.meta_params, pairs(self.episodes), masks)


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


class LinearRegression:
    """y = X φ with squared error: L(φ) = |Xφ - y|² / N, whose gradient is A φ - b.

    With fixed rates, φ_S = Π (I - α_s A) φ_0 + …, and ∂φ_S/∂φ_0 is that product.
    """

    def __init__(self, num_episodes: int = 3, size: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(num_episodes, *shape, generator=generator, dtype=torch.float64)

        self.support, self.query = (
            Examples(normal(count, 1, size), normal(count, 1)) for count in (5, 6)
        )
        self.start = normal(size)

    @staticmethod
    def network(params: Any, examples: Examples) -> Tensor:
        return torch.einsum("entd,ed->ent", examples.x, params["phi"])

    @staticmethod
    def quadratic(examples: Examples) -> tuple[Tensor, Tensor]:
        """Returns A and b of every episode."""
        x = examples.x.squeeze(2)
        a = 2 * x.mT @ x / x.shape[1]
        return a, (2 * x.mT @ examples.y / x.shape[1]).squeeze(-1)

    def meta_gradient(self, maml: Maml, rates: Tensor | None = None) -> tuple[list[Tensor], Params]:
        """Returns raymeta's φ_0 … φ_S, and the gradient by φ_0 and the logarithmic rates."""
        leaves = {"phi": self.start.clone().requires_grad_()}
        if rates is not None:
            log_rates = rates.log().repeat(len(self.start), 1)
            leaves[RATE_PREFIX + "phi"] = log_rates.requires_grad_()
        path = maml.adaptation_path(
            self.network,
            PROBLEMS["regression"],
            leaves,
            self.support,
            num_steps=maml.adaptation_steps,
            differentiable=True,
        )
        loss = PROBLEMS["regression"].loss(self.network(path[-1], self.query), self.query.y).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return [params["phi"] for params in path], dict(zip(leaves, grads, strict=True))

    def closed_path(self, rates: Iterable[Tensor | float]) -> list[Tensor]:
        a, b = self.quadratic(self.support)
        path = [self.start]
        for rate in rates:
            shrunk = torch.eye(a.shape[-1]) - rate * a
            path.append(torch.einsum("eij,ej->ei", shrunk, path[-1]) + rate * b)
        return path

    def closed_query_gradient(self, phi: Tensor) -> Tensor:
        a, b = self.quadratic(self.query)
        return torch.einsum("eij,ej->ei", a, phi) - b


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_meta_gradient_of_linear_regression_has_its_closed_form(num_steps):
    case, rate = LinearRegression(), 0.1
    path, grads = case.meta_gradient(Maml(adaptation_steps=num_steps, inner_lr=rate))
    assert_same(path, case.closed_path([rate] * num_steps))
    a, _ = case.quadratic(case.support)
    jacobian = torch.linalg.matrix_power(torch.eye(3) - rate * a, num_steps)
    at_query = case.closed_query_gradient(path[-1])
    assert_same(grads["phi"], torch.einsum("eij,ei->ej", jacobian, at_query))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_first_order_gradient_of_linear_regression_is_that_at_the_adapted_parameters(num_steps):
    case = LinearRegression()
    maml = Maml(adaptation_steps=num_steps, inner_lr=0.1, first_order=True)
    path, grads = case.meta_gradient(maml)
    assert_same(grads["phi"], case.closed_query_gradient(path[-1]))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_gradient_of_learned_rates_has_its_closed_form(num_steps):
    case = LinearRegression()
    rates = torch.linspace(0.05, 0.2, num_steps, dtype=torch.float64)
    maml = Maml(adaptation_steps=num_steps, learn_inner_lr=True)
    path, grads = case.meta_gradient(maml, rates)
    assert_same(path, case.closed_path(rates))
    # ∂φ_S/∂α_s = -Π_{j > s} (I - α_j A) (A φ_s - b), and ∂α/∂ log α = α.
    a, b = case.quadratic(case.support)
    behind = case.closed_query_gradient(path[-1])
    for step in reversed(range(num_steps)):
        inner = torch.einsum("eij,ej->ei", a, path[step]) - b
        expected = -rates[step] * (behind * inner).sum(dim=-1)
        assert_same(grads[RATE_PREFIX + "phi"][:, step], expected)
        behind = behind - rates[step] * torch.einsum("eij,ej->ei", a, behind)
    assert_same(grads["phi"], behind)


class _MetaLoss(torch.autograd.Function):
    """`meta_gradient` as autograd sees a function, for `gradcheck`."""

    @staticmethod
    def forward(ctx: Any, case: Case, *values: Tensor) -> Tensor:
        case.meta_params = {
            name: value.detach() for name, value in zip(case.meta_params, values, strict=True)
        }
        with torch.enable_grad():
            result = case.meta_gradient()
        ctx.save_for_backward(*result.grads.values())
        return result.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *[grad_loss * grad for grad in ctx.saved_tensors])


@every_cell
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("learn_inner_lr", [False, True])
def test_meta_gradient_is_that_of_finite_differences(cell, num_steps, learn_inner_lr):
    spec = NetworkSpec(cell=cell, num_outputs=2, num_features=1, hidden_size=2, pooling="attention")
    maml = Maml(adaptation_steps=num_steps, inner_lr=0.3, learn_inner_lr=learn_inner_lr)
    case = Case(spec, maml, num_episodes=2, num_steps=3, padded=True)
    leaves = [value.requires_grad_() for value in case.meta_params.values()]
    assert torch.autograd.gradcheck(
        partial(_MetaLoss.apply, case),
        leaves,
        fast_mode=True,
        check_undefined_grad=False,
    )


@every_cell
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"first_order": True},
        {"adapt": "head"},
        {"adapt": "body"},
        {"adapt": "body", "learn_inner_lr": True, "inner_clip": 0.2},
        {"learn_inner_lr": True},
        {"inner_clip": 0.2},
        {"inner_clip": 100.0},
        {"shared_head": True},
        {"adapt": "head", "learn_inner_lr": True, "inner_clip": 0.2},
        {"first_order": True, "learn_inner_lr": True, "inner_clip": 0.2},
        {"adapt": "head", "first_order": True, "shared_head": True},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("graph_steps", [None, 2, 0])
def test_every_setting_gives_the_references_meta_gradient(cell, changes, padded, graph_steps):
    case = Case(replace(SPEC, cell=cell), replace(MAML, **changes), padded=padded)
    result = case.meta_gradient(graph_steps)
    assert_same((result.grads, result.loss), case.reference())


@every_cell
@pytest.mark.parametrize(
    "architecture",
    [
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "pooling": "mean"},
        {"num_layers": 2, "bidirectional": True, "pooling": "attention", "dropout": 0.4},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "tokens"])
@pytest.mark.parametrize("graph_steps", [None, 0])
def test_every_architecture_gives_the_references_meta_gradient(
    cell, architecture, text, graph_steps
):
    spec = replace(TEXT if text else SPEC, cell=cell, **architecture)
    case = Case(spec, padded=True)
    result = case.meta_gradient(graph_steps)
    assert_same((result.grads, result.loss), case.reference())


@every_cell
@pytest.mark.parametrize("first_order", [False, True])
def test_regression_gives_the_references_meta_gradient(cell, first_order):
    maml = replace(MAML, inner_lr=0.05, first_order=first_order)
    case = Case(replace(SPEC, cell=cell), maml, problem="regression", padded=True)
    result = case.meta_gradient()
    assert_same((result.grads, result.loss), case.reference())
    assert_same(result.score, result.loss)


@every_cell
def test_comparison_notices_a_detached_inner_gradient(cell, monkeypatch):
    case = Case(replace(SPEC, cell=cell))
    second_order, _ = case.reference()
    first_order, _ = case.reference(first_order=True)
    differentiate = torch.autograd.grad

    def detached(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(grad.detach() for grad in differentiate(*args, **kwargs))

    monkeypatch.setattr(torch.autograd, "grad", detached)
    broken = case.meta_gradient().grads
    with pytest.raises(AssertionError):
        assert_same(broken, second_order)
    assert_same(broken, first_order)


@every_cell
def test_first_order_differs_from_second_order(cell):
    case = Case(replace(SPEC, cell=cell))
    exact, first_order = case.meta_gradient(), case.meta_gradient(first_order=True)
    assert_same(first_order.loss, exact.loss)
    for name, grad in exact.grads.items():
        if name != "head.bias":
            assert (first_order.grads[name] - grad).norm() > 1e-3 * grad.norm()


def gradients(scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        scale * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for shape in [(2, 2), (4,)]
    )


def norms(grads: tuple[Tensor, ...]) -> Tensor:
    """Returns the norm of every episode, over all tensors."""
    return torch.cat([grad.flatten(1) for grad in grads], dim=1).norm(dim=1)


def test_clipping_scales_an_episode_to_the_bound_and_keeps_its_direction():
    grads = gradients()
    bound = norms(grads).median().item()
    clipped = clip_per_episode(grads, bound)
    assert_same(norms(clipped), norms(grads).clamp_max(bound))
    ratio = norms(clipped) / norms(grads)
    for before, after in zip(grads, clipped, strict=True):
        assert_same(after, before * ratio.view(-1, *[1] * (before.dim() - 1)))


def test_clipping_leaves_gradients_within_the_bound_as_they_are():
    grads = gradients()
    assert_same(clip_per_episode(grads, 100.0), grads)


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1.0])
def test_clipping_has_a_finite_derivative_even_at_zero(scale):
    leaves = tuple(grad.requires_grad_() for grad in gradients(scale))
    total = sum(grad.sum() for grad in clip_per_episode(leaves, 0.5))
    assert isinstance(total, Tensor)
    for derivative in torch.autograd.grad(total, leaves):
        assert derivative.isfinite().all()
        if scale < 1:
            assert_same(derivative, torch.ones_like(derivative))


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, 4)), inner_clip=st.sampled_from([None, 0.2]))
def test_shards_of_any_size_add_up_to_the_whole(cuts, inner_clip):
    case = Case(
        replace(SPEC, dropout=0.3),
        replace(MAML, inner_clip=inner_clip),
        padded=True,
        num_episodes=5,
    )
    whole, episodes = case.meta_gradient(), case.episodes
    shards = []
    for start, end in pairwise([0, *sorted(cuts), 5]):
        case.episodes = episodes_between(episodes, start, end)
        shards.append(case.meta_gradient())
    assert_same(sums(shards), sums([whole]))


def episodes_between(episodes: Episodes, start: int, end: int) -> Episodes:
    def part(examples: Examples) -> Examples:
        lengths = None if examples.lengths is None else examples.lengths[start:end]
        return Examples(examples.x[start:end], examples.y[start:end], lengths)

    return Episodes(part(episodes.support), part(episodes.query), episodes.seeds[start:end])


def sums(parts: list[MetaGradient]) -> dict[str, Tensor]:
    """Returns all values that add up over shards."""
    everything = [
        {
            **part.grads,
            "loss": part.loss,
            "score": part.score,
            "num_episodes": torch.tensor(part.num_episodes),
        }
        for part in parts
    ]
    return {
        name: torch.stack([one[name] for one in everything]).sum(dim=0) for name in everything[0]
    }


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_shards_padded_to_other_lengths_add_up_to_the_whole(tiny, precision):
    experiment: Experiment = tiny("sentiment", f"training.precision={precision}")
    tasks = load_tasks(experiment)
    recipe = build_recipe(experiment, tasks)
    meta_params = initial_meta_params(recipe, torch.device("cpu"))

    def gradient(indices: range) -> MetaGradient:
        episodes = tasks.episodes("train", indices).to(torch.device("cpu"), recipe.dtype)
        return recipe.learner.meta_gradient(recipe.spec, recipe.problem, meta_params, episodes)

    shards = [gradient(range(1)), gradient(range(1, 3)), gradient(range(3, 5))]
    tolerance = 1e-10 if precision == "float64" else 1e-6
    torch.testing.assert_close(
        sums(shards), sums([gradient(range(5))]), rtol=tolerance, atol=tolerance
    )


@every_cell
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("inner_clip", [None, 0.5])
def test_adaptation_curve_is_that_of_plain_sgd(cell, problem, inner_clip):
    spec = replace(SPEC, cell=cell, dropout=0.5)  # which scoring leaves out
    case = Case(spec, replace(MAML, inner_clip=inner_clip), problem=problem, padded=True)
    curves = case.maml.adaptation_scores(
        spec, case.problem, case.meta_params, case.episodes, num_steps=5
    )
    network = case.network
    references: dict[str, Any] = {
        "classification": (loss_of, lambda outputs, y: (outputs.argmax(-1) == y).double().mean()),
        "regression": (loss_of, loss_of),
        "forecast": (F.huber_loss, F.l1_loss),
        "quantiles": (crps_of, crps_of),
    }
    loss, score = references[problem]
    for curve, (support, query) in zip(curves.mean(dim=1), pairs(case.episodes), strict=True):
        network.load_state_dict(case.meta_params)
        optimizer = torch.optim.SGD(network.parameters(), lr=case.maml.inner_lr)
        expected = []
        for _ in range(6):
            expected.append(score(network(query.x, query.lengths), query.y))
            optimizer.zero_grad()
            torch.autograd.backward(loss(network(support.x, support.lengths), support.y))
            if inner_clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), inner_clip)
            optimizer.step()
        # torch's clipping adds 1e-6 to the norm.
        torch.testing.assert_close(
            curve, torch.stack(expected), rtol=1e-10 if inner_clip is None else 1e-5, atol=1e-10
        )


def test_steps_beyond_the_learned_rates_repeat_the_last_one():
    case = Case(maml=replace(MAML, adaptation_steps=2, learn_inner_lr=True), problem="regression")

    def curve(meta_params: Params) -> Tensor:
        return case.maml.adaptation_scores(
            SPEC, case.problem, meta_params, case.episodes, num_steps=4
        )

    longer = {
        name: torch.cat([value, value[-1:], value[-1:]]) if RATE_PREFIX in name else value
        for name, value in case.meta_params.items()
    }
    assert_same(curve(case.meta_params), curve(longer))


def test_score_is_the_share_of_right_answers():
    case = Case(maml=replace(MAML, adaptation_steps=1))
    reference = ReferenceMaml(network=case.network, **asdict(case.maml))
    leaves = {name: value.requires_grad_() for name, value in case.meta_params.items()}
    expected = 0.0
    for support, query in pairs(case.episodes):
        outputs = reference.outputs(reference.adapted(leaves, support), query, None)
        expected += (outputs.argmax(-1) == query.y).double().mean().item()
    assert case.meta_gradient().score.item() == pytest.approx(expected)


def test_learned_rates_start_at_the_given_rate_and_only_for_adapted_parameters():
    params = random_params(ReferenceNetwork(**asdict(SPEC)))
    maml = Maml(adaptation_steps=4, inner_lr=0.2, learn_inner_lr=True, adapt="head")
    rates = {k: v for k, v in maml.init_meta_params(params).items() if RATE_PREFIX in k}
    assert set(rates) == {RATE_PREFIX + "head.weight", RATE_PREFIX + "head.bias"}
    for value in rates.values():
        assert value.dtype == torch.float64
        assert value.exp().tolist() == pytest.approx([0.2] * 4)


def test_a_shared_head_is_one_row_of_zeros():
    params = random_params(ReferenceNetwork(**asdict(SPEC)))
    meta_params = Maml(shared_head=True).init_meta_params(params)
    assert torch.equal(meta_params["head.weight"], torch.zeros(1, 4, dtype=torch.float64))
    assert torch.equal(meta_params["head.bias"], torch.zeros(1, dtype=torch.float64))
    assert torch.equal(meta_params["rnn.weight_hh_l0"], params["rnn.weight_hh_l0"])


def test_clipping_bounds_gradients_whose_squares_overflow():
    (clipped,) = clip_per_episode((torch.full((1, 4), 1e25),), 2.0)
    assert clipped.dtype == torch.float32
    torch.testing.assert_close(clipped.norm(), torch.tensor(2.0))


@pytest.mark.parametrize("cell", get_args(Cell))
def test_meta_gradient_with_layers_in_bfloat16_is_within_three_per_cent(cell: Cell) -> None:
    spec = replace(SPEC, cell=cell, hidden_size=16)
    params = random_params(ReferenceNetwork(**asdict(spec)))
    episodes = random_episodes(ReferenceNetwork(**asdict(spec)), padded=True)
    maml = Maml(adaptation_steps=3)
    exact = maml.meta_gradient(spec, PROBLEMS["classification"], params, episodes)
    single = {name: value.float() for name, value in params.items()}
    low = maml.meta_gradient(
        replace(spec, layer_dtype=torch.bfloat16),
        PROBLEMS["classification"],
        single,
        episodes.to(torch.device("cpu"), torch.float32),
    )
    wanted, found = (
        torch.cat([result.grads[name].flatten() for name in params]) for result in (exact, low)
    )
    apart = ((found - wanted).norm() / wanted.norm()).item()
    assert 1e-4 < apart < 0.03, apart
