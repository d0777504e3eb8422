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
from typing import Any

import numpy as np

from raymeta.data.sequences import Sequences, level_code
from raymeta.episodes import Split
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
    num_categories = len(settings.categories)  # the last columns
    for place, name in enumerate(settings.categories, start=-num_categories):
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


def known_levels(settings: TableTasks, facts: Mapping[str, Any]) -> Levels:
    """The levels that the facts of a training have, in the order of the columns.

    Raises:
        ValueError: they are those of other columns.
    """
    found = facts.get("levels", {})
    if sorted(found) != sorted(settings.categories):
        raise ValueError(
            f"tasks.categories is {settings.categories!r:.80}, but was {list(found)!r:.80} in "
            "training"
        )
    return {name: found[name] for name in settings.categories}  # JSON files sort their keys


def level_facts(settings: TableTasks, training: Sequences) -> dict[str, Any]:
    """The levels of meta-training, and the share `[Σ L]` of its steps that each has.

    Raises:
        DataError: a column has too many levels.
    """
    levels = levels_of(settings, training)
    if not levels:
        return {}
    codes = np.concatenate([x[:, -len(levels) :] for x in training.x])
    shares = columns_of_levels(codes, levels).mean(axis=0)
    return {"levels": dict(levels), "shares": shares.tolist()}


def with_levels(x: np.ndarray, settings: TableTasks, facts: Mapping[str, Any]) -> np.ndarray:
    """A series `[L, C]` with the centred columns of levels in place of its codes, `[L, D]`.

    The codes are its last columns; the levels stand before what is known in advance.
    """
    levels = known_levels(settings, facts)
    if not levels:
        return x
    end = x.shape[1] - len(levels)
    num_known = len(settings.known) + 2 * len(settings.calendar)
    own, known, codes = np.split(x, [end - num_known, end], axis=1)
    centred = columns_of_levels(codes, levels) - facts["shares"]
    return np.concatenate([own, np.nan_to_num(centred), known], axis=1)


def names_of_levels(levels: Levels) -> list[str]:
    """The category of each of the inputs `[Σ L]`."""
    return list(chain(*([name] * len(entries) for name, entries in levels.items())))


def unknown_levels(sequences: Sequences, levels: Levels, where: str) -> list[str]:
    """Says which levels of the sequences are unknown.

    Args:
        sequences: whose last columns are the codes of the categories.
        levels: of meta-training.
        where: what the text calls the sequences.
    """
    found = []
    for place, (name, entries) in enumerate(levels.items(), start=-len(levels)):
        codes = np.unique(np.concatenate([x[:, place] for x in sequences.x])).tolist()
        own = {sequences.levels.get(code) for code in codes}  # NaN has none: a missing value
        if unknown := sorted(own - set(entries), key=str):
            listed = ", ".join(
                "a missing value" if text is None else shown(text) for text in unknown[:_SHOWN]
            ) + ", …" * (len(unknown) > _SHOWN)
            found.append(
                f"{where}, column {name}: {listed} did not occur in meta-training; counts as the "
                "mean of the levels that did"
            )
    return found


def unknown_in_splits(
    settings: TableTasks, chosen: Mapping[Split, Sequences], facts: Mapping[str, Any]
) -> tuple[str, ...]:
    """Says which levels of each split are unknown."""
    levels = known_levels(settings, facts)
    if not levels:
        return ()
    return tuple(
        text
        for split, own in chosen.items()
        for text in unknown_levels(own, levels, f"meta-{split} split")
    )
