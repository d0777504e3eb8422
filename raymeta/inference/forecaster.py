"""Forecasts of new series by a trained network.

The past of a series is both what the network adapts to and what it reads, so that forecasting needs
no more than the past.

Shape legend: R trainings, S series, T steps of a history, D columns (the target is the first), P
steps of the past, H horizon, Q levels of quantiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from raymeta.data.readers.arrow import refuse_missing
from raymeta.data.readers.table import TableReader
from raymeta.episodes import Episode, stacked
from raymeta.errors import DataError, DataWarning, shown
from raymeta.evaluation.forecast_errors import ForecastErrors
from raymeta.inference.examples import read_examples
from raymeta.inference.horizon import Ahead, Known, as_column, steps_ahead
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params
from raymeta.storage.paths import AnyPath
from raymeta.tasks.cutter import Cutter
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.levels import known_levels, unknown_levels, with_levels
from raymeta.tasks.table_settings import TableTasks

_CHUNK = 256  # series forecast at once; bounds memory, never changes an answer
_FRAME, _KNOWN = Path("the DataFrame"), Path("known")  # what messages call them
_OWN_COLUMNS = ("step", "forecast", "lower", "upper")


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of S series, in the series' own units.

    `point` are the forecasts, float64 `[S, H]`; `lower` and `upper` are the ends of intervals,
    where they were asked for.  `series` are the names, `times` the times of the steps of each
    series `[H]`, where the history has times of even steps.  `columns` are what a table calls
    series and times.  `quantiles` `[S, H]` by their levels are those of a network that was trained
    with `tasks.quantiles`; the one at 0.5 is the point forecast.
    """

    series: tuple[str, ...]
    point: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    times: tuple[pa.Array, ...] = ()
    columns: tuple[str, str] = ("series", "time")
    quantiles: Mapping[float, np.ndarray] = field(default_factory=dict)

    def to_table(self) -> pa.Table:
        """One row a series and step: the series' name, the step from 1, its time, the forecast.

        Quantiles have columns such as `quantile 0.1`.
        """
        num_series, horizon = self.point.shape
        name, time = self.columns
        found: dict[str, Any] = {name: np.repeat(np.array(self.series, dtype=object), horizon)}
        if self.times:
            found[time] = pa.concat_arrays(self.times)
        found |= {"step": np.tile(np.arange(1, horizon + 1), num_series)}
        found |= {"forecast": self.point.ravel()}
        found |= {_column(level): values.ravel() for level, values in self.quantiles.items()}
        if self.lower is not None and self.upper is not None:
            found |= {"lower": self.lower.ravel(), "upper": self.upper.ravel()}
        return pa.table(found)

    def to_pandas(self) -> pd.DataFrame:
        """`to_table` as a DataFrame."""
        return self.to_table().to_pandas()


@dataclass(frozen=True)
class Forecaster:
    """A trained network, or several trainings of one configuration, that forecast series.

    `raymeta.load_forecaster` opens it.  `networks` are the meta-parameters of each; the mean of
    their forecasts is the answer.  `errors` are those of meta-validation; None: not measured.
    """

    trained: Trained
    networks: tuple[Params, ...]
    tasks: TableTasks
    errors: ForecastErrors | None = None

    def forecast(
        self, history: Any, *, known: Any = None, coverage: float | None = None
    ) -> Forecasts:
        """Forecasts `tasks.horizon` steps after the history of each series.

        The network adapts to the last `Cutter.past` steps of each history; earlier ones are not
        read.

        Args:
            history: a DataFrame with the experiment's columns, one row a step, of any number of
                series; or a list of arrays `[T, D]`, each the history of a series (`[T]` if there
                is one column), the target first, then the features and the columns of
                `tasks.known`, in their order.
            known: the columns of `tasks.known` at the steps to come, where the network was trained
                with such: a DataFrame with one row a step, as the history; or a list of arrays
                `[H, len(tasks.known)]`, one a series.
            coverage: for intervals about the point forecast that hold the values to come with this
                probability at least, on average over new series like those of meta-validation and
                at each step by itself; None for no intervals.  See `ForecastErrors.half_widths`.

        Raises:
            DataError: saying which series breaks which rule.

        Warns:
            DataWarning: the steps of time are uneven, so that the times to come are not known.
        """
        tasks = self.tasks
        if isinstance(history, pd.DataFrame):
            table = _table(history, self.columns, _FRAME)
            ahead = known
            if isinstance(known, pd.DataFrame):
                ahead = Known(_table(known, Known.columns(tasks), _KNOWN), _KNOWN)
            elif known is not None:
                raise DataError("known must be a DataFrame, as the history is one")
            return self.forecast_table(table, _FRAME, known=ahead, coverage=coverage)
        if tasks.calendar:
            raise DataError(
                "arrays have no dates, which this network reads (tasks.calendar): give the history "
                "as a DataFrame"
            )
        raw = read_examples(history, self._inputs())
        names = [name.replace("example", "series") for name in raw.names]
        series = tuple(str(number) for number in range(1, len(names) + 1))
        return self._forecast(
            raw.x, names, series, (), self._known_arrays(known, len(raw)), coverage
        )

    def forecast_table(
        self,
        table: pa.Table,
        place: AnyPath,
        *,
        known: Known | None = None,
        coverage: float | None = None,
    ) -> Forecasts:
        """`forecast` of a table that was read before; `place` is what messages call it."""
        tasks = self.tasks
        reader = TableReader(
            sequence=tasks.sequence,
            target=None,
            features=(tasks.target_name, *tasks.features, *tasks.known),
            time=tasks.time,
            calendar=tuple(tasks.calendar),
            categories=tuple(tasks.categories),
        )
        found = reader.sequences(table, place)
        names = found.groups[tasks.sequence]
        facts = self.trained.identity.facts
        if tasks.categories:
            for text in unknown_levels(found, known_levels(tasks, facts), str(place)):
                warnings.warn(text, DataWarning, stacklevel=3)
        histories = [with_levels(x, tasks, facts) for x in found.x]
        ahead = steps_ahead(tasks, table, names)
        self._check_known(known is not None)
        parts = [[np.zeros((tasks.horizon, 0))] for _ in names]
        if known is not None:
            of_series = known.of(tasks, ahead)
            parts = [[of_series[name]] for name in names]
        if tasks.calendar:
            for name, own in zip(names, parts, strict=True):
                own.append(ahead[name].calendar(tasks, name))
        coming = [np.concatenate(own, axis=1) for own in parts]
        times = self._times(ahead)
        return self._forecast(histories, list(found.ids), names, times, coming, coverage)

    def _check_known(self, is_given: bool) -> None:
        wanted = ", ".join(self.tasks.known)
        if wanted and not is_given:
            raise DataError(
                f"this network reads {wanted} of the {self.tasks.horizon} steps to come "
                "(tasks.known): give them as `known` (`raymeta forecast RUN FILE --known FILE`)"
            )
        if is_given and not wanted:
            raise DataError(
                "this network reads nothing that is known in advance (tasks.known): leave `known` "
                "out"
            )

    def _known_arrays(self, known: Any, num_series: int) -> list[np.ndarray]:
        """Checks arrays of what is known in advance, `[H, K]` each."""
        self._check_known(known is not None)
        shape = self.tasks.horizon, len(self.tasks.known)
        if known is None:
            return [np.zeros(shape) for _ in range(num_series)]
        channels = Inputs(channels=tuple(self.tasks.known), prepare=lambda x, _: list(x))
        raw = read_examples(known, channels)
        if len(raw) != num_series:
            raise DataError(
                f"known must have an array for each of the {num_series} series, but has {len(raw)}"
            )
        for name, values in zip(raw.names, raw.x, strict=True):
            if len(values) != shape[0]:
                raise DataError(
                    f"known, {name.replace('example', 'series')}: must have the {shape[0]} steps "
                    f"to come (tasks.horizon), but has {len(values)}"
                )
        return raw.x

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of histories must have."""
        tasks = self.tasks
        channels = (tasks.target_name, *tasks.features, *tasks.known, *tasks.categories)
        named = (tasks.sequence, tasks.time, *channels)
        return tuple(name for name in named if name is not None)

    def _forecast(
        self,
        histories: Sequence[np.ndarray],
        places: Sequence[str],
        names: tuple[str, ...],
        times: tuple[pa.Array, ...],
        known: Sequence[np.ndarray],
        coverage: float | None,
    ) -> Forecasts:
        half = None if coverage is None else self._half_widths(coverage)
        num_levels = len(self.trained.identity.facts.get("shares", ()))
        cutter = replace(Cutter.of(self.tasks), num_levels=num_levels)
        asked = [
            cutter.question(_past(cutter, history, place), coming)
            for history, place, coming in zip(histories, places, known, strict=True)
        ]
        answers = torch.cat(
            [self._answers(asked[start : start + _CHUNK]) for start in range(0, len(asked), _CHUNK)]
        )
        pasts = [episode.query_past for episode in asked]
        base = np.concatenate([past.base for past in pasts if past is not None])
        unit = np.concatenate([past.unit for past in pasts if past is not None])
        problem = self.trained.recipe.problem
        values = base + unit * problem.point(answers).numpy()
        quantiles = {}
        if problem.levels:
            found = (problem.quantiles(answers)[..., place] for place in range(len(problem.levels)))
            quantiles = {
                level: base + unit * own.numpy()
                for level, own in zip(problem.levels, found, strict=True)
            }
        every = np.stack([values, *quantiles.values()])
        is_finite = np.isfinite(every).all(axis=(0, 2))
        if not is_finite.all():
            raise DataError(
                f"{places[int(is_finite.argmin())]}: the network's forecast is not finite; see "
                "that its numbers are neither damaged nor too large"
            )
        time = self.tasks.time or "time"
        columns = (self.tasks.sequence, time)
        taken = {*_OWN_COLUMNS, *map(_column, problem.levels)} & {
            columns[0],
            *([time] if times else []),
        }
        if taken:
            raise DataError(
                f"the column {min(taken)!r} of the table has the name of one of forecasts; rename "
                "it in the data and in the experiment"
            )
        lower, upper = (
            (None, None) if half is None else (values - unit * half, values + unit * half)
        )
        return Forecasts(names, values, lower, upper, times, columns, quantiles)

    def _half_widths(self, coverage: float) -> np.ndarray:
        if self.errors is None:
            raise DataError(
                "this network has no intervals: the errors of its run were not measured; `raymeta "
                "evaluate RUN` does so"
            )
        return self.errors.half_widths(coverage)

    def _answers(self, asked: Sequence[Episode]) -> torch.Tensor:
        """The mean answers of the networks after adaptation, float64 `[S, O]`."""
        recipe = self.trained.recipe
        # Nothing random is left in use: seeds are of dropout.
        episodes = stacked(asked, [0] * len(asked)).to(torch.device("cpu"), recipe.dtype)
        answers = []
        for network in self.networks:
            *_, last = recipe.learner.query_outputs(
                recipe.spec,
                recipe.problem,
                network,
                episodes.support,
                episodes.query,
                recipe.num_steps,
            )
            answers.append(last)
        return recipe.problem.mean_outputs(torch.stack(answers))[:, 0]

    def _inputs(self) -> Inputs:
        """Describes the columns that arrays of histories must have."""
        tasks = self.tasks
        return Inputs(
            channels=(tasks.target_name, *tasks.features, *tasks.known, *tasks.categories),
            prepare=lambda x, _: list(x),
            levels=known_levels(tasks, self.trained.identity.facts),
        )

    def _times(self, ahead: Mapping[str, Ahead]) -> tuple[pa.Array, ...]:
        """The times to come of each series; none where the steps of one are uneven."""
        if self.tasks.time is None:
            return ()
        found = list[pa.Array]()
        for name, steps in ahead.items():
            if steps.times is None:
                warnings.warn(
                    f"the steps of {self.tasks.time} of series {shown(name)} are uneven: the rows "
                    "are taken for evenly spaced, and the times of the forecasts are left out",
                    DataWarning,
                    stacklevel=4,
                )
                return ()
            found.append(as_column(steps.times))
        return tuple(found)


def _table(frame: pd.DataFrame, columns: Sequence[str], place: Path) -> pa.Table:
    """A DataFrame's columns as Arrow."""
    refuse_missing(place, [str(name) for name in frame.columns], columns)
    try:
        return pa.Table.from_pandas(frame[list(columns)], preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{place}: cannot be read: {error!s:.200}") from None


def _column(level: float) -> str:
    """The name of a quantile's column in tables."""
    return f"quantile {level}"


def _past(cutter: Cutter, history: np.ndarray, place: str) -> np.ndarray:
    """The steps of a history that the network reads, `[P, D]`."""
    if len(history) < cutter.past:
        raise DataError(
            f"{place}: has {len(history)} steps, but the network reads the last {cutter.past} "
            "(tasks.context, tasks.horizon); leave the series out, or train with a shorter context"
        )
    past = history[-cutter.past :]
    if not cutter.takes(past):
        raise DataError(
            f"{place}: its last {cutter.past} steps are the same in every season (tasks.season), "
            "or too large, so that it has no scale of its own; leave the series out: the last "
            "season again is its forecast"
        )
    return past
