"""Predicts trial durations: a Gaussian process on the log of their seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ax.adapter.torch import TorchAdapter
from ax.core.observation import ObservationFeatures
from ax.core.types import TParameterization
from botorch.fit import fit_gpytorch_mll
from botorch.models.transforms.outcome import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.gain import model_space
from raymeta.search.records import TrialRecord

FEWEST_TRIALS = 3  # trials with known durations that the model needs


def seconds_of(record: TrialRecord, max_steps: int | None) -> float | None:
    """Computes a trial's duration to its full budget, from its start to its last report.

    A trial stopped early is extrapolated at its own pace. None for failed, running and untimed
    trials.
    """
    if record.began_s is None:
        return None
    seconds = record.latest_s - record.began_s
    if seconds <= 0 or not record.curve or record.status not in ("completed", "early_stopped"):
        return None
    if record.status == "completed" or max_steps is None:
        return seconds
    return seconds * max_steps / max(record.curve[-1][0], 1)


def known_seconds(records: Mapping[str, TrialRecord], max_steps: int | None) -> dict[str, float]:
    """Collects the known durations by trial."""
    found = {trial: seconds_of(record, max_steps) for trial, record in records.items()}
    return {trial: seconds for trial, seconds in found.items() if seconds is not None}


class SecondsModel:
    """The expected logarithm of a trial's seconds.

    Args:
        adapter: Ax's model of the metric, fitted, for its view of the search space.
        known: seconds by trial, all > 0.
        points: the trials' points in Ax's terms, by trial.
    """

    def __init__(
        self,
        adapter: TorchAdapter,
        known: Mapping[str, float],
        points: Mapping[str, TParameterization],
    ) -> None:
        self._model: CategoricalGP | None = None
        if len(known) < FEWEST_TRIALS:
            return
        features = [ObservationFeatures(dict(points[trial])) for trial in known]
        x = adapter.transform_observation_features(features)
        logs = torch.tensor([[math.log(seconds)] for seconds in known.values()]).to(x)
        digest, _ = model_space(adapter)
        self._model = CategoricalGP(
            x, logs, digest.categorical_features, outcome_transform=Standardize(m=1)
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(self._model.likelihood, self._model))

    def __call__(self, points: Tensor) -> Tensor:
        """Predicts, shape (...), at points of shape (..., parameters); constant with few trials."""
        if self._model is None:
            return torch.zeros(points.shape[:-1]).to(points)
        mean: Tensor = self._model.posterior(points).mean
        return mean.squeeze(-1)
