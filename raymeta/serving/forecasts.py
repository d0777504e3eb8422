"""Answers requests for forecasts, without HTTP and without Ray.

A forecast needs nothing but the past of its series: no task is adapted to first, and none is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymeta.errors import DataError, shown
from raymeta.inference.forecaster import Forecaster, Forecasts
from raymeta.inference.horizon import Known
from raymeta.serving.arrow import PLACE, read_stream, stream_of
from raymeta.serving.bodies import (
    ARROW,
    JSON,
    check_keys,
    coverage_of,
    media_type,
    object_of,
    too_large,
)
from raymeta.serving.service import Answer, Answering, error_answer, json_answer, told

_HISTORY, _KNOWN = "history", "known"


@dataclass(kw_only=True)
class ForecastService(Answering):
    """Forecasts series with a trained network; every method answers, none raises."""

    forecaster: Forecaster

    def forecast(
        self, body: bytes, content_type: str | None, accept: str | None, coverage: str | None = None
    ) -> Answer:
        """Forecasts what follows the histories in a body, with a coverage also intervals.

        Args:
            body: JSON `{"history": {COLUMN: [value, …], …}}`, a row a time step, with the columns
                of the experiment, and `"known"` likewise of the steps to come where the network
                reads such; or a stream of Arrow with the history alone.
            content_type: of the body.
            accept: the media type of the answer.
            coverage: of the intervals, within (0, 1).
        """

        def work() -> Answer:
            kind = media_type(accept, "Accept")
            wanted = coverage_of(coverage)
            history, known = self._tables(body, media_type(content_type, "Content-Type"))
            with told() as messages:
                found = self.forecaster.forecast_table(history, PLACE, known=known, coverage=wanted)
            if kind == ARROW:
                return Answer(200, ARROW, stream_of(found.to_table()))
            return json_answer({"forecasts": _columns(found), "warnings": messages})

        return self._answered(work)

    def refusal(self) -> Answer:
        """Answers a request that this network cannot serve."""
        return error_answer("this network forecasts series, by POST /forecast", 404)

    def describe(self) -> Answer:
        """Describes the histories that the network reads, and the limits of requests."""

        def work() -> Answer:
            trained, tasks = self.forecaster.trained, self.forecaster.tasks
            found = {
                "experiment": trained.experiment.name,
                "problem": trained.recipe.problem.name,
                "learner": trained.experiment.learner,
                "columns": list(self.forecaster.columns),
                "known": list(tasks.known),
                "target": tasks.target_name,
                "horizon": tasks.horizon,
                "networks": len(self.forecaster.networks),
                "media_types": [JSON, ARROW],
                "limits": self.limits.model_dump(),
            }
            return json_answer(found)

        return self._answered(work)

    def _tables(self, body: bytes, kind: str) -> tuple[pa.Table, Known | None]:
        """The history, and what is known of the steps to come."""
        if len(body) > self.limits.body_bytes:
            raise too_large(self.limits)
        most = self.limits.examples * self.limits.time_steps
        if kind == ARROW:
            return read_stream(body, most), None
        found = object_of(body)
        check_keys(found, {_HISTORY}, {_KNOWN})
        history = _table(found[_HISTORY], _HISTORY, most)
        known = found.get(_KNOWN)
        if known is None:
            return history, None
        return history, Known(_table(known, _KNOWN, most), Path(_KNOWN))


def _table(columns: Any, name: str, most_rows: int) -> pa.Table:
    """A JSON object of columns as a table.

    Raises:
        DataError: it is none, a value is of another kind than the others of its column, or the
            columns are of different lengths or too long.
    """
    if not isinstance(columns, dict) or not columns:
        raise DataError(
            f"{PLACE}: {name} must be an object with a list for each column, but is "
            f"{shown(columns)}"
        )
    arrays = {}
    for column, values in columns.items():
        if not isinstance(values, list) or len(values) > most_rows:
            what = f"{len(values)} of them" if isinstance(values, list) else shown(values)
            raise DataError(
                f"{PLACE}: {name}, column {shown(column)}: must be a list of at most {most_rows} "
                f"values, but is {what}"
            )
        try:
            arrays[column] = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"{PLACE}: {name}, column {shown(column)}: all values must be numbers, or all "
                f"texts: {error!s:.200}"
            ) from None
        if pa.types.is_nested(arrays[column].type):
            raise DataError(
                f"{PLACE}: {name}, column {shown(column)}: a value must be a number or a text, "
                "but one is a list or an object"
            )
    lengths = {column: len(values) for column, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{PLACE}: {name}: its columns must be of one length, but have {lengths}")
    return pa.table(arrays)


def _columns(found: Forecasts) -> dict[str, list[Any]]:
    """The columns of a table as JSON has them: times as text, infinite ends as null."""
    columns = {}
    for name, column in found.to_table().to_pydict().items():
        columns[name] = [_plain(value) for value in column]
    return columns


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value if isinstance(value, str | int | float) else str(value)
