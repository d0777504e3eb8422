"""Categories as inputs of a network: a column for each level.

The input weights of the first layer have a row for each level, so that they are the table of
learned vectors (an embedding of the layer's size): parameters like all others, which every learner
meta-learns and adapts.  A level's column is centred by its share of meta-training and not scaled.
So zeros stand for the mean of all vectors, and an unknown level reads as that: a vector of its own
would never have been trained.

Shape legend: T time steps, L inputs of one category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from raymeta.data.sequences import Sequences, level_code
from raymeta.errors import DataError, shown
from raymeta.tasks.table_settings import MAX_LEVELS, TableTasks

# Category -> its levels in meta-training, sorted; None at the end if values are missing there.
Levels = Mapping[str, Sequence[str | None]]
_SHOWN = 3  # most levels listed in a message


def levels_of(settings: TableTasks, training: Sequences) -> Levels:
    """The levels of each category in meta-training.

    Raises:
        DataError: a column has too many.
    """
    found: dict[str, list[str | None]] = {}
    for place, name in enumerate(settings.categories, start=len(settings.features)):
        codes = np.unique(np.concatenate([x[:, place] for x in training.x]))
        is_missing = np.isnan(codes)
        texts = sorted(training.levels[code] for code in codes[~is_missing].tolist())
        if len(texts) > MAX_LEVELS:
            raise DataError(
                f"{settings.data_dir}, column {name}: has {len(texts)} levels in meta-training, "
                f"{', '.join(map(shown, texts[:_SHOWN]))} and so on, but a category may have "
                f"{MAX_LEVELS}; put rare ones together, or leave it out of tasks.categories"
            )
        found[name] = [*texts, *[None] * bool(is_missing.any())]
    return found


def columns_of_levels(x: np.ndarray, levels: Levels) -> np.ndarray:
    """Converts codes `[T, K]` of K categories to 0 and 1, `[T, Σ L]`; NaN for unknown levels."""
    parts = []
    for codes, entries in zip(x.T, levels.values(), strict=True):
        own = np.array([np.nan if text is None else level_code(text) for text in entries])
        # Two missing values are equal here.
        is_own = (codes[:, None] == own) | (np.isnan(codes)[:, None] & np.isnan(own))
        parts.append(np.where(is_own.any(axis=1, keepdims=True), is_own, np.nan))
    return np.concatenate([np.zeros((len(x), 0)), *parts], axis=1)


def names_of_levels(levels: Levels) -> list[str]:
    """The category of each of the inputs `[Σ L]`."""
    return list(chain(*([name] * len(entries) for name, entries in levels.items())))


def unknown_levels(
    x: Sequence[np.ndarray], texts: Mapping[float, str], levels: Levels, where: str
) -> list[str]:
    """Says which levels are unknown.

    Args:
        x: codes `[T, K]` of the categories, an array a sequence.
        texts: of the codes.
        levels: of meta-training.
        where: what the text calls the sequences.
    """
    found = []
    for place, (name, entries) in enumerate(levels.items()):
        codes = np.unique(np.concatenate([codes[:, place] for codes in x])).tolist()
        own = {texts.get(code) for code in codes}  # NaN has none: a missing value
        if unknown := sorted(own - set(entries), key=str):
            listed = ", ".join(
                "a missing value" if text is None else shown(text) for text in unknown[:_SHOWN]
            ) + ", …" * (len(unknown) > _SHOWN)
            found.append(
                f"{where}, column {name}: {listed} did not occur in meta-training; counts as the "
                "mean of the levels that did"
            )
    return found
