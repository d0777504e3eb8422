"""Searches learn from earlier ones: their models, their weights, the proposals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from raymeta.experiment.parameter import Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space
from raymeta.search.transfer import (
    PriorMean,
    SourceModel,
    TransferGP,
    _left_out,
    misranked,
    source_weights,
)

SETTINGS = SearchSettings(objectives=(("loss", "min"),), num_sobol=4)
SPACE = Space((Parameter(name="x", low=0, high=4), Parameter(name="n", choices=("a", "b"))))
XS = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]


def hill(at: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.exp(-20 * (x - at) ** 2)


def fitted(function: Callable[[Tensor], Tensor], inputs: Tensor = XS) -> CategoricalGP:
    values = function(inputs)
    model = CategoricalGP(inputs, (values - values.mean()) / values.std())
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    model.eval()
    return model


def test_a_sources_mean_and_samples_are_those_of_its_posterior() -> None:
    model = fitted(hill(0.4))
    source = SourceModel(model)
    at = torch.tensor([[0.13], [0.4], [0.77]], dtype=torch.float64)
    posterior = model.posterior(at)
    torch.testing.assert_close(source(at), posterior.mean[:, 0], rtol=1e-9, atol=1e-9)
    assert source(at[None, :, None]).shape == (1, 3, 1)
    samples = source.samples(at, 200_000, torch.Generator().manual_seed(0))
    assert isinstance(posterior, GPyTorchPosterior)
    expected = posterior.distribution.covariance_matrix + 1e-6 * torch.eye(3)
    torch.testing.assert_close(torch.cov(samples.T), expected.detach(), rtol=0.05, atol=1e-6)


def test_misranked_pairs_are_counted() -> None:
    targets = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    samples = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]]).double()
    assert misranked(samples, targets).tolist() == [0, 2, 6]
    by_hand = [
        sum(
            (sample[j] < targets[k]).item() != (targets[j] < targets[k]).item()
            for j in range(3)
            for k in range(3)
        )
        for sample in samples
    ]
    assert misranked(samples, targets, paired=True).tolist() == by_hand


def test_leave_one_out_predictions_come_from_the_other_trials() -> None:
    own = fitted(hill(0.6), XS[::2])
    inputs = own.train_inputs[0]
    samples = _left_out(own, inputs, 400_000, torch.Generator().manual_seed(0))
    prior = own.forward(inputs)
    noisy = own.likelihood(prior, [inputs]).covariance_matrix
    for left in range(len(inputs)):
        others = [i for i in range(len(inputs)) if i != left]
        solved = torch.linalg.solve(noisy[others][:, others], noisy[others, left])
        residuals = own.train_targets[others] - prior.mean[others]
        mean = prior.mean[left] + solved @ residuals
        variance = noisy[left, left] - solved @ noisy[others, left]
        assert samples[:, left].mean().item() == pytest.approx(mean.item(), abs=0.02)
        assert samples[:, left].var().item() == pytest.approx(variance.item(), rel=0.02)


def test_a_source_that_ranks_well_is_trusted_and_one_that_misleads_is_not() -> None:
    sources = [SourceModel(fitted(hill(0.5))), SourceModel(fitted(lambda x: -hill(0.5)(x)))]
    few = torch.tensor([[0.1], [0.3], [0.55], [0.8], [0.95]], dtype=torch.float64)
    good, bad = source_weights(sources, fitted(hill(0.52), few), 0).tolist()
    assert good > 0.5
    assert bad == 0
    many_bad = [sources[1]] * 9
    assert source_weights(many_bad, fitted(hill(0.52), few), 0).tolist() == [0] * 9
    too_few = source_weights(sources, fitted(hill(0.5), few[:2]), 0)
    assert too_few.tolist() == [0.5, 0.5]


def test_the_prior_mean_is_the_weighted_sum_and_only_a_constant_is_fitted() -> None:
    source = SourceModel(fitted(hill(0.5)))
    mean = PriorMean([source, source], torch.tensor([0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(mean(XS), 0.75 * source(XS))
    assert [name for name, p in mean.named_parameters() if p.requires_grad] == ["constant"]
    plain = TransferGP(XS, hill(0.5)(XS))
    assert not isinstance(plain.mean_module, PriorMean)


# -------------------------------------------------------------------- in a search


def ended(function: Callable[[float], float], count: int = 14) -> list[TrialRecord]:
    points = [{"x": 4 * i / (count - 1), "n": "ab"[i % 2]} for i in range(count)]
    return [
        TrialRecord(p, "earlier", "completed", [(1, function(float(str(p["x"]))), None)])
        for p in points
    ]


def searched(sources: Sequence[Sequence[TrialRecord]], *, fails: bool = False) -> list[TrialRecord]:
    model = AxModel(SPACE, SETTINGS, sources=sources)
    records: list[TrialRecord] = []
    for number in range(7):
        proposal = model.propose({str(number - 1): records[-1]} if records else {})
        assert proposal is not None
        assert proposal.source != "fallback", proposal.reason
        loss = (proposal.point["x"] - 2.6) ** 2
        record = TrialRecord(proposal.point, proposal.source, "completed", [(1, loss, None)])
        if fails and number == 2:
            record = TrialRecord(proposal.point, proposal.source, "failed")
        records.append(record)
    return records


@pytest.mark.slow
def test_the_best_point_of_an_earlier_search_is_tried_first_and_its_model_helps() -> None:
    records = searched([ended(lambda x: (x - 2.5) ** 2)])
    assert [r.source for r in records] == ["earlier"] + ["sobol"] * 3 + ["bo"] * 3
    assert records[0].point["x"] == pytest.approx(2.46, abs=0.01)
    assert min(abs(r.point["x"] - 2.6) for r in records[4:]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_misleading_search_is_overcome_and_failed_trials_are_no_obstacle(fails: bool) -> None:
    records = searched([ended(lambda x: -((x - 2.6) ** 2)), ended(math.sin)], fails=fails)
    assert records[-1].source == "bo"
    assert min(abs(r.point["x"] - 2.6) for r in records if r.curve) < 0.4
