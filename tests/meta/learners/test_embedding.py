"""Learners of shared features against plain loops over episodes on torch's own modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymeta.episodes import Episodes, Examples
from raymeta.meta.embedding import Embedded, EmbeddingLearner
from raymeta.meta.inner import as_leaves, episode_masks
from raymeta.meta.learners.alignment import Alignment
from raymeta.meta.learners.alpaca import Alpaca
from raymeta.meta.learners.matching import Matching
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.learners.ridge import Ridge
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.nn.shared import shared_features
from raymeta.problem import PROBLEMS
from tests.reference import ReferenceNetwork, random_episodes, random_params, thinned

SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4)
SPECS = {
    "gru": SPEC,
    "rnn, two layers": replace(SPEC, cell="rnn", num_layers=2),
    "lstm, both directions": replace(SPEC, cell="lstm", bidirectional=True),
    "attention": replace(SPEC, pooling="attention", bidirectional=True),
    "mean, tokens": replace(
        SPEC, pooling="mean", num_features=None, vocabulary_size=7, embedding_size=3
    ),
    "dropout": replace(SPEC, dropout=0.4, num_layers=2),
    "tokens, dropout": replace(
        SPEC, num_features=None, vocabulary_size=7, embedding_size=3, dropout=0.4
    ),
}
CLASSIFIERS: dict[str, EmbeddingLearner] = {
    "euclidean": Prototypes(),
    "cosine": Prototypes(distance="cosine", scale=3.0),
    "matching": Matching(full_context=False),
    "full context": Matching(read_steps=3, scale=4.0),
    "ridge": Ridge(penalty=0.3),
    "alignment": Alignment(scale=2.0, sharpness=3.0),
    "ridge, prior": Ridge(penalty=0.3, scale=2.0, learned_prior=True),
}
REGRESSORS: dict[str, EmbeddingLearner] = {
    "matching": Matching(full_context=False),
    "full context": Matching(read_steps=2),
    "ridge": Ridge(penalty=0.3),
    "ridge, prior": Ridge(penalty=0.3, learned_prior=True),
    "alpaca": Alpaca(noise=0.4, prior=2.0),
}


class StepNetwork(ReferenceNetwork):
    """Gives each step's state, and its weight as one feature more."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        states, _ = self.states(x, lengths)
        weights = torch.full_like(states[..., :1], 1 / states.shape[1])
        if self.pooling == "attention":
            weights = self.attention(states).softmax(dim=1)
        return torch.cat([states, weights], dim=-1)


class Case:
    """A learner with random weights, and episodes whose padding holds NaN."""

    def __init__(self, learner: EmbeddingLearner, spec: NetworkSpec, problem: str) -> None:
        self.learner, self.spec, self.problem = learner, spec, PROBLEMS[problem]
        self.network = ReferenceNetwork(**asdict(spec))
        self.body = (StepNetwork if learner.reads_steps else ReferenceNetwork)(**asdict(spec))
        setattr(self.body, "head", nn.Identity())  # noqa: B010  (what is left gives features)
        params = random_params(self.network)
        self.meta_params = learner.init_meta_params(params, seed=3)
        for number, value in enumerate(self.meta_params.values()):
            value.add_(0.01 * number)  # no two meta-parameters alike, no logarithm at zero
        self.episodes = random_episodes(
            self.network, regression=problem == "regression", padded=True, every_class=True
        )

    def reference(self, loss_of: Loss) -> tuple[Params, Tensor, list[Tensor]]:
        """Returns gradients, the sum of losses and all outputs, episode by episode."""
        leaves = as_leaves(self.meta_params)
        masks = episode_masks(self.spec, leaves, self.episodes.seeds)
        total, outputs = torch.zeros((), dtype=torch.float64), []
        for number in range(len(self.episodes)):
            weights = {name: leaves[name] for name, _ in self.body.named_parameters()}
            if masks is not None:
                weights = thinned(weights, [mask[number].flatten() for mask in masks])
            last = masks[-1][number].flatten() if masks else torch.ones(())
            if masks and self.learner.reads_steps:
                last = torch.cat([last, torch.ones(1)])  # of a step's weight

            def features(
                examples: Examples, number: int = number, weights: Any = weights, last: Any = last
            ) -> Tensor:
                rows = []
                for example in range(examples.y.shape[1]):
                    assert examples.lengths is not None
                    steps = examples.lengths[number, example]
                    x = examples.x[number, example, :steps][None]
                    rows.append(functional_call(self.body, weights, (x,))[0] * last)
                return nn.utils.rnn.pad_sequence(rows, batch_first=True)

            support, query = features(self.episodes.support), features(self.episodes.query)
            found, loss = loss_of(
                leaves,
                support,
                self.episodes.support.y[number],
                query,
                self.episodes.query.y[number],
            )
            outputs.append(found)
            total = total + loss
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True)), total.detach(), outputs


Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def plain_loss(name: str, learner: EmbeddingLearner, num_outputs: int) -> Loss:
    """Computes each formula as its paper writes it, query by query."""

    def loss_of(
        leaves: Mapping[str, Tensor], support: Tensor, y: Tensor, query: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        is_real = y.is_floating_point()
        if name == "alignment":
            outputs = aligned(leaves, support, y, query, num_outputs)
            return outputs, nn.functional.cross_entropy(outputs, targets)
        if name == "alpaca":
            return alpaca_loss(leaves, support, y, query, targets)
        if name in {"matching", "full context"} and isinstance(learner, Matching):
            if learner.full_context:
                support, query = in_context(leaves, support, query, learner.read_steps)
            rows = []
            for z in query:
                scores = leaves["log_scale"].exp() * torch.stack(
                    [torch.dot(z, s) / (z.norm() * s.norm()) for s in support]
                )
                weights = scores.softmax(dim=0)
                one_hot = y if is_real else torch.eye(num_outputs).double()[y]
                mean = sum(w * row for w, row in zip(weights, one_hot, strict=True))
                assert isinstance(mean, Tensor)
                rows.append(mean if is_real else mean.log())
            outputs = torch.stack(rows)
        elif name == "ridge, prior":
            outputs = with_prior(leaves, support, y, query)
        elif name == "ridge":
            a = torch.cat([support, torch.ones(len(support), 1).double()], dim=1)
            b = y if is_real else torch.eye(num_outputs).double()[y]
            normal = a.T @ a + leaves["log_penalty"].exp() * torch.eye(a.shape[1]).double()
            weights = torch.linalg.inv(normal) @ a.T @ b
            outputs = torch.cat([query, torch.ones(len(query), 1).double()], dim=1) @ weights
            outputs = outputs if is_real else outputs * leaves["log_scale"].exp()
        else:
            means = torch.stack([support[y == way].mean(dim=0) for way in range(num_outputs)])
            rows = []
            for z in query:
                if name == "euclidean":
                    near = -torch.stack([((z - c) ** 2).sum() for c in means])
                else:
                    near = torch.stack([torch.dot(z, c) / (z.norm() * c.norm()) for c in means])
                rows.append(leaves["log_scale"].exp() * near)
            outputs = torch.stack(rows)
        if is_real:
            return outputs, ((outputs - targets) ** 2).mean()
        return outputs, nn.functional.cross_entropy(outputs, targets)

    return loss_of


def aligned(
    leaves: Mapping[str, Tensor], support: Tensor, y: Tensor, query: Tensor, num_outputs: int
) -> Tensor:
    """Every query against every class, one step after another; padding has the weight zero."""
    scale, sharpness = leaves["log_scale"].exp(), leaves["log_sharpness"].exp()

    def likeness(steps: Tensor, state: Tensor) -> Tensor:
        apart = ((steps[:, :-1] - state) ** 2).sum(dim=1)
        return (steps[:, -1] * (-sharpness * apart).exp()).sum()

    rows = []
    for padded in query:
        own = padded[padded[:, -1] > 0]
        for way in range(num_outputs):
            examples = [
                one[one[:, -1] > 0] for one, label in zip(support, y, strict=True) if label == way
            ]
            total = torch.zeros(()).double()
            for step in own:
                likely = torch.stack([likeness(one, step[:-1]) for one in examples])
                total = total - step[-1] * likely.mean().log() / sharpness
            for one in examples:
                for step in one:
                    likely = likeness(own, step[:-1])
                    total = total - step[-1] * likely.log() / sharpness / len(examples)
            rows.append(-scale * total / 2)
    return torch.stack(rows).view(len(query), num_outputs)


def with_prior(leaves: Mapping[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Solves the ridge equations around W₀ for numbers; takes the step from W₀ for classes.

    The step is written as the gradient of the labels' log likelihood at W₀, by autograd, times the
    inverse of the bound of its curvature.
    """
    a = torch.cat([support, torch.ones(len(support), 1).double()], dim=1)
    asked = torch.cat([query, torch.ones(len(query), 1).double()], dim=1)
    start = torch.cat([leaves["head.weight"], leaves["head.bias"][:, None]], dim=1).T
    penalty = leaves["log_penalty"].exp()
    inverse = torch.linalg.inv(a.T @ a + penalty * torch.eye(a.shape[1]).double())
    if y.is_floating_point():
        return asked @ inverse @ (a.T @ y + penalty * start)
    likelihood = -nn.functional.cross_entropy(a @ start, y, reduction="sum")
    (rise,) = torch.autograd.grad(likelihood, start, create_graph=True)
    return asked @ (start + leaves["log_scale"].exp() * inverse @ rise)


def in_context(
    leaves: Mapping[str, Tensor], support: Tensor, query: Tensor, read_steps: int
) -> tuple[Tensor, Tensor]:
    """Computes full-context embeddings by torch.nn's own LSTM modules."""
    size = support.shape[1]

    def weights(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}.rnn."
        return {k.removeprefix(start): v for k, v in leaves.items() if k.startswith(start)}

    reader = nn.LSTM(size, size, bidirectional=True).double()
    states, _ = functional_call(reader, weights("support_lstm"), (support.unsqueeze(1),))
    g = states[:, 0, :size] + states[:, 0, size:] + support
    cell_weights = {k.removesuffix("_l0"): v for k, v in weights("query_lstm").items()}
    cell = nn.LSTMCell(2 * size, size).double()
    rows = []
    for f in query:
        h = r = c = torch.zeros(size).double()
        for _ in range(read_steps):
            inputs = torch.cat([f, r])[None]
            found, memory = functional_call(cell, cell_weights, (inputs, (h[None], c[None])))
            h, c = found[0] + f, memory[0]
            r = (g @ h).softmax(dim=0) @ g
        rows.append(h)
    return g, torch.stack(rows)


def alpaca_loss(
    leaves: Mapping[str, Tensor], support: Tensor, y: Tensor, query: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the posterior predictive by conditioning one joint normal distribution."""

    def design(z: Tensor) -> Tensor:
        return torch.cat([z, torch.ones(len(z), 1).double()], dim=1)

    prior_mean = torch.cat([leaves["head.weight"], leaves["head.bias"][:, None]], dim=1)  # [O, F+1]
    spread = torch.diag(1 / leaves["log_precision"].exp())
    a, b = design(support), design(query)
    means, losses = [], []
    for output in range(y.shape[1]):
        noise = leaves["log_noise"][output].exp()
        known = a @ spread @ a.T + torch.eye(len(a)).double()
        gain = b @ spread @ a.T @ torch.linalg.inv(known)
        mean = b @ prior_mean[output] + gain @ (y[:, output] - a @ prior_mean[output])
        covariance = noise * (b @ spread @ b.T - gain @ a @ spread @ b.T)
        variance = covariance.diagonal() + noise
        normal = torch.distributions.Normal(mean, variance.sqrt())
        means.append(mean)
        losses.append(
            -normal.log_prob(targets[:, output]).mean()  # type: ignore[no-untyped-call]
        )
    return torch.stack(means, dim=1), torch.stack(losses).mean()


def assert_same(found: object, wanted: object) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def check(name: str, learner: EmbeddingLearner, spec: NetworkSpec, problem: str) -> None:
    case = Case(learner, spec, problem)
    grads, loss, outputs = case.reference(plain_loss(name, learner, spec.num_outputs))
    found = learner.meta_gradient(spec, case.problem, case.meta_params, case.episodes)
    assert_same(found.loss, loss)
    assert found.grads.keys() == grads.keys()
    for key, grad in grads.items():
        assert_same(found.grads[key], grad)
    if spec.dropout == 0:
        (own,) = learner.query_outputs(
            spec, case.problem, case.meta_params, case.episodes.support, case.episodes.query, 0
        )
        wanted = torch.stack(outputs)
        if problem == "classification":  # logits say the same up to a number for each query
            own, wanted = own.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
        assert_same(own, wanted.detach())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_the_exact_gradient_of_their_formula(name: str, spec: str) -> None:
    check(name, CLASSIFIERS[name], SPECS[spec], "classification")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_have_the_exact_gradient_of_their_formula(name: str, spec: str) -> None:
    check(name, REGRESSORS[name], SPECS[spec], "regression")


def test_ridge_solves_the_smaller_of_its_two_systems_with_the_same_result() -> None:
    wide = replace(SPEC, hidden_size=2)  # three unknowns for four examples
    check("ridge", Ridge(penalty=0.3), wide, "classification")


def ridge_outputs(
    case: Case, meta_params: Mapping[str, Tensor], learner: EmbeddingLearner
) -> Tensor:
    (outputs,) = learner.query_outputs(
        SPEC, case.problem, meta_params, case.episodes.support, case.episodes.query, 0
    )
    return outputs


@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_a_learned_prior_lies_between_no_adaptation_and_r2_d2(problem: str) -> None:
    case = Case(Ridge(learned_prior=True), SPEC, problem)
    certain = {**case.meta_params, "log_penalty": torch.tensor([40.0]).double()}
    features = shared_features(
        SPEC, case.meta_params, case.episodes.query.x, case.episodes.query.lengths
    )
    weight, bias = case.meta_params["head.weight"], case.meta_params["head.bias"]
    assert_same(ridge_outputs(case, certain, case.learner), features @ weight.T + bias)
    zero = case.meta_params | {
        name: torch.zeros_like(case.meta_params[name]) for name in ("head.weight", "head.bias")
    }
    plain = {
        name: value for name, value in zero.items() if name not in ("head.weight", "head.bias")
    }
    found, wanted = ridge_outputs(case, zero, case.learner), ridge_outputs(case, plain, Ridge())
    if problem == "classification":  # logits say the same up to a number for each query
        found, wanted = found.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
    assert_same(found, wanted)


def test_a_learned_prior_of_numbers_is_the_posterior_mean_of_alpaca() -> None:
    case = Case(Alpaca(), SPEC, "regression")
    alike = {**case.meta_params, "log_precision": torch.full((5,), -0.7).double()}
    wanted = ridge_outputs(case, alike, case.learner)
    own = {name: v for name, v in alike.items() if name not in ("log_precision", "log_noise")}
    own |= {"log_penalty": torch.tensor([-0.7]).double(), "log_scale": torch.zeros(1).double()}
    assert_same(ridge_outputs(case, own, Ridge(learned_prior=True)), wanted)


def test_a_learned_prior_starts_from_joint_training_where_labels_stay() -> None:
    params = random_params(ReferenceNetwork(**asdict(SPEC)))
    learner = Ridge(learned_prior=True)
    meta_params = learner.init_meta_params({k: torch.zeros_like(v) for k, v in params.items()})
    learner.starts_from(meta_params, params)
    assert_same({name: meta_params[name] for name in params}, params)


@pytest.mark.parametrize("name", ["euclidean", "cosine", "matching", "full context", "alignment"])
def test_a_class_without_a_support_example_is_never_the_answer(name: str) -> None:
    case = Case(CLASSIFIERS[name], SPEC, "classification")
    case.episodes.support.y.clamp_(max=1)
    case.episodes.query.y.clamp_(max=1)
    (outputs,) = case.learner.query_outputs(
        SPEC, case.problem, case.meta_params, case.episodes.support, case.episodes.query, 0
    )
    assert (outputs[..., 2] == -math.inf).all()
    found = case.learner.meta_gradient(SPEC, case.problem, case.meta_params, case.episodes)
    assert all(grad.isfinite().all() for grad in found.grads.values())


def test_a_sharp_alignment_is_the_chamfer_distance_in_whatever_order_the_steps_are() -> None:
    learner = Alignment(sharpness=1e4)
    case = Case(learner, SPEC, "classification")
    meta_params = {**case.meta_params, "log_scale": torch.zeros(1).double()}
    rng = np.random.default_rng(0)
    support, query = rng.normal(size=(3, 5, 4)), rng.normal(size=(2, 7, 4))
    apart = ((query[:, None, :, None] - support[None, :, None]) ** 2).sum(axis=-1)
    wanted = -(apart.min(axis=3).mean(axis=2) + apart.min(axis=2).mean(axis=2)) / 2

    def features(states: np.ndarray) -> Tensor:
        weights = np.full((*states.shape[:2], 1), 1 / states.shape[1])
        return torch.from_numpy(np.concatenate([states, weights], axis=2)).flatten(1)[None]

    def logits(shuffled: np.ndarray) -> np.ndarray:
        known = Embedded(features(support), torch.arange(3)[None], features(shuffled), 3)
        return learner.answers(meta_params, known)[0].numpy()

    np.testing.assert_allclose(logits(query), wanted, atol=1e-3)
    np.testing.assert_allclose(logits(query[:, rng.permutation(7)]), logits(query), atol=1e-12)


def test_posterior_variances_shrink_where_the_support_is() -> None:
    learner = Alpaca()
    case = Case(learner, SPEC, "regression")
    features = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0)).double()

    def variances(times: int) -> Tensor:
        many = features.repeat(1, times, 1)
        embedded = Embedded(many, torch.zeros(1, 4 * times, 3).double(), features, 3)
        return learner.posterior(case.meta_params, embedded)[1]

    noise = case.meta_params["log_noise"].exp()
    assert (variances(1) > noise).all()
    assert (variances(50) < variances(1)).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_adaptation_steps_are_refused(name: str) -> None:
    case = Case(CLASSIFIERS[name], SPEC, "classification")
    with pytest.raises(ValueError, match="takes no adaptation steps, but got 1"):
        case.learner.adaptation_scores(SPEC, case.problem, case.meta_params, case.episodes, 1)


def test_the_context_depends_only_on_the_seed() -> None:
    params = random_params(ReferenceNetwork(**asdict(SPEC)))
    one, same, other = (Matching().init_meta_params(params, seed) for seed in (1, 1, 2))
    name = "query_lstm.rnn.weight_ih_l0"
    assert_same(one, same)
    assert not torch.equal(one[name], other[name])


def test_episodes_share_every_parameter() -> None:
    """No tensor of a meta-step grows with the number of episodes times that of parameters."""
    case = Case(Prototypes(), replace(SPEC, hidden_size=256), "classification")
    episodes: Episodes = case.episodes
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        case.learner.meta_gradient(case.spec, case.problem, case.meta_params, episodes)
    weights = max(value.numel() for value in case.meta_params.values())
    assert largest < 2 * weights
