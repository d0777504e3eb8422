"""Search engines on equal terms: the same problems, start points, noise and trial durations.

A run simulates trials on a number of slots.  An engine is asked for a point as soon as a slot is
free, and told of a trial when it ends; running trials it knows as pending.  Asking and telling take
the processor time that they really take, during which nothing else is asked.  Runs are kept as
lines of JSON: one that is there already is not run again.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import optuna
import torch
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.utils.common.logger import set_ax_logger_levels
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna_integration import BoTorchSampler
from scipy.stats import qmc
from search_held_out import HELD_OUT
from search_problems import PROBLEMS, Problem
from search_standings import NUM_STARTS, Key, Search

from raymeta.search import Parameter, Space
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point

TRIAL_SECONDS = 10.0
SPREAD = 0.25  # standard deviation of the logarithm of a trial's duration


class Engine(Protocol):
    """Chooses points; a trial is known by its number."""

    def start(self, number: int, point: Point) -> None:
        """A start point has been given to a trial."""

    def ask(self, number: int) -> Point:
        """The point of a new trial."""

    def tell(self, number: int, value: float | None) -> None:
        """A trial has ended with a value, to be minimised, or failed."""


class Raymeta:
    """The model behind `AxSearcher`."""

    def __init__(self, problem: Problem, seed: int, concurrent: int) -> None:  # noqa: ARG002
        settings = SearchSettings(
            objectives=(("value", "min"),), num_sobol=NUM_STARTS, seed=seed, curves="ignore"
        )
        self._model = AxModel(Space(problem.parameters), settings)
        self._records: dict[str, TrialRecord] = {}
        self._changed: set[str] = set()

    def start(self, number: int, point: Point) -> None:
        self._records[str(number)] = TrialRecord(point, "given")
        self._changed.add(str(number))

    def ask(self, number: int) -> Point:
        proposal = self._model.propose({key: self._records[key] for key in self._changed})
        self._changed.clear()
        assert proposal is not None
        self.start(number, proposal.point)
        return proposal.point

    def tell(self, number: int, value: float | None) -> None:
        record = self._records[str(number)]
        if value is not None:
            record.curve.append((1, value, None))
        record.status = "failed" if value is None else "completed"
        self._changed.add(str(number))


class Ax:
    """Ax by itself, with its own defaults but for the start points."""

    def __init__(self, problem: Problem, seed: int, concurrent: int) -> None:  # noqa: ARG002
        set_ax_logger_levels(logging.CRITICAL)
        self._client = Client(random_seed=seed)
        self._client.configure_experiment([_for_ax(p) for p in problem.parameters])
        self._client.configure_optimization("-value")
        self._client.configure_generation_strategy(
            initialization_budget=NUM_STARTS, initialize_with_center=False
        )
        self._indices: dict[int, int] = {}

    def start(self, number: int, point: Point) -> None:
        self._indices[number] = self._client.attach_trial(dict(point))

    def ask(self, number: int) -> Point:
        ((index, point),) = self._client.get_next_trials(max_trials=1).items()
        self._indices[number] = index
        return dict(point)

    def tell(self, number: int, value: float | None) -> None:
        if value is None:
            self._client.mark_trial_failed(self._indices[number])
        else:
            self._client.complete_trial(self._indices[number], raw_data={"value": value})


class Optuna:
    """A sampler of Optuna, with its own defaults."""

    def __init__(self, problem: Problem, sampler: optuna.samplers.BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(sampler=sampler)
        self._distributions = {p.name: _for_optuna(p) for p in problem.parameters}
        self._trials: dict[int, optuna.Trial] = {}

    def start(self, number: int, point: Point) -> None:
        self._study.enqueue_trial(point)
        assert self.ask(number) == point

    def ask(self, number: int) -> Point:
        trial = self._study.ask(self._distributions)
        self._trials[number] = trial
        return dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        state = optuna.trial.TrialState.FAIL if value is None else None
        self._study.tell(self._trials[number], value, state=state)


def _unasked(config: Any, seed: int = 0) -> float:
    """Refuses to run: SMAC3 must only propose trials and be told their results."""
    raise AssertionError(f"SMAC3 ran {config} with seed {seed} itself")


class Smac:
    """SMAC3's facade for hyperparameters, with its own defaults but for the start points."""

    def __init__(self, problem: Problem, seed: int, concurrent: int) -> None:  # noqa: ARG002
        from ConfigSpace import (  # noqa: PLC0415  (slow, and of the held-out part alone)
            Categorical,
            ConfigurationSpace,
            Float,
            Integer,
        )
        from smac import HyperparameterOptimizationFacade, Scenario  # noqa: PLC0415

        def declared(parameter: Parameter) -> Any:
            name, bounds = parameter.name, (parameter.low, parameter.high)
            if parameter.choices is not None:
                return Categorical(name, list(parameter.choices))
            return (Integer if parameter.integer else Float)(name, bounds)

        self._space = ConfigurationSpace(seed=seed)
        self._space.add(*(declared(p) for p in problem.parameters))
        self._folder = TemporaryDirectory()
        scenario = Scenario(
            self._space,
            deterministic=True,
            n_trials=1000,  # more than are asked for
            seed=seed,
            output_directory=Path(self._folder.name),
        )
        self._smac = HyperparameterOptimizationFacade(
            scenario,
            _unasked,
            initial_design=HyperparameterOptimizationFacade.get_initial_design(
                scenario, n_configs=0
            ),
            overwrite=True,
            logging_level=False,
        )
        self._trials: dict[int, Any] = {}
        self._values: list[float] = []

    def start(self, number: int, point: Point) -> None:
        from ConfigSpace import Configuration  # noqa: PLC0415
        from smac.runhistory.dataclasses import TrialInfo  # noqa: PLC0415

        values = dict(point)
        self._trials[number] = TrialInfo(Configuration(self._space, values=values), seed=0)

    def ask(self, number: int) -> Point:
        trial = self._trials[number] = self._smac.ask()
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in dict(trial.config).items()
        }

    def tell(self, number: int, value: float | None) -> None:
        from smac.runhistory.dataclasses import TrialValue  # noqa: PLC0415
        from smac.runhistory.enumerations import StatusType  # noqa: PLC0415

        if value is None:
            # Its default cost of a crash is infinite, which its own model refuses.
            worst = max(self._values, default=0.0)
            found = TrialValue(cost=worst, status=StatusType.CRASHED)
        else:
            self._values.append(value)
            found = TrialValue(cost=value, status=StatusType.SUCCESS)
        self._smac.tell(self._trials[number], found)


class Uniform:
    """Random search."""

    def __init__(self, problem: Problem, seed: int, concurrent: int) -> None:  # noqa: ARG002
        self._problem = problem
        self._rng = np.random.default_rng((seed, 1))

    def start(self, number: int, point: Point) -> None:
        """Does nothing: the points depend on no start."""

    def ask(self, number: int) -> Point:  # noqa: ARG002
        return self._problem.point(self._rng.random(len(self._problem.parameters)).tolist())

    def tell(self, number: int, value: float | None) -> None:
        """Does nothing: the points depend on no result."""


def _for_ax(parameter: Parameter) -> RangeParameterConfig | ChoiceParameterConfig:
    if parameter.choices is not None:
        return ChoiceParameterConfig(
            name=parameter.name, values=list(parameter.choices), parameter_type="str"
        )
    return RangeParameterConfig(
        name=parameter.name,
        bounds=(parameter.low, parameter.high),
        parameter_type="int" if parameter.integer else "float",
    )


def _for_optuna(parameter: Parameter) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.integer:
        return IntDistribution(round(parameter.low), round(parameter.high))
    return FloatDistribution(parameter.low, parameter.high)


def _tpe(problem: Problem, seed: int, concurrent: int) -> Engine:
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=concurrent > 1)
    return Optuna(problem, sampler)


def _gp(problem: Problem, seed: int, concurrent: int) -> Engine:  # noqa: ARG001
    return Optuna(problem, optuna.samplers.GPSampler(seed=seed))


def _botorch(problem: Problem, seed: int, concurrent: int) -> Engine:
    return Optuna(problem, BoTorchSampler(seed=seed, consider_running_trials=concurrent > 1))


ENGINES: dict[str, Callable[[Problem, int, int], Engine]] = {
    "raymeta": Raymeta,
    "Ax": Ax,
    "Optuna GPSampler": _gp,
    "Optuna BoTorchSampler": _botorch,
    "Optuna TPE": _tpe,
    "random": Uniform,
    "SMAC3": Smac,
}
# Rivals that the kept runs of the part on regret do not have.
HELD_OUT_ALONE = ("SMAC3",)


def run_search(key: Key, num_trials: int) -> Search:
    """Simulates it; the key is engine, problem, concurrent trials and seed."""
    engine_name, problem_name, concurrent, seed = key
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    warnings.filterwarnings("ignore")  # of the engines' libraries, about each other
    problem = (PROBLEMS | HELD_OUT)[problem_name]()
    rng = np.random.default_rng(seed)
    starts = qmc.Sobol(len(problem.parameters), rng=rng).random(16)[:NUM_STARTS]
    durations = TRIAL_SECONDS * np.exp(SPREAD * rng.standard_normal(num_trials))
    normal = rng.standard_normal(num_trials)
    budget_s = _makespan(durations, concurrent)
    engine = ENGINES[engine_name](problem, seed, concurrent)
    running: list[tuple[float, int, Point]] = []
    best, regret = np.inf, np.inf
    history: list[tuple[float, float]] = []  # (when a trial ended, regret from then on)
    clock = asking = 0.0
    for number in range(num_trials + concurrent):
        if number >= concurrent:
            end, ended, point = heapq.heappop(running)
            clock = max(clock, end)
            true = problem.value(point)
            noise = problem.noise_std if problem.noise_at is None else problem.noise_at(point)
            observed = None if problem.fails(point) else true + noise * normal[ended]
            if observed is not None and observed < best:
                best, regret = observed, max(true - problem.optimum, 0.0)
            history.append((end, regret))
            began = time.process_time()
            engine.tell(ended, observed)
            took = time.process_time() - began
            asking, clock = asking + took, clock + took
        if number < num_trials:
            began = time.process_time()
            if number < NUM_STARTS:
                point = problem.point(starts[number].tolist())
                engine.start(number, point)
            else:
                point = engine.ask(number)
            took = time.process_time() - began
            asking, clock = asking + took, clock + took
            durations[number] *= problem.slowness(point)
            heapq.heappush(running, (clock + durations[number], number, point))
    in_time = [regret for end, regret in history if end <= budget_s]
    return Search(*key, [r for _, r in history[9::10]], in_time[-1], asking)


def _makespan(durations: np.ndarray, concurrent: int) -> float:
    """The time when the last trial ends if each begins as soon as a slot is free."""
    slots = [0.0] * concurrent
    for duration in durations:
        heapq.heapreplace(slots, slots[0] + duration)
    return max(slots)


def run_all(
    engines: Sequence[str],
    problems: Sequence[str],
    concurrent: Sequence[int],
    seeds: int,
    num_trials: int,
    rows: Path | None,
    processes: int,
) -> list[Search]:
    """Runs what is not yet in `rows`, and adds it there; a seed of all before the next seed.

    `rows` must hold runs of as many trials.
    """
    wanted = [
        (engine, problem, slots, seed)
        for seed, problem, slots, engine in itertools.product(
            range(seeds), problems, concurrent, engines
        )
    ]
    known: dict[Key, Search] = {}
    if rows is not None and rows.is_file():
        for line in rows.read_text(encoding="utf-8").splitlines():
            search = Search(**json.loads(line))
            known[search.engine, search.problem, search.concurrent, search.seed] = search
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_search, key, num_trials) for key in wanted if key not in known]
        for future in as_completed(futures):
            search = future.result()
            known[search.engine, search.problem, search.concurrent, search.seed] = search
            if rows is not None:
                with rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(search)) + "\n")
    return [known[key] for key in wanted]
