"""What the search's rules save, on functions of the test suite of BoTorch, all to be minimised.

Regrets are in percent of the range of a function: from its least value to the greatest of 2,000
random points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from botorch.test_functions import synthetic

from raymeta.search import Parameter, Space
from raymeta.search.ax_model import AxModel
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import SearchSettings

FUNCTIONS: dict[str, Callable[[], synthetic.SyntheticTestFunction]] = {
    "branin": synthetic.Branin,
    "camel": synthetic.SixHumpCamel,
    "hartmann3": lambda: synthetic.Hartmann(dim=3),
    "levy4": lambda: synthetic.Levy(dim=4),
    "rosenbrock4": lambda: synthetic.Rosenbrock(dim=4),
    "hartmann6": lambda: synthetic.Hartmann(dim=6),
}


@dataclass(frozen=True)
class Function:
    """A function, its space, its least value and its range."""

    name: str
    space: Space
    call: Callable[[Mapping[str, Any]], float]
    least: float
    range: float

    def regret(self, value: float) -> float:
        """The regret of a value in percent of the range."""
        return 100 * (value - self.least) / self.range


def function(name: str) -> Function:
    """Builds the function of this name in `FUNCTIONS`."""
    found = FUNCTIONS[name]()
    parameters = tuple(
        Parameter(name=f"x{i}", low=low, high=high)
        for i, (low, high) in enumerate(found._bounds)  # noqa: SLF001
    )

    def call(point: Mapping[str, Any]) -> float:
        x = torch.tensor([[point[p.name] for p in parameters]], dtype=torch.float64)
        return float(found.evaluate_true(x))

    lows, highs = torch.tensor(found._bounds, dtype=torch.float64).T  # noqa: SLF001
    unit = torch.rand(2000, len(parameters), generator=torch.Generator().manual_seed(0)).double()
    greatest = float(found.evaluate_true(lows + unit * (highs - lows)).max())
    least = float(found.optimal_value)
    return Function(name, Space(parameters), call, least, greatest - least)


@dataclass(frozen=True)
class Stopped:
    """A search of a fixed number of trials, and where the rule would have ended it."""

    num_trials: int  # made when the rule ends it; the fixed number if it does not
    regret: float  # then
    regret_at_budget: float


def stopped(problem: Function, seed: int, budget: int, limit: float, num_sobol: int) -> Stopped:
    """One search; `limit` is a percentage of the range."""
    settings = SearchSettings(
        objectives=(("value", "min"),),
        num_sobol=num_sobol,
        seed=seed,
        stop_when_gain_below=limit / 100 * problem.range,
    )
    model = AxModel(problem.space, settings)
    best, end = np.inf, None
    changes: dict[str, TrialRecord] = {}
    for number in range(budget):
        proposal = model.propose(changes)
        assert proposal is not None
        assert settings.stop_when_gain_below is not None
        is_little = proposal.gain is not None and proposal.gain < settings.stop_when_gain_below
        if is_little and end is None:
            end = number, problem.regret(best)
        value = problem.call(proposal.point)
        best = min(best, value)
        curve: Curve = [(1, value, None)]
        changes = {f"t{number}": TrialRecord(proposal.point, proposal.source, "completed", curve)}
    count, regret = end or (budget, problem.regret(best))
    return Stopped(count, regret, problem.regret(best))


def seconds(problem: Function, point: Mapping[str, Any], surface: str) -> float:
    """The seconds of a simulated trial: 1 to 10, growing or falling with the first parameter."""
    first = problem.space.parameters[0]
    assert first.low is not None
    assert first.high is not None
    share = (point[first.name] - first.low) / (first.high - first.low)
    return float(10 ** (share if surface == "growing" else 1 - share))


def regret_in_time(
    problem: Function, surface: str, acquisition: str, seed: int, budget_s: float, num_sobol: int
) -> float:
    """The regret of a search whose trials, one after another, have so many simulated seconds."""
    settings = SearchSettings(
        objectives=(("value", "min"),), num_sobol=num_sobol, seed=seed, acquisition=acquisition
    )
    model = AxModel(problem.space, settings)
    best, now, number = np.inf, 0.0, 0
    changes: dict[str, TrialRecord] = {}
    while True:
        proposal = model.propose(changes)
        assert proposal is not None
        end = now + seconds(problem, proposal.point, surface)
        if end > budget_s:
            return problem.regret(best)
        value = problem.call(proposal.point)
        best = min(best, value)
        curve: Curve = [(1, value, None)]
        record = TrialRecord(
            proposal.point, proposal.source, "completed", curve, began_s=now, latest_s=end
        )
        changes = {f"t{number}": record}
        now, number = end, number + 1
