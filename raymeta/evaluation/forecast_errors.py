"""Measures the errors of a network's forecasts on series of meta-validation.

The errors make intervals around the forecasts of new series that hold the values to come with a
stated probability.  They never come from meta-test series, and never from a series' own past, which
is too short for it.

Shape legend: R networks, S series, E episodes, M queries, H horizon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raymeta.errors import DataError, RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.own_units import forecasts_of
from raymeta.evaluation.scores import MASE_UNIT, Coverage, Score
from raymeta.run_folder import Run

ERRORS_FILE = "forecast_errors.json"
NUM_EPISODES = 400  # of meta-validation
TESTED_COVERAGE = 0.8  # of the intervals that the meta-test judges
_DIGITS = 5


@dataclass(frozen=True)
class ForecastErrors:
    """Absolute errors of forecasts, in units of a series' own error of the season before.

    `errors` has the rows `[H]` of each series of meta-validation: `[S][E of the series][H]`.
    """

    errors: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def most(self) -> float:
        """The highest coverage that can be promised from this number of series."""
        return len(self.errors) / (len(self.errors) + 1)

    def half_widths(self, coverage: float) -> np.ndarray:
        """Half the width of the interval at each step ahead, in the same unit, `[H]`.

        At each step it is the quantile of the errors with weight 1 / (S + 1) for each series,
        spread over its episodes, and as much at infinity: the interval of a step of a new series,
        exchangeable with those of meta-validation, holds its value with at least this probability
        (Lee, Barber and Willett 2023, "Distribution-free inference with hierarchical data",
        theorem 1).

        Raises:
            DataError: the coverage is not within (0, 1), or there are too few series for it.
        """
        if not 0 < coverage < 1:
            raise DataError(f"coverage must be > 0 and < 1, but got {coverage}")
        if coverage > self.most:
            raise DataError(
                f"coverage must be at most {math.floor(100 * self.most) / 100}, but got "
                f"{coverage}: meta-validation had {len(self.errors)} series, and {coverage} needs "
                f"{math.ceil(coverage / (1 - coverage) - 1e-9)} (tasks.val_groups)"
            )
        errors, weights = self._weighted
        order = np.argsort(errors, axis=0)
        mass = np.cumsum(weights[order], axis=0)
        place = np.argmax(mass >= coverage - 1e-9, axis=0)
        found: np.ndarray = np.take_along_axis(errors, order, axis=0)[
            place, np.arange(errors.shape[1])
        ]
        return found

    @cached_property
    def _weighted(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows `[E, H]`, and the weight of each `[E]`."""
        rows = np.array([row for series in self.errors for row in series])
        weights = [1 / (len(self.errors) + 1) / len(series) for series in self.errors]
        return rows, np.repeat(weights, [len(series) for series in self.errors])

    @classmethod
    def measure(cls, networks: Sequence[Network], axis: str) -> ForecastErrors:
        """Measures the joint errors of networks on meta-validation.

        Args:
            networks: trainings of one configuration.
            axis: of the series among the units of queries.
        """
        first = networks[0]
        outputs = forecasts_of(networks, NUM_EPISODES, first.recipe.num_steps, "val")
        problem = first.recipe.problem
        answers = problem.point(problem.mean_outputs(outputs))
        episodes = first.tasks.episodes("val", range(NUM_EPISODES))
        errors = (answers - episodes.query.y.double()).abs().flatten(0, 1).numpy()
        drawn = (first.tasks.episode("val", index) for index in range(NUM_EPISODES))
        series = np.concatenate([(episode.query_units or {})[axis] for episode in drawn])
        return cls(
            tuple(
                tuple(tuple(float(f"{v:.{_DIGITS}g}") for v in row) for row in errors[series == s])
                for s in np.unique(series)
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], horizon: int) -> ForecastErrors:
        """Reads what `to_json` gave, of forecasts of `horizon` steps.

        Raises:
            ValueError: it is something else.
        """
        found = tuple(
            tuple(tuple(map(float, row)) for row in series) for series in content["errors"]
        )
        rows = [row for series in found for row in series]
        is_sound = (
            rows
            and all(found)
            and {len(row) for row in rows} == {horizon}
            and all(0 <= value < math.inf for row in rows for value in row)
        )
        if not is_sound:
            raise ValueError("the errors are damaged")
        return cls(found)


def keep_errors(run: Run, networks: Sequence[Network]) -> ForecastErrors:
    """Measures the errors of a run's first network and of all together, and keeps them.

    Returns:
        The errors of all networks together.
    """
    axis = run.experiment().value("tasks.sequence")
    found = {
        str(count): ForecastErrors.measure(networks[:count], axis)
        for count in sorted({1, len(networks)})
    }
    run.write_json(ERRORS_FILE, {count: one.to_json() for count, one in found.items()})
    return found[str(len(networks))]


def errors_of(run: Run, num_networks: int, horizon: int) -> ForecastErrors | None:
    """Reads the joint errors of a run's first networks; None if the run has no meta-test.

    Raises:
        RunError: the file is damaged.
    """
    content: Any = run.read_json(ERRORS_FILE, run.made_anew)
    if content is None:
        return None
    try:
        found = ForecastErrors.from_json(content[str(num_networks)], horizon)
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / ERRORS_FILE}: is damaged; {run.made_anew}") from error
    return found


def coverage_in_meta_test(
    errors: ForecastErrors, networks: Sequence[Network], num_episodes: int
) -> Coverage | None:
    """Measures which share of meta-test values lies in the networks' intervals.

    None: there are too few series of meta-validation.
    """
    if errors.most < TESTED_COVERAGE:
        return None
    first = networks[0]
    outputs = forecasts_of(networks, num_episodes, first.recipe.num_steps)
    problem = first.recipe.problem
    answers = problem.point(problem.mean_outputs(outputs))
    targets = first.tasks.episodes("test", range(num_episodes)).query.y.double()
    half = errors.half_widths(TESTED_COVERAGE)
    is_in = ((answers - targets).abs().numpy() <= half).mean(axis=2)
    units = first.tasks.query_units("test", num_episodes)
    found = units.estimate(is_in)
    score = Score(found.mean, found.half_width if units.are_enough else None)
    widths = float(half.mean()), float(half.min()), float(half.max())
    val_units = dict(first.tasks.query_units("val", NUM_EPISODES).counts)
    return Coverage(TESTED_COVERAGE, score, len(errors.errors), *widths, MASE_UNIT, val_units)
