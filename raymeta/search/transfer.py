"""Learns from earlier searches through the prior mean of the Gaussian process.

Each earlier search, a source, is a Gaussian process on its own trials.  The prior mean is a
weighted sum of their means, on which a Gaussian process of the new trials' residuals is stacked
(Golovin et al. 2017, section 3.3).  The weights are those of the ranking-weighted ensemble of
Feurer et al. 2018 (arXiv 1802.02219): the share of posterior samples in which a source misranks the
fewest pairs of the new trials. The new trials' own model is judged by its leave-one-out
predictions.  A source that misranks more than nearly all samples of that model is left out: many
bad sources would otherwise outvote a good model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.transforms.input import InputTransform
from botorch.utils.datasets import SupervisedDataset
from gpytorch.likelihoods import Likelihood
from gpytorch.means import Mean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor
from torch.nn import Module, ModuleList

from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point

FEWEST_TO_RANK = 3  # new trials needed to judge a source
_NUM_SAMPLES = 256
_WORST_SHARE = 0.95  # quantile of the own model's losses; a source's median loss must be below it
_JITTER = 1e-6


def best_points(sources: Sequence[Sequence[TrialRecord]], settings: SearchSettings) -> list[Point]:
    """Finds the best point of each earlier search; these replace up to half the Sobol points."""
    ended = ([r for r in trials if r.status == "completed"] for trials in sources)
    choose = max if sources and settings.objectives[0][1] == "max" else min
    best = [choose(records, key=lambda record: record.curve[-1][1]).point for records in ended]
    distinct = [point for number, point in enumerate(best) if point not in best[:number]]
    return distinct[: settings.num_sobol // 2]


class SourceModel(Module):
    """An earlier search's Gaussian process, fitted: its mean, and samples of it.

    Args:
        model: of one metric, with values of mean 0 and standard deviation 1.
    """

    def __init__(self, model: CategoricalGP) -> None:
        super().__init__()
        model.eval()
        self._model = model
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            self._inputs = model.train_inputs[0]  # transformed, as outside of training
            prior = model.forward(self._inputs)
            noisy = model.likelihood(prior, [self._inputs]).covariance_matrix
            self._factor = torch.linalg.cholesky(noisy)
            residuals = (model.train_targets - prior.mean)[..., None]
            self._solved = torch.cholesky_solve(residuals, self._factor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Computes the mean at inputs of shape (..., parameters), in the model's scale: (...)."""
        cross = self._model.covar_module(inputs, self._inputs).to_dense()
        mean: Tensor = self._model.mean_module.constant + (cross @ self._solved)[..., 0]
        return mean

    def samples(self, inputs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Samples the function at inputs of shape (trials, parameters): (samples, trials)."""
        with torch.no_grad():
            kernel = self._model.covar_module
            cross = kernel(inputs, self._inputs).to_dense()
            known = torch.cholesky_solve(cross.mT, self._factor)
            covariance = kernel(inputs).to_dense() - cross @ known
            return _normal(self(inputs), covariance, num_samples, generator)


class PriorMean(Mean):
    """A weighted sum of sources' means, and a constant.

    Args:
        sources: the models.
        weights: one per source, each at least 0, with a sum of at most 1.
    """

    def __init__(self, sources: Sequence[SourceModel], weights: Tensor) -> None:
        super().__init__()
        self._sources = ModuleList(sources)
        self.weights = torch.nn.Parameter(weights, requires_grad=False)
        self.constant = torch.nn.Parameter(torch.zeros(()).to(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the mean, shape (...), at inputs of shape (..., parameters)."""
        mean: Tensor = self.constant.expand(x.shape[:-1])
        for weight, source in zip(self.weights, self._sources, strict=True):
            mean = mean + weight * source(x)
        return mean


class TransferGP(CategoricalGP):
    """A `CategoricalGP` whose prior mean comes from earlier searches.

    Args:
        train_X, train_Y, cat_dims, train_Yvar, input_transform: as of `CategoricalGP`.
        sources: the earlier searches' models; without any it is a plain `CategoricalGP`.
        seed: of the samples that weigh them.
    """

    @classmethod
    def construct_inputs(
        cls,
        training_data: SupervisedDataset,
        *,
        sources: Callable[[], Sequence[SourceModel]] = tuple,
        metric: str = "",
        seed: int = 0,
        categorical_features: Sequence[int] = (),
        likelihood: Likelihood | None = None,
    ) -> dict[str, Any]:
        """Builds the constructor's arguments from Ax's.

        Args:
            training_data: the new trials.
            sources: the earlier searches' models.
            metric: Ax's name of their only metric.
            seed: of the samples that weigh them.
            categorical_features: the columns of the choices.
            likelihood: None for the default with reported or inferred noise.
        """
        inputs = super().construct_inputs(training_data, categorical_features=categorical_features)
        if likelihood is not None:
            raise TypeError("a likelihood of one's own is not supported")
        del inputs["likelihood"]
        is_own = list(training_data.outcome_names) == [metric]
        return {**inputs, "sources": list(sources()) if is_own else [], "seed": seed}

    def __init__(
        self,
        train_X: Tensor,  # noqa: N803
        train_Y: Tensor,  # noqa: N803
        cat_dims: Sequence[int] = (),
        train_Yvar: Tensor | None = None,  # noqa: N803
        input_transform: InputTransform | None = None,
        sources: Sequence[SourceModel] = (),
        seed: int = 0,
    ) -> None:
        given: dict[str, Any] = {"train_Yvar": train_Yvar, "input_transform": input_transform}
        super().__init__(train_X, train_Y, cat_dims, **given)
        if not sources:
            return
        own = CategoricalGP(train_X, train_Y, cat_dims, **given)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(own.likelihood, own))
        self.mean_module = PriorMean(sources, source_weights(sources, own, seed))


def source_weights(sources: Sequence[SourceModel], own: CategoricalGP, seed: int) -> Tensor:
    """Computes the sources' weights, shape (sources); the own model has the rest to 1.

    Args:
        sources: fitted to earlier searches.
        own: fitted to the new trials alone.
        seed: of the samples.
    """
    targets = own.train_targets.detach()
    if len(targets) < FEWEST_TO_RANK:
        return torch.full((len(sources),), 1 / len(sources)).to(targets)
    own.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        inputs = own.train_inputs[0]
        of_sources = torch.stack(
            [misranked(s.samples(inputs, _NUM_SAMPLES, generator), targets) for s in sources]
        )
        of_own = misranked(_left_out(own, inputs, _NUM_SAMPLES, generator), targets, paired=True)
    is_kept = of_sources.quantile(0.5, dim=1) <= of_own.quantile(_WORST_SHARE)
    losses = torch.cat([of_own[None], of_sources])
    losses[1:][~is_kept] = torch.inf
    # Ties are shared, but the own model wins its ties.
    is_best = losses == losses.min(dim=0).values
    is_best[1:] &= ~is_best[0]
    return (is_best / is_best.sum(dim=0))[1:].mean(dim=1).to(targets)


def misranked(samples: Tensor, targets: Tensor, *, paired: bool = False) -> Tensor:
    """Counts the ordered pairs of trials that each sample misranks: (samples).

    Args:
        samples: shape (samples, trials).
        targets: the values, shape (trials).
        paired: whether each sampled value is compared with the others' true values (Feurer et al.
            2018, equation 4: leave-one-out predictions).
    """
    others = targets if paired else samples
    of_samples = samples[:, :, None] < others[..., None, :]
    return (of_samples ^ (targets[:, None] < targets)).sum(dim=(1, 2)).to(targets)


def _left_out(
    own: CategoricalGP, inputs: Tensor, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Samples each trial's value given the others: (samples, trials).

    Rasmussen and Williams 2006, equations 5.10 to 5.12.
    """
    prior = own.forward(inputs)
    inverse = torch.linalg.inv(own.likelihood(prior, [inputs]).covariance_matrix)
    variances = 1 / inverse.diagonal()
    residuals = own.train_targets - prior.mean
    means = own.train_targets - (inverse @ residuals) * variances
    normal = torch.randn((num_samples, len(means)), generator=generator, dtype=means.dtype)
    return means + normal * variances.sqrt()


def _normal(
    mean: Tensor, covariance: Tensor, num_samples: int, generator: torch.Generator
) -> Tensor:
    jitter = _JITTER * torch.eye(len(mean)).to(mean)
    factor = torch.linalg.cholesky(covariance + jitter)
    normal = torch.randn((num_samples, len(mean)), generator=generator, dtype=mean.dtype)
    return mean + normal @ factor.mT
