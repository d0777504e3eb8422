"""The examples of a source as users of a trained network give them, and their preparation.

Shape legend: T time steps, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raymeta.tasks.base_settings import TaskSettings
from raymeta.tasks.levels import Levels

# Examples and their names in messages -> the network's input of each: float32 `[T, D]`, or int64
# token ids `[T]`. Raises a DataError for an example that training would refuse.
Prepare = Callable[[Sequence[Any], Sequence[str]], list[Any]]
# Texts -> the words or marks `[T]` at the network's time steps.
Words = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class Inputs:
    """The inputs of the networks of a source.

    An example is numbers `[T, C]` with the `channels` in this order, or a text if there are none.
    `prepare` converts it to the network's input by the same functions as in training.  Numbers may
    be missing (NaN) if `may_miss`.  If `is_timed`, one more column holds the time of each step
    since the first, which only a table can tell; `times_are_dates` says whether those of training
    were dates or plain numbers (None: not known), where the network reads how long they take.
    `time_steps` are then the 1st and the 99th percentile, over the sequences of meta-training, of
    the median time between two steps, in seconds or in the numbers' own unit (None: not known).

    In a table every row is a time step, in the order of the column `time` if there is one.
    `sequence` is the column that tells the examples apart; without it, and for texts (the column
    `text`), every row is an example.  `target` is the column of what is to be predicted: a class,
    or a number if it is `numeric_target`.  `classes` are the ways' meanings if all tasks share
    their classes.  `stream_steps` is the longest sequence that can be read step by step; None if an
    example must be prepared as a whole, by the settings named in `prepared_by` if the source has
    others that need it not.  `scaling` is the mean and the deviation `[D]` by which `prepare`
    standardises every step, last of all; where there are `stream_steps` it does no more.

    The last channels are categories if `levels` has the levels of each in training, None for a
    missing value: only a table can tell them, and an example has their codes (`level_code`).

    `features` names the D inputs of the network at a time step if they differ from the channels;
    inputs of one name, such as the levels of a category, are one channel of explanations;
    `are_strokes` tells that the first three are x, y and whether the pen is on paper.
    `words` gives a text's word at each time step.

    Networks of standardised numbers have a `target_scale`: their mean and deviation in
    meta-training.  `target_at_end`: an example's target is that of its last row, not of all rows.
    `is_target_computed`: training computes targets from whole sequences; no column has them.
    """

    channels: tuple[str, ...]
    prepare: Prepare
    sequence: str | None = "sequence"
    time: str | None = None
    target: str = "class"
    numeric_target: bool = False
    text: str | None = None
    classes: tuple[str, ...] = ()
    stream_steps: int | None = None
    prepared_by: tuple[str, ...] = ()
    scaling: tuple[np.ndarray, np.ndarray] | None = None
    features: tuple[str, ...] = ()
    are_strokes: bool = False
    words: Words | None = None
    target_scale: tuple[float, float] | None = None
    target_at_end: bool = False
    is_target_computed: bool = False
    may_miss: bool = False
    is_timed: bool = False
    times_are_dates: bool | None = None
    time_steps: tuple[float, float] | None = None
    levels: Levels = field(default_factory=dict)


def check_facts(settings: TaskSettings, facts: Mapping[str, Any], key: str) -> None:
    """Refuses settings that differ from the training's.

    Raises:
        ValueError: naming both values.
    """
    found, trained = getattr(settings, key), facts[key]
    if found != trained:
        raise ValueError(f"tasks.{key} is {found!r:.80}, but was {trained!r:.80} in training")
