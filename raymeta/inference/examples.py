"""Examples as their user has them: arrays, texts or tables, checked and named for messages.

Shape legend: N examples, T time steps, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from raymeta.data.missing import typical_steps
from raymeta.data.readers.arrow import refuse_missing
from raymeta.data.readers.table import TableReader
from raymeta.data.sequences import Sequences
from raymeta.errors import DataError, DataWarning, shown
from raymeta.storage.paths import AnyPath
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.levels import unknown_levels

Axes = Literal["NTC", "NCT"]
_DATAFRAME = Path("the DataFrame")  # what messages call it
_ROW = "row number"  # the column of a table whose rows are examples
# How far beyond those of meta-training steps may be before their unit is in doubt: less than what
# lies between any two neighbours of milliseconds, seconds, minutes, hours and days (24 or more).
_FAR = 20.0


@dataclass(frozen=True)
class RawExamples:
    """N examples as they are before preparation.

    `x` has numbers of each, float64, as `Inputs` describes them, or its text.  `names` are what
    messages call them, `ids` what a table calls them (empty without a column that does).  `y` has
    the targets of a table that was asked for them.
    """

    x: list[Any]
    names: list[str]
    ids: tuple[str, ...] = ()
    y: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)


def read_examples(
    x: Any, inputs: Inputs, *, axes: Axes | None = None, with_targets: bool = False
) -> RawExamples:
    """Reads what a user calls examples.

    Args:
        x: numbers as a list of arrays `[T, C]` of different lengths or as an array `[N, T, C]`; an
            array `[N, T]` if there is one channel; a list of DataFrames with a column for each
            channel; texts as a list; one DataFrame of all; or examples that were read before.
        inputs: of the networks that will read them.
        axes: the order of the axes; None for `NTC`, where the shape leaves no doubt.
        with_targets: also reads the column of targets, which only a DataFrame has.

    Raises:
        DataError: naming the example, the rule, what was found and the remedy.
    """
    if isinstance(x, RawExamples):
        return x
    if isinstance(x, pd.DataFrame):
        if axes is not None:
            raise DataError(f"axes are for arrays, but got a DataFrame and axes={axes!r}")
        return _of_frame(x, inputs, with_targets)
    if with_targets:
        raise DataError("y is missing; only a DataFrame has the targets with the examples")
    if inputs.text is not None:
        return _of_texts(x, "example")
    return _of_arrays(x, inputs, axes)


def table_examples(
    table: pa.Table, inputs: Inputs, place: AnyPath, *, with_targets: bool
) -> RawExamples:
    """Reads a table that has the columns of `inputs`; others are left alone.

    Args:
        table: of texts or of numbers, which may stand as text.
        inputs: of the networks that will read them.
        place: what messages call the table.
        with_targets: also reads the column of targets: classes as text, or numbers.

    Raises:
        DataError: naming place, row, column, rule and remedy.

    Warns:
        DataWarning: a category has a level that training lacked, or the times seem to be in another
            unit than those of training.
    """
    refuse_computed(inputs, place, with_targets=with_targets)
    check_columns(table.schema.names, inputs, place, with_targets=with_targets)
    if inputs.text is not None:
        return _of_text_table(table, inputs, place, with_targets)
    sequence = inputs.sequence
    if sequence is None:
        sequence = _ROW
        table = table.append_column(_ROW, pa.array(np.arange(1, table.num_rows + 1)))
    has_numbers = with_targets and inputs.numeric_target
    reader = TableReader(
        sequence=sequence,
        target=inputs.target if with_targets and not has_numbers else None,
        features=(
            *[inputs.target] * has_numbers,
            *(name for name in inputs.channels if name not in inputs.levels),
        ),
        time=inputs.time,
        may_miss=inputs.may_miss,
        categories=tuple(inputs.levels),
    )
    table = table.select(list(reader.columns))
    found = reader.sequences(table, place)
    _check_times(found, inputs, place)
    _warn_of_steps(found, inputs, place)
    x, y = list(found.x), np.array(found.classes) if with_targets else None
    if has_numbers:
        for name, steps in zip(found.ids, x, strict=True):
            if (steps[:, 0] != steps[0, 0]).any() and not inputs.target_at_end:
                raise DataError(
                    f"{name}: column {inputs.target} must be the same in all rows of a sequence"
                )
        y = np.array([steps[-1:, 0] for steps in x])
        x = [steps[:, 1:] for steps in x]
    if inputs.levels:
        for text in unknown_levels(found, inputs.levels, str(place)):
            warnings.warn(text, DataWarning, stacklevel=2)
    if inputs.is_timed:
        x = [np.c_[steps, times] for steps, times in zip(x, found.times, strict=True)]
    ids = found.groups[sequence] if inputs.sequence is not None else ()
    return RawExamples(x, list(found.ids), ids, y)


def _check_times(found: Sequences, inputs: Inputs, place: AnyPath) -> None:
    """Refuses dates where training had numbers, whose unit nobody knows, and the reverse."""
    wanted = inputs.times_are_dates
    if wanted is None or found.are_dates is None or found.are_dates == wanted:
        return
    kinds = ("numbers", "dates")
    remedy = (
        "give dates such as 2026-01-31T12:00, whose differences it reads in seconds"
        if wanted
        else "give numbers in the unit of the training data"
    )
    raise DataError(
        f"{place}, column {inputs.time}: holds {kinds[found.are_dates]}, but the network was "
        f"trained on {kinds[wanted]}; {remedy}"
    )


def _warn_of_steps(found: Sequences, inputs: Inputs, place: AnyPath) -> None:
    """Warns of time steps that are far from those of training, as in another unit."""
    if inputs.time_steps is None or not len(steps := typical_steps(found.times)):
        return
    typical, (low, high) = float(np.median(steps)), inputs.time_steps
    if low / _FAR <= typical <= high * _FAR:
        return
    unit, remedy = "", "give the times in the unit of the training data"
    if inputs.times_are_dates:
        unit, remedy = " seconds", "see that the dates are right"
    warnings.warn(
        f"{place}, column {inputs.time}: the typical time between two rows is {typical:.4g}{unit}, "
        f"but in meta-training it was {low:.4g} to {high:.4g}{unit}, and the network reads these "
        f"times; {remedy}, or expect less than the meta-test says",
        DataWarning,
        stacklevel=3,
    )


def needed_columns(inputs: Inputs, *, with_targets: bool) -> list[str]:
    """The columns that a table of examples must have."""
    named = [inputs.sequence, *([inputs.target] * with_targets), inputs.time, inputs.text]
    return [name for name in (*named, *inputs.channels) if name is not None]


def check_columns(
    names: Sequence[str], inputs: Inputs, place: AnyPath, *, with_targets: bool
) -> None:
    """Refuses a table without one of the columns, or with two of a name.

    Raises:
        DataError: naming the column, and the nearest that there is.
    """
    refuse_missing(place, names, needed_columns(inputs, with_targets=with_targets))


def refuse_computed(inputs: Inputs, place: AnyPath, *, with_targets: bool) -> None:
    """Refuses to read the targets of a table that has none.

    Raises:
        DataError: saying where they must come from.
    """
    if with_targets and inputs.is_target_computed:
        raise DataError(
            f"{place}: no column has the targets, which training computed from whole sequences and "
            f"their column {inputs.target!r}; give them beside the examples, as model.adapt(x, y)"
        )


def _of_text_table(
    table: pa.Table, inputs: Inputs, place: AnyPath, with_targets: bool
) -> RawExamples:
    assert inputs.text is not None, "its examples are texts"
    found = _of_texts(table[inputs.text].to_pylist(), f"{place}, row")
    if not with_targets:
        return found
    rows = pa.array(np.arange(table.num_rows))
    reader = TableReader(sequence=_ROW, target=inputs.target, features=())
    labelled = table.select([inputs.target]).append_column(_ROW, rows)
    return replace(found, y=np.array(reader.sequences(labelled, place).classes))


def _of_frame(frame: pd.DataFrame, inputs: Inputs, with_targets: bool) -> RawExamples:
    names = [str(name) for name in frame.columns]
    refuse_computed(inputs, _DATAFRAME, with_targets=with_targets)
    check_columns(names, inputs, _DATAFRAME, with_targets=with_targets)
    columns = needed_columns(inputs, with_targets=with_targets)
    try:
        table = pa.Table.from_pandas(frame[columns], preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{_DATAFRAME}: cannot be read: {' '.join(map(str, error.args))}") from None
    found = table_examples(table, inputs, _DATAFRAME, with_targets=with_targets)
    if not with_targets or inputs.numeric_target:
        return found
    # The classes as the DataFrame has them, which may be numbers, in place of their text.
    first = frame if inputs.sequence is None else frame.drop_duplicates(inputs.sequence)
    return replace(found, y=first[inputs.target].to_numpy())


def _of_texts(x: Any, name: str) -> RawExamples:
    """Texts, numbered from 1 behind `name`."""
    if isinstance(x, str) or not hasattr(x, "__len__") or not hasattr(x, "__iter__"):
        raise DataError(f"x must be a list of texts, but got {shown(x)}")
    texts = list(x)
    names = [f"{name} {number}" for number in range(1, len(texts) + 1)]
    if not texts:
        raise DataError("x must hold one example at least, but is empty")
    for place, text in zip(names, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: must be a text, but got {shown(text)}")
    return RawExamples([str(text) for text in texts], names)


def _of_arrays(x: Any, inputs: Inputs, axes: Axes | None) -> RawExamples:
    if axes not in (None, "NTC", "NCT"):
        raise DataError(f"axes must be 'NTC' or 'NCT', but got {shown(axes)}")
    if inputs.levels:
        raise DataError(
            f"x must be a DataFrame or a table with the columns {', '.join(inputs.channels)}: the "
            f"network reads categories ({', '.join(inputs.levels)}), which arrays of numbers lack"
        )
    if inputs.is_timed:
        raise DataError(
            f"x must be a DataFrame or a table with the column {inputs.time!r}: the network reads "
            "the times of the steps (tasks.missing, tasks.time_differences), which arrays lack"
        )
    arrays = _numbers(x, inputs.channels, axes)
    if not arrays:
        raise DataError("x must hold one example at least, but is empty (0 sample(s))")
    names = [f"example {number}" for number in range(1, len(arrays) + 1)]
    size = len(inputs.channels)
    # A list has [T, C] by definition: whether it is taken must not depend on its lengths.
    if axes is None and size > 1 and tuple(getattr(x, "shape", ()))[1:] == (size, size):
        raise DataError(
            f"x has as many time steps as channels ({size}), so that its shape does not tell them "
            "apart; say axes='NTC' for time steps before channels, or axes='NCT'"
        )
    order = axes or _order_of(arrays, inputs)
    found = [array.T if order == "NCT" else array for array in arrays]
    for name, array in zip(names, found, strict=True):
        _check_one(name, array, inputs, order)
    return RawExamples(found, names)


def _numbers(x: Any, channels: Sequence[str], axes: Axes | None) -> list[np.ndarray]:
    """The arrays of all examples as float64, two axes each, in the order that they have."""
    if hasattr(x, "detach"):  # a tensor
        x = x.detach().cpu().numpy()
    is_array = isinstance(x, np.ndarray) and x.dtype != object
    if not is_array and not isinstance(x, list | tuple | np.ndarray):
        raise DataError(
            f"x must be a list of arrays [T, C], an array [N, T, C] or a DataFrame, but got "
            f"{type(x).__name__}"
        )
    if is_array and x.ndim not in (2, 3):
        raise DataError(f"x must be an array [N, T, C], but has the shape {list(x.shape)}")
    arrays, num_channels = [], len(channels)
    for number, one in enumerate(x, start=1):
        is_frame = isinstance(one, pd.DataFrame)
        own = _named_channels(one, channels, Path(f"example {number}"), axes) if is_frame else one
        try:
            array = np.asarray(own)
            if array.dtype == "O" and any(isinstance(v, str | bytes) for v in array.flat):
                raise DataError(f"example {number}: must be numbers [T, C], but holds text")
            # Numbers in texts and dates would be converted without a word.
            array = array.astype(
                np.float64, casting="unsafe" if array.dtype == "O" else "same_kind"
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"example {number}: must be numbers [T, C]: {error!s:.200}") from None
        if array.ndim == 1 and num_channels == 1:
            array = array[None] if axes == "NCT" else array[:, None]
        if array.ndim != 2:
            raise DataError(
                f"example {number}: must be numbers [T, C] with C = {num_channels}, but has the "
                f"shape {list(array.shape)}"
            )
        arrays.append(array)
    return arrays


def _named_channels(
    frame: pd.DataFrame, channels: Sequence[str], place: AnyPath, axes: Axes | None
) -> np.ndarray:
    """One example `[T, C]` of a frame with a column for each channel, in the network's order.

    Columns that were never named are taken as they stand.
    """
    if axes is not None:
        raise DataError(f"axes are for arrays, but {place} is a DataFrame and axes={axes!r}")
    if isinstance(frame.columns, pd.RangeIndex):
        return frame.to_numpy()
    names = [str(name) for name in frame.columns]
    refuse_missing(place, names, channels)
    return frame.iloc[:, [names.index(name) for name in channels]].to_numpy()


def _order_of(arrays: Sequence[np.ndarray], inputs: Inputs) -> Axes:
    """`NTC`, unless the shapes allow `NCT` alone, which is refused: it must be said."""
    size = len(inputs.channels)
    fits = {
        "NTC": all(array.shape[1] == size for array in arrays),
        "NCT": all(array.shape[0] == size for array in arrays),
    }
    if fits["NCT"] and not fits["NTC"]:
        raise DataError(
            f"x must have {size} channels ({', '.join(inputs.channels)}) as its last axis, but has "
            f"them before the time steps (example 1: {list(arrays[0].shape)}); if so, say "
            "axes='NCT'"
        )
    return "NTC"


def _check_one(name: str, array: np.ndarray, inputs: Inputs, order: Axes) -> None:
    size = len(inputs.channels)
    if array.shape[1] != size or not len(array):
        wanted = "[T, C]" if order == "NTC" else "[C, T]"
        shape = array.shape if order == "NTC" else array.shape[::-1]
        raise DataError(
            f"{name}: must be numbers {wanted} with T ≥ 1 and C = {size} channels "
            f"({', '.join(inputs.channels)}), but has the shape {list(shape)}"
        )
    is_finite = np.isfinite(array) | (np.isnan(array) if inputs.may_miss else False)
    if not is_finite.all():
        step, channel = (int(place) for place in np.argwhere(~is_finite)[0])
        raise DataError(
            f"{name}, time step {step + 1}, channel {inputs.channels[channel]}: "
            f"{array[step, channel]} is not a finite number; mend it, or leave the step "
            "out (a list of arrays may have different lengths)"
        )
