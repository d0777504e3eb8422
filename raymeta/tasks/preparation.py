"""Prepares a table's sequences for networks: fills in, cuts, takes spectra, standardises.

Shape legend: S sequences, N examples, T time steps, D features, F frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raymeta.data.missing import (
    carried,
    interpolated,
    observed,
    since_observed,
    time_differences,
)
from raymeta.data.ragged import Ragged
from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Split
from raymeta.errors import DataError
from raymeta.tasks.levels import (
    Levels,
    columns_of_levels,
    levels_of,
    names_of_levels,
)
from raymeta.tasks.sides import Windows
from raymeta.tasks.table_sections import Spectrum
from raymeta.tasks.table_settings import TableTasks

_AT_ONCE = 1024  # sequences that are standardised together: bounds memory


@dataclass(frozen=True)
class Mirror:
    """The mirror image of standardised examples: `signs` `[D]`, and `shifts` `[D]` to be added."""

    signs: np.ndarray
    shifts: np.ndarray

    @classmethod
    def of(
        cls, turned: Sequence[str], features: Sequence[str], mean: np.ndarray, deviation: np.ndarray
    ) -> Mirror:
        """Turns the signs of the `turned` features, as they were before they were standardised."""
        signs = np.array([-1.0 if name in turned else 1.0 for name in features])
        shifts = (signs - 1) * mean / deviation
        return cls(signs.astype(np.float32), shifts.astype(np.float32))

    def __call__(self, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The image of examples `[…, T, D]` of these `lengths` `[…]`; zero stays behind the end."""
        valid = np.arange(x.shape[-2])[:, None] < lengths[..., None, None]
        return np.where(valid, self.signs * x + self.shifts, x)


@dataclass(frozen=True)
class Prepared:
    """The examples of each split.

    `x` has N examples `[T, D]` in float32; those that overlap share their rows.  `longest` are the
    time steps of the longest one in any split.  `windows` say which rows of which sequence an
    example is.  `facts` are what networks must know of it.  `mirror` makes further examples for
    meta-training.
    """

    x: Mapping[Split, Ragged]
    longest: int
    windows: Mapping[Split, Windows]
    facts: Mapping[str, Any]
    mirror: Mirror | None = None

    @classmethod
    def of(
        cls,
        settings: TableTasks,
        chosen: Mapping[Split, Sequences],
        x: Mapping[Split, Ragged],
        facts: Mapping[str, Any],
    ) -> Prepared:
        """The examples `x` of the `chosen` sequences, standardised by the `facts`."""
        mean, deviation = (np.array(facts[key], dtype=np.float64) for key in ("mean", "deviation"))
        names = facts["features"]
        return cls(
            x=x,
            longest=max(int(own.lengths.max()) for own in x.values()),
            windows=windows_of(settings, chosen),
            facts=facts,
            mirror=Mirror.of(settings.mirror, names, mean, deviation) if settings.mirror else None,
        )

    @property
    def num_features(self) -> int:
        """Features of a time step."""
        return len(self.facts["features"])


def windows_of(settings: TableTasks, chosen: Mapping[Split, Sequences]) -> dict[Split, Windows]:
    """The windows that the sequences of each split are cut into."""
    size, step = settings.window, settings.window_step
    return {split: Windows.of(own.lengths, size, step) for split, own in chosen.items()}


def prepared(
    settings: TableTasks, chosen: Mapping[Split, Sequences], spectrum: Spectrum | None
) -> Prepared:
    """Prepares the sequences of each split; features are standardised by meta-training.

    Args:
        settings: of the tasks.
        chosen: the sequences of each split.
        spectrum: what to read of the spectra; None: the time steps themselves.

    Raises:
        DataError: a column has no number where one is needed, or too large ones.
    """
    levels = levels_of(settings, chosen["train"])
    features = feature_names(settings, spectrum, levels)
    windows = windows_of(settings, chosen)
    filled = {s: _filled(chosen[s], settings, levels) for s in SPLITS}
    examples = {s: _examples(filled[s], windows[s], settings, spectrum) for s in SPLITS}
    mean, deviation = _mean_and_deviation(settings, features, examples["train"])
    if levels:
        deviation[-len(names_of_levels(levels)) :] = 1.0
    # Examples that are cut from sequences stay views of them.
    x = {
        s: _cut(filled[s], windows[s], mean, deviation)
        if spectrum is None
        else Ragged.contiguous(*_standardised_rows(examples[s], mean, deviation))
        for s in SPLITS
    }
    _check_sizes(
        settings, features, [mean, deviation, *(_largest(own.values) for own in x.values())]
    )
    facts: dict[str, Any] = {
        "features": features,
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
    }
    if levels:
        facts["levels"] = {name: list(entries) for name, entries in levels.items()}
    if settings.window is not None:
        facts["window"] = [settings.window, settings.window_step or settings.window]
    if spectrum is not None:
        facts["spectrum"] = spectrum.model_dump()
    return Prepared.of(settings, chosen, x, facts)


def prepared_examples(
    settings: TableTasks,
    levels: Levels,
    mean: np.ndarray,
    deviation: np.ndarray,
    examples: Sequence[np.ndarray],
    names: Sequence[str],
) -> list[np.ndarray]:
    """Prepares further examples `[T, D]` for a trained network, float32.

    Args:
        settings: that the network was trained with.
        levels: of its categories in meta-training.
        mean: of its features in meta-training, `[D]`.
        deviation: likewise.
        examples: as a user has them; where times count, a last column holds them.
        names: what messages call each of them.

    Raises:
        DataError: an example is longer than those of the training, or has too large numbers.
    """
    size, found = len(settings.channels), []
    for name, x in zip(names, examples, strict=True):
        if len(x) > settings.example_steps:
            key = "tasks.max_steps" if settings.window is None else "tasks.window"
            raise DataError(
                f"{name}: has {len(x)} time steps, but the network was trained on "
                f"{settings.example_steps} at most ({key}); cut the sequence up"
            )
        times = x[:, size] if x.shape[1] > size else None
        own = _filled_in(x[:, :size], times, settings, levels, name)
        if settings.spectrum is not None:
            own = spectrum_of(own, settings.spectrum, settings.example_steps)
        with np.errstate(over="ignore"):
            found.append(_standardised(own, mean, deviation).astype(np.float32))
        if not np.isfinite(found[-1]).all():
            raise DataError(
                f"{name}: holds numbers too large to be standardised; mend them, or see that they "
                "are in the units of the training data"
            )
    return found


def spectrum_of(x: np.ndarray, spectrum: Spectrum, num_steps: int) -> np.ndarray:
    """The square roots of the amplitudes of an example's lowest frequencies.

    Frequency k is k / `num_steps` cycles a row, whatever the example's length: behind its end it
    counts as zero.  Frequency 0 is the level.  The square root keeps the strongest frequency from
    being all that counts.

    Args:
        x: `[T, D]`.
        spectrum: how many frequencies, and how many of them a time step holds.
        num_steps: rows of the longest example, at least T.

    Returns:
        `[F / per_step, per_step * D]`: at each time step the next frequencies of every column.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        transformed = np.fft.rfft(x, n=num_steps, axis=0)[: spectrum.frequencies]
        amplitudes: np.ndarray = np.sqrt(np.abs(transformed) / np.sqrt(len(x)))
    return amplitudes.reshape(len(amplitudes) // spectrum.per_step, -1)


def _examples(
    sequences: Sequences, windows: Windows, settings: TableTasks, spectrum: Spectrum | None
) -> list[np.ndarray]:
    found = [
        sequences.x[own][start:end]
        for own, start, end in zip(windows.owner, windows.starts, windows.ends, strict=True)
    ]
    if spectrum is None:
        return found
    return [spectrum_of(x, spectrum, settings.example_steps) for x in found]


def _cut(filled: Sequences, windows: Windows, mean: np.ndarray, deviation: np.ndarray) -> Ragged:
    """The standardised windows of the filled-in sequences; rows that none reads are zeros."""
    values, lengths = _standardised_rows(filled.x, mean, deviation)
    starts = (np.cumsum(lengths) - lengths)[windows.owner] + windows.starts
    found = Ragged(values, starts, windows.lengths)
    opened = np.bincount(starts, minlength=len(values) + 1)
    closed = np.bincount(starts + found.lengths, minlength=len(values) + 1)
    values[np.cumsum(opened - closed)[:-1] == 0] = 0.0
    return found


def _standardised_rows(
    arrays: Sequence[np.ndarray], mean: np.ndarray, deviation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all arrays in float32, `[R, D]`, and how many each array has."""
    lengths = np.array([len(x) for x in arrays], dtype=np.int64)
    values = np.empty((int(lengths.sum()), len(mean)), dtype=np.float32)
    end = 0
    with np.errstate(over="ignore"):
        for first in range(0, len(arrays), _AT_ONCE):
            rows = np.concatenate(list(arrays[first : first + _AT_ONCE]))
            values[end : end + len(rows)] = _standardised(rows, mean, deviation)
            end += len(rows)
    return values, lengths


def feature_names(settings: TableTasks, spectrum: Spectrum | None, levels: Levels) -> list[str]:
    """The names of the numbers that the network reads at a time step, in their order.

    All levels of a category have its name.
    """
    names = list(settings.features)
    if settings.missing == "mask":
        names += [f"{name} observed" for name in settings.features]
        names += [f"{name} time since observed" for name in settings.features]
    names += ["time difference"] if settings.time_differences else []
    names += names_of_levels(levels)
    if spectrum is None:
        return names
    return [f"{name} +{place}" for place in range(spectrum.per_step) for name in names]


def _filled(sequences: Sequences, settings: TableTasks, levels: Levels) -> Sequences:
    """Fills the sequences in; NaN before the first observation.

    Raises:
        DataError: a sequence has no number in a column to interpolate.
    """
    if settings.missing == "refuse" and not settings.time_differences and not levels:
        return sequences
    times = sequences.times or (None,) * len(sequences)
    filled = (
        _filled_in(x, own, settings, levels, place)
        for x, own, place in zip(sequences.x, times, sequences.ids, strict=True)
    )
    return replace(sequences, x=tuple(filled))


def _filled_in(
    x: np.ndarray, times: np.ndarray | None, settings: TableTasks, levels: Levels, place: str
) -> np.ndarray:
    """Fills one sequence `[T, C]` in, `[T, D]`; without times its steps are even."""
    x, codes = np.split(x, [len(settings.features)], axis=1)
    if times is None:
        times = np.arange(len(x), dtype=np.float64)
    parts = [x]
    if settings.missing == "interpolate":
        parts = [interpolated(x, times)]
        empty = np.isnan(parts[0]).any(axis=0)
        if empty.any():
            raise DataError(
                f"{place}: column {settings.features[int(np.argmax(empty))]} has "
                "no number in this sequence, so that nothing can be interpolated; set "
                "tasks.missing to mask, or remove the sequence or the column"
            )
    elif settings.missing == "mask":
        parts = [carried(x), observed(x), since_observed(x, times)]
    if settings.time_differences:
        parts.append(time_differences(times))
    parts.append(columns_of_levels(codes, levels))
    return np.concatenate(parts, axis=1)


def _mean_and_deviation(
    settings: TableTasks, features: Sequence[str], training: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of each feature over all steps that have it, `[D]` each."""
    steps = np.concatenate(training)
    unseen = np.isnan(steps).all(axis=0)
    if unseen.any():
        raise DataError(
            f"{settings.data_dir}, column {features[int(np.argmax(unseen))]}: has no number in "
            "meta-training; leave it out of tasks.features"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = np.nanmean(steps, axis=0), np.nanstd(steps, axis=0)
    deviation[deviation == 0] = 1.0
    return mean, deviation


def _largest(standardised: np.ndarray) -> np.ndarray:
    """The largest magnitude of each feature of rows `[R, D]`."""
    largest: np.ndarray = np.maximum(standardised.max(axis=0), -standardised.min(axis=0))
    return largest


def _check_sizes(
    settings: TableTasks, features: Sequence[str], values: Sequence[np.ndarray]
) -> None:
    """Refuses features of which networks would see infinities, or nothing.

    Raises:
        DataError: naming the first column for which one of the `values` `[D]` is not finite.
    """
    is_finite = np.isfinite(np.stack(values)).all(axis=0)
    if not is_finite.all():
        raise DataError(
            f"{settings.data_dir}, column {features[int(np.argmin(is_finite))]}: holds "
            "numbers too large to be standardised; mend them, rescale the column, or leave it out "
            "of tasks.features"
        )


def _standardised(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The features in deviations from the mean; the mean where nothing was observed so far."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = np.where(np.isnan(x), 0.0, (x - mean) / deviation)
    return found
