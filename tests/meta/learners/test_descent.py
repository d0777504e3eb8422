"""Learners of gradient steps against plain loops over episodes on torch's own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymeta.episodes import Episodes
from raymeta.meta.descent import DescentLearner
from raymeta.meta.inner import as_leaves, episode_masks, is_decayed
from raymeta.meta.learners.cavia import Cavia
from raymeta.meta.learners.maml import Maml
from raymeta.meta.learners.maml_plus_plus import MamlPlusPlus
from raymeta.meta.learners.meta_sgd import MetaSgd
from raymeta.meta.learners.proto_maml import ProtoMaml
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.memory import plan_memory
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.problem import PROBLEMS
from tests.reference import (
    MODULES,
    ExampleSet,
    ReferenceNetwork,
    loss_of,
    pairs,
    random_episodes,
    random_params,
    thinned,
)

SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4)
TEXT = NetworkSpec(num_outputs=3, vocabulary_size=7, embedding_size=3, hidden_size=4)
SPECS = {
    **{cell: replace(SPEC, cell=cell) for cell in get_args(Cell)},
    "two layers, both directions": replace(SPEC, num_layers=2, bidirectional=True),
    "lstm, attention": replace(SPEC, cell="lstm", pooling="attention"),
    "tokens, mean": replace(TEXT, pooling="mean", bidirectional=True),
    "dropout": replace(SPEC, num_layers=2, dropout=0.4),
    "tokens, dropout": replace(TEXT, dropout=0.4),
}

PLUS_PLUS = MamlPlusPlus(
    adaptation_steps=4, inner_lr=0.3, multi_step_share=0.5, first_order_share=0.25
)
CAVIA = Cavia(adaptation_steps=3, inner_lr=0.8, context_size=2)
PROTO_MAML = ProtoMaml(adaptation_steps=3, inner_lr=0.3)
META_SGD = MetaSgd(adaptation_steps=3, inner_lr=0.3)
Masks = Sequence[Tensor] | None
# (learner, network, meta-parameters, support, query, masks) -> the loss that is differentiated
Plain = Callable[[Any, ReferenceNetwork, Params, ExampleSet, ExampleSet, Masks], Tensor]


class Case:
    """A learner with random weights, and three episodes whose padding holds NaN."""

    def __init__(
        self, learner: DescentLearner, spec: NetworkSpec = SPEC, problem: str = "classification"
    ) -> None:
        self.learner, self.spec, self.problem = learner, spec, PROBLEMS[problem]
        self.network = ReferenceNetwork(**asdict(spec))
        self.meta_params = learner.init_meta_params(random_params(self.network), seed=3)
        generator = torch.Generator().manual_seed(1)
        for value in self.meta_params.values():  # no two alike; a third of the rates negative
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        self.episodes: Episodes = random_episodes(
            self.network, regression=problem == "regression", padded=True, every_class=True
        )

    def check(self, plain: Plain, graph_steps: int | None = None) -> None:
        """Compares the meta-gradient and the loss with those of the plain loop."""
        found = self.learner.meta_gradient(
            self.spec, self.problem, self.meta_params, self.episodes, graph_steps=graph_steps
        )
        leaves = as_leaves(self.meta_params)
        places = episode_masks(self.spec, leaves, self.episodes.seeds)
        total = torch.zeros((), dtype=torch.float64)
        for index, (support, query) in enumerate(pairs(self.episodes)):
            masks = None if places is None else [mask[index].flatten() for mask in places]
            total = total + plain(self.learner, self.network, leaves, support, query, masks)
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        wanted = dict(zip(leaves, grads, strict=True))
        torch.testing.assert_close(found.grads, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.loss, total.detach(), rtol=1e-9, atol=1e-9)


def loss_at(
    network: ReferenceNetwork, params: Mapping[str, Tensor], data: ExampleSet, masks: Masks
) -> Tensor:
    own = params if masks is None else thinned(params, masks)
    return loss_of(functional_call(network, dict(own), (data.x, data.lengths)), data.y)


def step(
    loss: Tensor,
    params: Mapping[str, Tensor],
    rates: Mapping[str, Tensor | float],
    max_norm: float | None = None,
    *,
    first_order: bool = False,
) -> Params:
    """Takes one step down `loss`, by the parameters that have a rate."""
    grads = torch.autograd.grad(loss, [params[k] for k in rates], create_graph=not first_order)
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    if max_norm is not None and norm > max_norm:
        grads = tuple(grad * (max_norm / norm) for grad in grads)
    moved = {k: params[k] - rates[k] * grad for k, grad in zip(rates, grads, strict=True)}
    return {**params, **moved}


def plain_meta_sgd(
    learner: MetaSgd,
    network: ReferenceNetwork,
    leaves: Params,
    support: ExampleSet,
    query: ExampleSet,
    masks: Masks,
) -> Tensor:
    params = {name: leaves[name] for name, _ in network.named_parameters()}
    rates: dict[str, Tensor | float] = {name: leaves[f"inner_lr.{name}"] for name in params}
    if learner.shared_head:
        for values in (params, rates):
            for name in ("head.weight", "head.bias"):
                values[name] = torch.cat([torch.as_tensor(values[name])] * 3)
    for _ in range(learner.adaptation_steps):
        params = step(loss_at(network, params, support, masks), params, rates, learner.inner_clip)
    return loss_at(network, params, query, masks)


def plain_maml_plus_plus(*weights: float, first_order: bool = False) -> Plain:
    """Computes MAML++ with these weights of the losses after each step."""

    def plain(
        learner: MamlPlusPlus,
        network: ReferenceNetwork,
        leaves: Params,
        support: ExampleSet,
        query: ExampleSet,
        masks: Masks,
    ) -> Tensor:
        params = {name: leaves[name] for name, _ in network.named_parameters()}
        names = list(params)
        if learner.shared_head:
            for name in ("head.weight", "head.bias"):
                params[name] = torch.cat([params[name]] * 3)
        total = torch.zeros((), dtype=torch.float64)
        for number, weight in enumerate(weights):
            rates = {name: leaves[f"log_inner_lr.{name}"][number].exp() for name in names}
            loss = loss_at(network, params, support, masks)
            params = step(loss, params, rates, learner.inner_clip, first_order=first_order)
            total = total + weight * loss_at(network, params, query, masks)
        return total

    return plain


def plain_proto_maml(
    learner: ProtoMaml,
    network: ReferenceNetwork,
    leaves: Params,
    support: ExampleSet,
    query: ExampleSet,
    masks: Masks,
) -> Tensor:
    body = {k: v for k, v in leaves.items() if not k.startswith("head.")}
    features = plain_features(network, body, support, masks)
    prototypes = [features[support.y == way].mean(dim=0) for way in range(3)]
    params = {  # a step follows the partial derivatives: the body moves with the head held fixed
        **{name: value.clone() for name, value in body.items()},
        "head.weight": torch.stack([2 * c for c in prototypes]),
        "head.bias": torch.stack([-torch.dot(c, c) for c in prototypes]),
    }
    rates = dict.fromkeys(params, learner.inner_lr)
    for _ in range(learner.adaptation_steps):
        params = step(
            loss_at(network, params, support, masks),
            params,
            rates,
            learner.inner_clip,
            first_order=learner.first_order,
        )
    return loss_at(network, params, query, masks)


def plain_cavia(
    learner: Cavia,
    network: ReferenceNetwork,
    leaves: Params,
    support: ExampleSet,
    query: ExampleSet,
    masks: Masks,
) -> Tensor:
    """Computes CAVIA, with the context as columns behind the inputs of a torch network."""
    params = {name: leaves[name] for name, _ in network.named_parameters()}
    own = params if masks is None else thinned(params, masks)
    table = own.pop("embedding.weight", None)
    wider = copy.deepcopy(network)
    if table is not None:
        del wider.embedding
    wider.rnn = MODULES[network.cell](
        network.rnn.input_size + learner.context_size,
        network.rnn.hidden_size,
        num_layers=network.rnn.num_layers,
        bidirectional=network.rnn.bidirectional,
        batch_first=True,
    )
    for end in ("", "_reverse")[: network.num_directions]:
        parts = [own[f"rnn.weight_ih_l0{end}"], leaves[f"context.weight_ih_l0{end}"]]
        own[f"rnn.weight_ih_l0{end}"] = torch.cat(parts, dim=1)

    def loss(context: Tensor, data: ExampleSet) -> Tensor:
        x = data.x if table is None else table[data.x]
        x = torch.cat([x, context.expand(*x.shape[:2], -1)], dim=-1)
        return loss_of(functional_call(wider, dict(own), (x, data.lengths)), data.y)

    context = torch.zeros(learner.context_size, dtype=torch.float64, requires_grad=True)
    for _ in range(learner.adaptation_steps):
        (grad,) = torch.autograd.grad(
            loss(context, support), context, create_graph=not learner.first_order
        )
        if learner.inner_clip is not None and grad.norm() > learner.inner_clip:
            grad = grad * (learner.inner_clip / grad.norm())
        context = context - learner.inner_lr * grad
    return loss(context, query)


def plain_features(
    network: ReferenceNetwork, body: Params, data: ExampleSet, masks: Masks
) -> Tensor:
    """Computes the inputs of the network's head, example by example."""
    headless = copy.deepcopy(network)
    setattr(headless, "head", nn.Identity())  # noqa: B010  (what is left gives features)
    own = body if masks is None else thinned(body, masks)
    rows = []
    for index in range(len(data.y)):
        assert data.lengths is not None
        x = data.x[index, : data.lengths[index]][None]
        rows.append(functional_call(headless, dict(own), (x,))[0])
    found = torch.stack(rows)
    return found if masks is None else found * masks[-1]


LEARNERS: dict[str, tuple[Any, Plain]] = {
    "maml_plus_plus at first": (
        PLUS_PLUS.at_progress(0.0),
        plain_maml_plus_plus(1 / 4, 1 / 4, 1 / 4, 1 / 4, first_order=True),
    ),
    "maml_plus_plus, second order": (
        PLUS_PLUS.at_progress(0.25),
        plain_maml_plus_plus(1 / 8, 1 / 8, 1 / 8, 5 / 8),
    ),
    "maml_plus_plus, clipped, shared head": (
        replace(PLUS_PLUS, inner_clip=0.2, shared_head=True).at_progress(0.25),
        plain_maml_plus_plus(1 / 8, 1 / 8, 1 / 8, 5 / 8),
    ),
    "maml_plus_plus in the end": (PLUS_PLUS.at_progress(0.5), plain_maml_plus_plus(0, 0, 0, 1)),
    "cavia": (CAVIA, plain_cavia),
    "cavia, clipped": (replace(CAVIA, inner_clip=0.2), plain_cavia),
    "cavia, first order": (replace(CAVIA, first_order=True), plain_cavia),
    "proto_maml": (PROTO_MAML, plain_proto_maml),
    "proto_maml, clipped": (replace(PROTO_MAML, inner_clip=0.2), plain_proto_maml),
    "proto_maml, first order": (replace(PROTO_MAML, first_order=True), plain_proto_maml),
    "meta_sgd": (META_SGD, plain_meta_sgd),
    "meta_sgd, clipped": (replace(META_SGD, inner_clip=0.2), plain_meta_sgd),
    "meta_sgd, shared head": (replace(META_SGD, shared_head=True), plain_meta_sgd),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


@every_learner
@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("graph_steps", [None, 0])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    name: str, architecture: str, graph_steps: int | None
) -> None:
    learner, plain = LEARNERS[name]
    Case(learner, SPECS[architecture]).check(plain, graph_steps)


@every_learner
@pytest.mark.parametrize("graph_steps", [None, 1, 2])
def test_the_meta_gradient_of_regression_is_that_of_a_plain_loop(
    name: str, graph_steps: int | None
) -> None:
    learner, plain = LEARNERS[name]
    if "regression" not in learner.refuses:
        Case(learner, problem="regression").check(plain, graph_steps)


def test_weight_decay_does_not_shrink_the_rates_of_meta_sgd() -> None:
    case = Case(META_SGD)
    rates = [name for name in case.meta_params if not is_decayed(name)]
    assert rates == [f"inner_lr.{name}" for name, _ in case.network.named_parameters()]
    assert any((case.meta_params[name] < 0).any() for name in rates)


def test_proto_maml_starts_as_a_prototypical_network_and_never_answers_an_absent_class() -> None:
    case = Case(PROTO_MAML)
    support, query = case.episodes.support, case.episodes.query
    support.y[support.y == 2] = 1  # class 2 has no example
    before, after = PROTO_MAML.query_outputs(
        case.spec, case.problem, case.meta_params, support, query, 1
    )
    prototypes = Prototypes()
    weights = case.meta_params | {"log_scale": torch.zeros(1, dtype=torch.float64)}
    (wanted,) = prototypes.query_outputs(case.spec, case.problem, weights, support, query, 0)
    torch.testing.assert_close(before, wanted, rtol=1e-9, atol=1e-9)
    for outputs in (before, after):
        assert outputs[..., :2].isfinite().all()
        assert (outputs[..., 2] == -torch.inf).all()


def test_maml_plus_plus_is_maml_with_learned_rates_when_annealing_is_over() -> None:
    assert PLUS_PLUS.at_progress(0.5) is PLUS_PLUS
    maml = Maml(adaptation_steps=4, inner_lr=0.3, learn_inner_lr=True)
    case, same = Case(PLUS_PLUS), Case(maml)
    torch.testing.assert_close(case.meta_params, same.meta_params, rtol=0, atol=0)
    found, wanted = (
        one.learner.meta_gradient(one.spec, one.problem, one.meta_params, one.episodes)
        for one in (case, same)
    )
    torch.testing.assert_close(found.grads, wanted.grads, rtol=0, atol=0)


def test_shares_of_zero_anneal_nothing() -> None:
    learner = MamlPlusPlus(multi_step_share=0, first_order_share=0)
    assert learner.at_progress(0.0) is learner


def test_memory_is_planned_for_the_losses_of_every_step() -> None:
    case = Case(PLUS_PLUS)
    early, late = (
        plan_memory(
            PLUS_PLUS.at_progress(progress), case.spec, case.meta_params, case.episodes, mode="full"
        )
        for progress in (0.0, 1.0)
    )
    assert early.num_bytes > 1.2 * late.num_bytes
