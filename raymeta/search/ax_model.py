"""The Ax side of the search.  This module alone imports Ax; it runs in a process of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.exceptions.core import AxError, SearchSpaceExhausted
from ax.exceptions.generation_strategy import GenerationStrategyCompleted
from ax.utils.common.logger import set_ax_logger_levels
from botorch.exceptions.errors import BotorchError, ModelFittingError
from linear_operator.utils.errors import NanError, NotPSDError

from raymeta.search.records import Source, Status, TrialRecord
from raymeta.search.space import Parameter, Point


class AxModel:
    """An Ax experiment and its generation strategy: Sobol points, then Bayesian optimisation.

    Ax's default model is a Gaussian process with the reported noise, and its acquisition function
    log expected improvement, noisy where the observations are (Ament et al. 2023).
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        metric: str,
        mode: Literal["min", "max"],
        num_sobol: int,
        seed: int,
        history: Mapping[str, TrialRecord],
    ) -> None:
        set_ax_logger_levels(logging.WARNING)
        # On busy cores a second thread makes a fit many times slower, not faster.
        torch.set_num_threads(1)
        self._metric = metric
        self._parameters = list(parameters)
        self._rng = np.random.default_rng((seed, len(history)))
        self._client = Client(random_seed=seed)
        self._client.configure_experiment([_ax_parameter(p) for p in parameters])
        self._client.configure_optimization(metric if mode == "max" else f"-{metric}")
        self._client.configure_generation_strategy(
            initialization_budget=num_sobol,
            # A search that goes on after a restart needs Sobol points it has not seen.
            initialization_random_seed=seed + len(history),
            # Ax counts completed trials alone; early stopping may leave few of them.
            min_observed_initialization_trials=max(1, num_sobol // 3),
            initialize_with_center=False,
            use_existing_trials_for_initialization=True,
            allow_exceeding_initialization_budget=True,
        )
        self._indices: dict[str, int] = {}  # Ax's trial_index by Tune's trial_id
        for trial_id, record in history.items():
            self.attach(trial_id, record.point)
            for step, mean, sem in record.curve:
                self.report(trial_id, step, mean, sem)
            if record.status != "running":
                self.finish(trial_id, record.status)

    def propose(self) -> tuple[int, Point, Source] | None:
        """A new candidate given all that is known and running: (trial_index, point, source).

        None when every point of a discrete space has been tried.  Where the model cannot be fitted
        or optimised, the candidate is a random point: a search must not end for that.
        """
        try:
            candidates = self._client.get_next_trials(max_trials=1)
        except (SearchSpaceExhausted, GenerationStrategyCompleted):
            return None
        except (AxError, BotorchError, ModelFittingError, NotPSDError, NanError) as error:
            logging.getLogger(__name__).warning("a random point instead of Ax's: %s", error)
            point = {p.name: _random_value(p, self._rng) for p in self._parameters}
            return self._client.attach_trial(point), point, "random"
        ((index, values),) = candidates.items()
        node = self._client.summarize(trial_indices=[index])["generation_node"].iloc[0]
        source: Source = "sobol" if node == "Sobol" else "bo"
        return index, {name: _plain(value) for name, value in values.items()}, source

    def adopt(self, trial_id: str, index: int) -> None:
        """A trial has taken up the candidate of this `trial_index`."""
        self._indices[trial_id] = index

    def attach(self, trial_id: str, point: Point) -> None:
        """A trial has taken up a point from outside."""
        self._indices[trial_id] = self._client.attach_trial(point)

    def report(self, trial_id: str, step: int, mean: float, sem: float | None) -> None:
        """An observation of a running trial; what is not finite must be kept from here."""
        if not math.isfinite(mean):
            raise ValueError(f"an observation must be finite, but got {mean}")
        # A missing or broken standard error lets Ax infer the noise.
        known = sem is not None and math.isfinite(sem)
        self._client.attach_data(
            self._indices[trial_id],
            {self._metric: (mean, sem) if known else mean},
            progression=step,
        )

    def finish(self, trial_id: str, status: Status) -> None:
        """Ends a trial as what it was."""
        index = self._indices[trial_id]
        match status:
            case "completed":
                # The data are attached already: this only changes the status.
                self._client.complete_trial(index)
            case "early_stopped":
                self._client.mark_trial_early_stopped(index)
            case "failed":
                self._client.mark_trial_failed(index)
            case "abandoned":
                self._client.mark_trial_abandoned(index)
            case "running":
                raise ValueError("a trial cannot finish as running")

    def statuses(self) -> dict[str, str]:
        """Ax's own word on every trial, lower case, by Tune's trial_id."""
        table = self._client.summarize().set_index("trial_index")["trial_status"]
        return {
            trial_id: str(table.loc[index]).lower() for trial_id, index in self._indices.items()
        }


def _ax_parameter(parameter: Parameter) -> RangeParameterConfig | ChoiceParameterConfig:
    if parameter.choices is not None:
        kind = _type_name(parameter.choices[0])
        return ChoiceParameterConfig(
            name=parameter.name,
            values=list(parameter.choices),
            parameter_type=kind,
            is_ordered=kind in ("int", "float"),
        )
    assert parameter.low is not None and parameter.high is not None  # noqa: PT018
    return RangeParameterConfig(
        name=parameter.name,
        bounds=(parameter.low, parameter.high),
        parameter_type="int" if parameter.integer else "float",
        step_size=parameter.step,
        scaling="log" if parameter.log else "linear",
    )


def _random_value(parameter: Parameter, rng: np.random.Generator) -> Any:
    if parameter.choices is not None:
        return parameter.choices[rng.integers(len(parameter.choices))]
    assert parameter.low is not None and parameter.high is not None  # noqa: PT018
    low, high = parameter.low, parameter.high
    if parameter.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif parameter.step is not None:
        value = low + parameter.step * rng.integers(round((high - low) / parameter.step) + 1)
    else:
        value = rng.uniform(low, high)
    value = min(max(value, low), high)
    return round(value) if parameter.integer else float(value)


def _type_name(value: object) -> Literal["bool", "int", "float", "str"]:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "str"


def _plain(value: Any) -> Any:
    """Numpy scalars as Python's own, which YAML and JSON can hold."""
    return value.item() if hasattr(value, "item") else value
