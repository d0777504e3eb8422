"""What a search learns from failures and earlier searches, and what averaging over models does.

All functions are to be minimised; two simulated trials run at once where trials may fail, otherwise
one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from botorch.test_functions import synthetic

from raymeta.experiment.file import load_experiment
from raymeta.search import Parameter, Space
from raymeta.search.ax_model import AxModel
from raymeta.search.memory import MemoryLimit
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.sampling import PointSampler
from raymeta.search.settings import Mode, Model, SearchSettings
from raymeta.search.space import Point, search_space

NUM_SOBOL = 5
OBJECTIVES: tuple[tuple[str, Mode], ...] = (("value", "min"),)


@dataclass(frozen=True)
class Failing:
    """A function with points at which a trial fails."""

    space: Space
    value: Callable[[Point], float]
    fails: Callable[[Point], bool]
    least: float  # among the points that do not fail


def _unit(count: int) -> Space:
    return Space(tuple(Parameter(name=f"x{i}", low=0, high=1) for i in range(count)))


def _corner() -> Failing:
    """The best corner fails (Optuna's issue 3472)."""
    return Failing(
        _unit(2),
        lambda p: 1 - p["x0"] + 0.1 * (p["x1"] - 0.5) ** 2,
        lambda p: p["x0"] > 0.7,
        0.3,
    )


def _memory() -> Failing:
    """Larger is better, until the product of two sizes no longer fits."""
    sizes = (("width", 8, 512), ("batch", 1, 64))
    parameters = [
        Parameter(name=n, low=low, high=high, integer=True, log=True) for n, low, high in sizes
    ]
    return Failing(
        Space((*parameters, Parameter(name="rate", low=0, high=1))),
        lambda p: -math.log(p["width"]) - 0.3 * math.log(p["batch"]) + (p["rate"] - 0.3) ** 2,
        lambda p: p["width"] * p["batch"] > 4000,
        -math.log(500) - 0.3 * math.log(8),
    )


def _harmless() -> Failing:
    """Hartmann-3, whose optimum lies where nothing fails."""
    function = synthetic.Hartmann(dim=3)
    return Failing(
        _unit(3),
        lambda p: float(function.evaluate_true(torch.tensor([list(p.values())]).double())),
        lambda p: p["x2"] < 0.25 or p["x0"] > 0.9,
        float(function.optimal_value),
    )


FAILING: dict[str, Callable[[], Failing]] = {
    "corner": _corner,
    "memory": _memory,
    "harmless": _harmless,
}


def planned() -> Failing:
    """A larger network of `sinusoid` is better, until the plan of its meta-step does not fit.

    Trials fail where `MemoryLimit`, which a search of raymeta asks, says that they would.
    """
    size = "model.hidden_size"
    experiment = load_experiment(
        "sinusoid",
        [
            "search.space={}",
            f"search.space.{size}={{low: 8, high: 256, log: true}}",
            "search.space.maml.inner_lr={low: 0.001, high: 1, log: true}",
            "training.memory_gb=0.003",
        ],
    )
    limit = MemoryLimit(experiment)

    @cache
    def too_large(hidden_size: int) -> bool:
        return bool(limit({size: hidden_size}))

    largest = bisect_left(range(257), True, key=too_large) - 1
    return Failing(
        search_space(experiment),
        lambda p: -math.log(p[size]) + math.log10(p["maml.inner_lr"] / 0.1) ** 2,
        lambda p: too_large(p[size]),
        -math.log(largest),
    )


@dataclass(frozen=True)
class Failed:
    """What failed in a search: of all its trials, and of those begun when two had failed."""

    count: int
    after_two: int
    passed_over: int  # points that were known to fail, and not tried
    regret: float  # of the best of the other trials


def failures(problem: Failing, seed: int, num_trials: int, *, is_known: bool = False) -> Failed:
    """Searches where trials fail; `is_known`: the search can ask beforehand where they do."""
    settings = SearchSettings(objectives=OBJECTIVES, num_sobol=NUM_SOBOL, seed=seed)
    why_not = (lambda point: "it fails" if problem.fails(point) else "") if is_known else None
    model = AxModel(problem.space, settings, why_not=why_not)
    running: dict[str, TrialRecord] = {}
    changes: dict[str, TrialRecord] = {}
    failed, best = 0, math.inf
    after_two, passed_over = 0, 0
    for number in range(num_trials):
        proposal = model.propose(changes)
        assert proposal is not None
        passed_over += bool(proposal.passed_over)
        after_two += failed >= 2 and problem.fails(proposal.point)
        running[str(number)] = TrialRecord(proposal.point, proposal.source)
        changes = {str(number): running[str(number)]}
        if len(running) < 2:
            continue
        first = next(iter(running))
        point = running.pop(first).point
        if problem.fails(point):
            failed += 1
            changes[first] = TrialRecord(point, "bo", "failed")
        else:
            value = problem.value(point)
            best = min(best, value)
            changes[first] = _completed(point, value)
    return Failed(failed, after_two, passed_over, best - problem.least)


# -------------------------------------------------------------------- earlier searches


def _hartmann(point: Mapping[str, Any], shift: float = 0.0) -> float:
    x = [min(max(value + shift, 0.0), 1.0) for value in point.values()]
    return float(synthetic.Hartmann(dim=6).evaluate_true(torch.tensor([x]).double()))


SOURCES: dict[str, Callable[[Point], float]] = {
    "helpful": lambda point: _hartmann(point, 0.05),  # the same, moved
    "misleading": lambda point: -_hartmann(point),  # what is best there is worst here
}


def regret_with(source: str | None, seed: int, num_trials: int) -> list[float]:
    """The regret on Hartmann-6 after each trial, with an earlier search of 24 random points."""
    space = _unit(6)
    earlier = []
    if source is not None:
        sampler, rng = PointSampler(space), np.random.default_rng(seed + 1000)
        points = [sampler.draw(rng) for _ in range(24)]
        earlier = [[_completed(point, SOURCES[source](point)) for point in points]]
    settings = SearchSettings(objectives=OBJECTIVES, num_sobol=NUM_SOBOL, seed=seed)
    model = AxModel(space, settings, sources=earlier)
    return _regrets(model, _hartmann, -3.32237, num_trials)


# -------------------------------------------------------------------- models


def regret_of(
    function: synthetic.SyntheticTestFunction, model: Model, seed: int, num_trials: int
) -> tuple[float, float]:
    """The regret of a search with a model, and its median seconds a candidate."""
    bounds = function._bounds  # noqa: SLF001
    names = [f"x{i}" for i in range(len(bounds))]
    space = Space(
        tuple(
            Parameter(name=n, low=low, high=high)
            for n, (low, high) in zip(names, bounds, strict=True)
        )
    )

    def value(point: Point) -> float:
        return float(function.evaluate_true(torch.tensor([[point[n] for n in names]]).double()))

    settings = SearchSettings(objectives=OBJECTIVES, num_sobol=NUM_SOBOL, seed=seed, model=model)
    seconds: list[float] = []
    searcher = AxModel(space, settings)
    regrets = _regrets(searcher, value, float(function.optimal_value), num_trials, seconds)
    return regrets[-1], float(np.median(seconds[NUM_SOBOL:]))


def _regrets(
    model: AxModel,
    value: Callable[[Point], float],
    least: float,
    num_trials: int,
    seconds: list[float] | None = None,
) -> list[float]:
    best, changes, regrets = math.inf, dict[str, TrialRecord](), list[float]()
    for number in range(num_trials):
        began = time.process_time()
        proposal = model.propose(changes)
        if seconds is not None:
            seconds.append(time.process_time() - began)
        assert proposal is not None
        found = value(proposal.point)
        best = min(best, found)
        regrets.append(best - least)
        changes = {str(number): _completed(proposal.point, found)}
    return regrets


def _completed(point: Point, value: float) -> TrialRecord:
    curve: Curve = [(1, value, None)]
    return TrialRecord(point, "bo", "completed", curve)


def paired(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Log10 of the ratios of regrets, pair by pair: above 0 where `one` is the greater."""
    return [math.log10((a + 1e-4) / (b + 1e-4)) for a, b in zip(one, other, strict=True)]
