"""Forecasts of new series by a trained network.

The past of a series is both what the network adapts to and what it reads, so that forecasting needs
no more than the past.

Shape legend: R trainings, S series, T steps of a history, D columns (the target is the first), P
steps of the past, H horizon, Q levels of quantiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params
from raymeta.storage.paths import AnyPath
from raymeta.tasks.forecast import Cutter
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.table_settings import TableTasks

_CHUNK = 256  # series forecast at once; bounds memory, never changes an answer
_FRAME = Path("the DataFrame")  # what messages call it
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

    def forecast(self, history: Any, *, coverage: float | None = None) -> Forecasts:
        """What follows the history of each series, `tasks.horizon` steps ahead.

        The network adapts to the last `Cutter.past` steps of each history; earlier ones are not
        read.

        Args:
            history: a DataFrame with the experiment's columns, one row a step, of any number of
                series; or a list of arrays `[T, D]`, each the history of a series (`[T]` if there
                is one column), the target first and then the features in their order.
            coverage: for intervals about the point forecast that hold the values to come with this
                probability at least, on average over new series like those of meta-validation and
                at each step by itself; None for no intervals.  See `ForecastErrors.half_widths`.

        Raises:
            DataError: saying which series breaks which rule.

        Warns:
            DataWarning: the steps of time are uneven, so that the times to come are not known.
        """
        if isinstance(history, pd.DataFrame):
            refuse_missing(_FRAME, [str(name) for name in history.columns], self.columns)
            try:
                table = pa.Table.from_pandas(history[list(self.columns)], preserve_index=False)
            except (pa.ArrowException, ValueError, TypeError) as error:
                raise DataError(f"{_FRAME}: cannot be read: {error!s:.200}") from None
            return self.forecast_table(table, _FRAME, coverage=coverage)
        raw = read_examples(history, self._inputs())
        names = [name.replace("example", "series") for name in raw.names]
        numbers = tuple(str(number) for number in range(1, len(names) + 1))
        return self._forecast(raw.x, names, numbers, (), coverage)

    def forecast_table(
        self, table: pa.Table, place: AnyPath, *, coverage: float | None = None
    ) -> Forecasts:
        """`forecast` of a table that was read before; `place` is what messages call it."""
        tasks = self.tasks
        reader = TableReader(
            sequence=tasks.sequence,
            target=None,
            features=(tasks.target_name, *tasks.features),
            time=tasks.time,
        )
        found = reader.sequences(table, place)
        names = found.groups[tasks.sequence]
        times: Sequence[pa.Array] = ()
        if tasks.time is not None:
            times = self._times(table, names)
        return self._forecast(list(found.x), list(found.ids), names, tuple(times), coverage)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of histories must have."""
        tasks = self.tasks
        named = (tasks.sequence, tasks.time, tasks.target_name, *tasks.features)
        return tuple(name for name in named if name is not None)

    def _forecast(
        self,
        histories: Sequence[np.ndarray],
        places: Sequence[str],
        names: tuple[str, ...],
        times: tuple[pa.Array, ...],
        coverage: float | None,
    ) -> Forecasts:
        half = None if coverage is None else self._half_widths(coverage)
        cutter = Cutter.of(self.tasks)
        asked = [
            cutter.question(_past(cutter, history, place))
            for history, place in zip(histories, places, strict=True)
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
        """What arrays of histories are checked against."""
        return Inputs(
            channels=(self.tasks.target_name, *self.tasks.features), prepare=lambda x, _: list(x)
        )

    def _times(self, table: pa.Table, names: Sequence[str]) -> list[pa.Array]:
        """The times to come of each series; none where the steps of one are uneven."""
        tasks = self.tasks
        frame = pd.DataFrame(
            {
                "series": np.array(table[tasks.sequence].cast(pa.string()).to_pylist()),
                "time": _clock(table[str(tasks.time)]),
            }
        )
        known = {str(name): times for name, times in frame.groupby("series", sort=False)["time"]}
        found = []
        for name in names:
            coming = _coming(known[name].sort_values(), tasks.horizon)
            if coming is None:
                warnings.warn(
                    f"the steps of {tasks.time} of series {shown(name)} are uneven: the rows are "
                    "taken for evenly spaced, and the times of the forecasts are left out",
                    DataWarning,
                    stacklevel=4,
                )
                return []
            found.append(coming)
        return found


def _column(level: float) -> str:
    """What a table calls a quantile."""
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


def _clock(column: pa.ChunkedArray) -> Any:
    """A column of times as pandas orders it: dates, or numbers."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = pd.Series(column.to_pylist())
        numbers = pd.to_numeric(texts, errors="coerce")
        if numbers.notna().all():
            return numbers
        return pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=False)
    if pa.types.is_date(column.type):
        return pd.to_datetime(pd.Series(column.to_pylist()))
    return column.to_pandas()


def _coming(times: pd.Series, horizon: int) -> pa.Array | None:
    """The next `horizon` times of a series; None where its steps are uneven."""
    if pd.api.types.is_datetime64_any_dtype(times):
        index = pd.DatetimeIndex(times)
        if len(index) < 3 or index.hasnans:
            return None
        with warnings.catch_warnings():  # it announces another type, which serves as well
            warnings.simplefilter("ignore")
            step = pd.infer_freq(index)
        if step is None:
            return None
        coming = pd.date_range(index[-1], periods=horizon + 1, freq=step)[1:]
        is_date = coming.tz is None and (coming == coming.normalize()).all()
        return pa.array(coming.date if is_date else coming)
    if not pd.api.types.is_numeric_dtype(times) or len(times) < 2:
        return None
    values = times.to_numpy()
    steps = np.diff(values)
    if not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return None
    return pa.array(values[-1] + steps[0] * np.arange(1, horizon + 1))
