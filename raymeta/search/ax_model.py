"""The Ax side of the search; while trials run, it does so in a process of its own."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from ax.adapter.base import Adapter
from ax.adapter.registry import MBM_X_trans, Mixed_transforms, Y_trans
from ax.adapter.transforms.power_transform_y import PowerTransformY
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.api.utils.generation_strategy_dispatch import choose_generation_strategy
from ax.api.utils.structs import GenerationStrategyDispatchStruct
from ax.core.experiment import Experiment
from ax.exceptions.core import AxError, SearchSpaceExhausted
from ax.exceptions.generation_strategy import GenerationStrategyCompleted
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generators.torch.botorch_modular.surrogate import ModelConfig
from ax.utils.common.logger import set_ax_logger_levels
from botorch.acquisition.logei import (
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
)
from botorch.acquisition.monte_carlo import qUpperConfidenceBound
from botorch.acquisition.multi_objective.logei import (
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.exceptions.warnings import InputDataWarning
from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP

from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.curves import final_values
from raymeta.search.records import Source, TrialRecord
from raymeta.search.settings import SearchSettings, least_completed
from raymeta.search.space import LinearConstraint, Parameter, Point, Space

_ACQUISITIONS = {
    "auto": None,
    "log_ei": qLogExpectedImprovement,
    "log_nei": qLogNoisyExpectedImprovement,
    "ucb": qUpperConfidenceBound,
    "log_ehvi": qLogExpectedHypervolumeImprovement,
    "log_nehvi": qLogNoisyExpectedHypervolumeImprovement,
}
_MANY_PARAMETERS = 20  # from here on few of them matter, as a rule: SAAS's assumption
_MOST_STEPS = 64  # of a parameter that Ax treats as ordered choices; above, as a range
_MOST_DRAWS = 10_000
# More starts than these found no better points, only later.
_ACQUISITION_SEARCH = {"num_restarts": 4, "raw_samples": 256}
# Of many candidates at once each is worth less care, and slots wait for them; with dozens of
# pending points every start takes long.
_MANY_AT_ONCE = 16
_QUICK_SEARCH = {"num_restarts": 1, "raw_samples": 64}

_log = logging.getLogger(__name__)


class AxModel:
    """An Ax experiment and its generation strategy: Sobol points, then Bayesian optimisation.

    By default the model is a `CategoricalGP` with the reported noise, and the acquisition function
    noisy expected improvement in its log form (Ament et al. 2023), for several objectives that of
    the dominated hypervolume.  Values are made as normal as a power transform can make them (Yeo
    and Johnson 2000): a Gaussian process takes a few huge values badly.  All that it knows it is
    told as records: `propose` brings Ax up to date with those that have changed.
    """

    def __init__(
        self, space: Space, settings: SearchSettings, earlier: Sequence[TrialRecord] = ()
    ) -> None:
        set_ax_logger_levels(logging.ERROR)
        self._space, self._settings = space, settings
        self._constraints = [LinearConstraint.parse(text) for text in space.constraints]
        self._grids = {p.name: _grid(p) for p in space.parameters}
        self._is_discrete = None not in map(_count, space.parameters)
        self._points = self._all_points()
        self._records = {f"earlier {i}": record for i, record in enumerate(earlier)}
        self._open: tuple[int, Point] | None = None  # a proposal, until it is taken up
        self._acquisition_search = dict(_ACQUISITION_SEARCH)  # Ax reads it at each proposal
        self._start_over()

    # ------------------------------------------------------------------- the searcher's calls

    def propose(self, changes: Mapping[str, TrialRecord]) -> tuple[Point, Source] | None:
        """A new candidate given all that is known and running.

        None when every point of a discrete space has been tried.  Where the model cannot be fitted
        or optimised, the candidate is a random point: a search must not end for that.
        """
        self.learn(changes)
        if self._points is not None and all(self._is_tried(point) for point in self._points):
            return None
        if self._settings.method == "random":
            return self._draw()
        try:
            self._refresh_estimates()
            with warnings.catch_warnings():
                # The power transform standardises by 1/n, and BoTorch checks by 1/(n - 1).
                warnings.simplefilter("ignore", InputDataWarning)
                ((index, values),) = self._client.get_next_trials(max_trials=1).items()
        except (SearchSpaceExhausted, GenerationStrategyCompleted):
            return self._draw()
        except Exception as error:  # noqa: BLE001  (of four libraries, and of ever new kinds)
            _log.warning("a random point instead of Ax's: %s", error)
            return self._draw()
        node = self._client.summarize(trial_indices=[index])["generation_node"].iloc[0]
        source: Source = "bo" if node == "MBM" else "sobol"
        proposed = {name: _plain(value) for name, value in values.items()}
        point = self._tidied(proposed)
        self._open = (index, point)
        if point != proposed:
            self._discard()  # Ax is told of the point that is tried, not of the one before rounding
        if self._is_discrete and self._is_tried(point):
            self._discard()
            return self._draw()
        return point, source

    def propose_several(
        self, changes: Mapping[str, TrialRecord], count: int
    ) -> list[tuple[Point, Source]]:
        """Candidates for so many trials at once, each given the ones before; fewer at the end."""
        quick = count >= _MANY_AT_ONCE
        self._acquisition_search.update(_QUICK_SEARCH if quick else _ACQUISITION_SEARCH)
        found: list[tuple[Point, Source]] = []
        while len(found) < count:
            proposal = self.propose(changes)
            if proposal is None:
                break
            found.append(proposal)
            changes = {f"ahead {len(found)}": TrialRecord(*proposal)} if count > 1 else {}
        if count > 1:
            # Nobody knows whether they will be tried: to what comes next, they are not pending.
            self.learn({f"ahead {n}": TrialRecord(*p, "failed") for n, p in enumerate(found, 1)})
            for number in range(1, len(found) + 1):
                self._tried.discard(self._key(self._records.pop(f"ahead {number}").point))
                del self._indices[f"ahead {number}"]
        return found

    def learn(self, changes: Mapping[str, TrialRecord]) -> None:
        """Takes up what has changed; a proposal that no trial has taken up is forgotten."""
        reopened = False
        for trial_id, record in changes.items():
            before = self._records.get(trial_id)
            reopened |= before is not None and before.status not in ("running", record.status)
            self._records[trial_id] = record
        # Ax neither reopens a trial nor has both known and unknown noise in one metric.
        if reopened or self._noise_known != self._knows_noise():
            self._start_over()
            return
        for trial_id, record in changes.items():
            self._tell(trial_id, record)
        self._discard()

    def statuses(self) -> dict[str, str]:
        """Ax's own word on every trial, lower case, by Tune's trial_id."""
        if not self._indices:
            return {}
        table = self._client.summarize().set_index("trial_index")["trial_status"]
        return {
            trial_id: str(table.loc[index]).lower() for trial_id, index in self._indices.items()
        }

    def fitted(self) -> tuple[Experiment, Adapter]:
        """Ax's experiment, and its model fitted to all that is known.

        Raises:
            AxError: there is no model (Sobol, random), or too little to fit it to.
        """
        self._refresh_estimates()
        node = next((n for n in self._strategy()._nodes if n.name == "MBM"), None)  # noqa: SLF001
        if node is None:
            raise AxError(f"method {self._settings.method} has no model")
        experiment = self._client._experiment  # noqa: SLF001
        node._fit(experiment)  # noqa: SLF001
        return experiment, node.generator_specs[0].fitted_adapter

    # ------------------------------------------------------------------- within

    def _start_over(self) -> None:
        """A new Ax experiment with all records."""
        settings = self._settings
        self._client = Client(random_seed=settings.seed)
        self._client.configure_experiment(
            [_ax_parameter(p, self._grids[p.name]) for p in self._space.parameters],
            parameter_constraints=list(self._space.constraints) or None,
        )
        signs = (name if mode == "max" else f"-{name}" for name, mode in settings.objectives)
        self._client.configure_optimization(
            ", ".join(signs), outcome_constraints=list(settings.outcome_constraints) or None
        )
        self._client.set_generation_strategy(self._strategy())
        self._rng = np.random.default_rng((settings.seed, len(self._records)))
        self._indices: dict[str, int] = {}  # Ax's trial_index by Tune's trial_id
        self._open = None
        self._estimates: dict[str, dict[str, tuple[float, float]]] = {}  # of stopped trials
        self._tried: set[frozenset[tuple[str, Any]]] = set()
        self._noise_known = self._knows_noise()
        for trial_id, record in self._records.items():
            self._tell(trial_id, record)

    def _strategy(self) -> GenerationStrategy:
        settings = self._settings
        saas = settings.model == "saas" or (
            settings.model == "auto" and len(self._space.parameters) >= _MANY_PARAMETERS
        )
        model = (
            ModelConfig(botorch_model_class=EnsembleMapSaasSingleTaskGP, name="SAAS")
            if saas
            else ModelConfig(botorch_model_class=CategoricalGP, name="GP")
        )
        is_random = settings.method == "sobol"
        strategy = choose_generation_strategy(
            GenerationStrategyDispatchStruct(
                method="random_search" if is_random else "custom",
                initialization_budget=settings.num_sobol,
                # A search that goes on after a restart needs Sobol points it has not seen.
                initialization_random_seed=settings.seed + len(self._records),
                min_observed_initialization_trials=least_completed(settings.num_sobol),
                initialize_with_center=False,
                use_existing_trials_for_initialization=True,
                allow_exceeding_initialization_budget=True,
                torch_device=settings.device,
            ),
            model_config=None if is_random else model,
            botorch_acqf_class=_ACQUISITIONS[settings.acquisition],
        )
        for node in strategy._nodes:  # noqa: SLF001  (there is no other way to these options)
            for spec in node.generator_specs:
                if node.name == "MBM":
                    spec.generator_kwargs["fit_tracking_metrics"] = False
                    # SAAS has no kernel for unordered choices: it gets a column of each value.
                    inputs = MBM_X_trans if saas else Mixed_transforms
                    spec.generator_kwargs["transforms"] = [*inputs, *Y_trans, PowerTransformY]
                    spec.generator_gen_kwargs["model_gen_options"] = {
                        "optimizer_kwargs": self._acquisition_search
                    }
        return strategy

    def _tell(self, trial_id: str, record: TrialRecord) -> None:
        """Brings Ax's trial up to date with a record."""
        index = self._indices.get(trial_id)
        if index is None:
            if self._open is not None and self._open[1] == record.point:
                index, self._open = self._open[0], None
            else:
                index = self._client.attach_trial(self._for_ax(record.point))
            self._indices[trial_id] = index
            self._tried.add(self._key(record.point))
        elif self._client._experiment.trials[index].status.is_terminal:  # noqa: SLF001
            return
        match record.status:
            case "running":
                pass
            case "completed":
                finals = {m: c[-1][1:] for m, c in self._curves(record).items()}
                self._client.attach_data(index, self._data(finals))
                self._client.complete_trial(index)
            case "early_stopped":
                # As what it is, beside the metric that is optimised: that one gets an estimate.
                seen = {f"{m} when stopped": c[-1][1] for m, c in self._curves(record).items()}
                self._client.attach_data(index, seen)
                self._client.mark_trial_early_stopped(index)
            case "failed":
                self._client.mark_trial_failed(index)
            case "abandoned":
                self._client.mark_trial_abandoned(index)

    def _refresh_estimates(self) -> None:
        """Tells Ax what stopped trials would have come to, as far as the others show it by now."""
        if self._settings.curves == "ignore":
            return
        stopped = [i for i, record in self._records.items() if record.status == "early_stopped"]
        if not stopped:
            return
        finished = [i for i, record in self._records.items() if record.status == "completed"]
        by_metric = {}
        for number, metric in enumerate(self._settings.metrics):
            curves = {i: r.curve_of(number, metric) for i, r in self._records.items()}
            found = final_values(curves, finished, stopped)
            if metric not in self._noise_known:
                # Without noise of its own, an estimate must not be vaguer than the differences
                # between trials.
                ends = [curves[i][-1][1] for i in finished]
                spread = float(np.std(ends)) if len(ends) > 1 else 0.0
                found = {i: (mean, std) for i, (mean, std) in found.items() if std <= spread}
            by_metric[metric] = found
        for trial_id in stopped:
            if all(trial_id in found for found in by_metric.values()):
                estimate = {metric: found[trial_id] for metric, found in by_metric.items()}
                if estimate != self._estimates.get(trial_id):
                    self._client.attach_data(self._indices[trial_id], self._data(estimate))
                    self._estimates[trial_id] = estimate

    def _curves(self, record: TrialRecord) -> dict[str, list[tuple[int, float, float | None]]]:
        return {m: record.curve_of(n, m) for n, m in enumerate(self._settings.metrics)}

    def _data(self, values: Mapping[str, tuple[float, float | None]]) -> dict[str, Any]:
        """As Ax takes it: with the standard error where all trials have one."""
        return {
            metric: (mean, sem) if metric in self._noise_known else mean
            for metric, (mean, sem) in values.items()
        }

    def _knows_noise(self) -> set[str]:
        """The metrics whose standard error every completed trial has reported."""
        completed = [r for r in self._records.values() if r.status == "completed"]
        return {
            metric
            for number, metric in enumerate(self._settings.metrics)
            if completed and all(r.curve_of(number, metric)[-1][2] is not None for r in completed)
        }

    def _discard(self) -> None:
        """A point that nobody tries is not pending: of Ax's endings, `failed` alone says so."""
        if self._open is not None:
            self._client.mark_trial_failed(self._open[0], "was not tried")
            self._open = None

    # ------------------------------------------------------------------- points

    def _tidied(self, values: Mapping[str, Any]) -> Point:
        """The point to try: on the steps, within the bounds, with those parameters that exist."""
        point: Point = {}
        for parameter in self._in_order():
            if parameter.exists_in(point) and parameter.name in values:
                value = values[parameter.name]
                if parameter.choices is None:
                    value = parameter.snapped(value)
                point[parameter.name] = value
        return {p.name: point[p.name] for p in self._space.parameters if p.name in point}

    def _for_ax(self, point: Point) -> Point:
        """A point of ours as Ax takes it, with fixed values for the parameters that it lacks."""
        whole = {p.name: p.exact(point.get(p.name, p.first)) for p in self._space.parameters}
        floats = {p.name for p in self._space.parameters if _is_float(p, self._grids[p.name])}
        return {name: float(v) if name in floats else v for name, v in whole.items()}

    def _random_point(self) -> Point:
        """Uniform in the space, by rejection where there are constraints."""
        for _ in range(_MOST_DRAWS):
            point: Point = {}
            for parameter in self._in_order():
                if parameter.exists_in(point):
                    point[parameter.name] = _random_value(parameter, self._rng)
            if all(constraint.holds(point) for constraint in self._constraints):
                return self._tidied(point)
        raise AxError(f"no point in {_MOST_DRAWS} fulfils {', '.join(self._space.constraints)}")

    def _in_order(self) -> list[Parameter]:
        """Parents before those that depend on them."""
        ordered: list[Parameter] = []
        rest = list(self._space.parameters)
        while rest:
            known = {p.name for p in ordered}
            ready = [p for p in rest if p.when is None or p.when[0] in known]
            assert ready, "conditions form no circle"
            ordered += ready
            rest = [p for p in rest if p not in ready]
        return ordered

    def _is_tried(self, point: Point) -> bool:
        return self._key(point) in self._tried

    def _key(self, point: Point) -> frozenset[tuple[str, Any]]:
        return frozenset(
            (p.name, p.exact(point[p.name])) for p in self._space.parameters if p.name in point
        )

    def _all_points(self) -> list[Point] | None:
        """Of a discrete space, if they are not too many."""
        counts = [count for count in map(_count, self._space.parameters) if count is not None]
        if not self._is_discrete or math.prod(counts) > _MOST_DRAWS:
            return None
        grids = [grid for grid in self._grids.values() if grid is not None]
        points = (
            self._tidied(dict(zip(self._grids, values, strict=True)))
            for values in itertools.product(*grids)
        )
        distinct = {frozenset(point.items()): point for point in points}
        return [p for p in distinct.values() if all(c.holds(p) for c in self._constraints)]

    def _draw(self) -> tuple[Point, Source] | None:
        """A random point; of a discrete space one that is untried, None if there is none."""
        if not self._is_discrete:
            return self._random_point(), "random"
        if self._points is None:
            points = (self._random_point() for _ in range(_MOST_DRAWS))
            return next(((point, "random") for point in points if not self._is_tried(point)), None)
        left = [point for point in self._points if not self._is_tried(point)]
        return (left[int(self._rng.integers(len(left)))], "random") if left else None


def _count(parameter: Parameter) -> int | None:
    """How many values a discrete parameter has; None for a continuous one."""
    if parameter.choices is not None:
        return len(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    step = parameter.step or (1 if parameter.integer else None)
    return None if step is None else math.floor((parameter.high - parameter.low) / step + 1e-9) + 1


def _grid(parameter: Parameter) -> list[Any] | None:
    """All values of a discrete parameter, if they are not too many."""
    if parameter.choices is not None:
        return list(parameter.choices)
    count = _count(parameter)
    if count is None or count > _MOST_DRAWS:
        return None
    assert parameter.low is not None
    step = parameter.step or 1
    return [parameter.snapped(parameter.low + number * step) for number in range(count)]


def _ax_parameter(
    parameter: Parameter, grid: list[Any] | None
) -> RangeParameterConfig | ChoiceParameterConfig:
    """As Ax takes it: conditional ones too exist in every point of Ax's.

    Ax's own conditions know but one value of the parent; and its model fills in what is missing.
    """
    values = _ax_choices(parameter, grid)
    if values is not None:
        return ChoiceParameterConfig(
            name=parameter.name,
            values=values,
            parameter_type=_type_name(values[0]),
            is_ordered=parameter.is_ordered,
        )
    assert parameter.low is not None
    assert parameter.high is not None
    return RangeParameterConfig(
        name=parameter.name,
        bounds=(parameter.low, parameter.high),
        parameter_type="float" if _is_float(parameter, grid) else "int",
        scaling="log" if parameter.log else "linear",
    )


def _ax_choices(parameter: Parameter, grid: list[Any] | None) -> list[Any] | None:
    """The values of a parameter that is a choice to Ax.

    On steps too many, or on a log scale, Ax searches the range, and `snapped` rounds.
    """
    if parameter.choices is not None:
        return list(parameter.choices)
    stepped = parameter.step is not None and not parameter.log
    return grid if stepped and grid is not None and len(grid) <= _MOST_STEPS else None


def _is_float(parameter: Parameter, grid: list[Any] | None) -> bool:
    """Whether Ax searches a range of real numbers for it."""
    if _ax_choices(parameter, grid) is not None:
        return False
    return not parameter.integer or parameter.step is not None


def _random_value(parameter: Parameter, rng: np.random.Generator) -> Any:
    if parameter.choices is not None:
        return parameter.choices[rng.integers(len(parameter.choices))]
    assert parameter.low is not None
    assert parameter.high is not None
    low, high = parameter.low, parameter.high
    if parameter.log:
        return parameter.snapped(math.exp(rng.uniform(math.log(low), math.log(high))))
    if parameter.integer and parameter.step is None:
        return int(rng.integers(round(low), round(high) + 1))
    return parameter.snapped(rng.uniform(low, high))


def _type_name(value: object) -> Literal["bool", "int", "float", "str"]:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "str"


def _plain(value: Any) -> Any:
    """Numpy scalars as Python's own, which YAML and JSON can hold."""
    return value.item() if hasattr(value, "item") else value
