"""What an example of a source is to whoever uses a trained network, and how the network reads it.

Shape legend: T time steps, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymeta.tasks.settings import TaskSettings

# Examples, and what messages call each of them -> what the network reads of each: float32 `[T, D]`,
# or int64 token ids `[T]`.  It raises a DataError for an example that training would refuse.
Prepare = Callable[[Sequence[Any], Sequence[str]], list[Any]]
# Texts -> the words or marks `[T]` that the network's time steps stand for.
Words = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class Inputs:
    """The inputs of the networks of a source.

    An example is numbers `[T, C]` with the `channels` in this order, or a text where there are
    none.  `prepare` makes of it what the network reads, by the same functions as in training.
    Numbers may be missing (NaN) if `may_miss`.  If `is_timed`, one more column holds the time of
    each step since the first, which only a table can tell.

    In a table every row is a time step, in the order of the column `time` if there is one.
    `sequence` is the column that tells the examples apart; without it, and for texts (the column
    `text`), every row is an example.  `target` is the column of what is to be predicted: a class,
    or a number if it is `numeric_target`.  `classes` are what the ways stand for where all tasks
    share their classes.  `stream_steps` is the longest sequence that can be read step by step; None
    where an example is prepared as a whole.

    `features` are the D numbers that the network reads at a time step, by name, where they are not
    the channels; `are_strokes` tells that the first three are x, y and whether the pen is on paper.
    `words` makes of texts what stands at each time step.
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
    features: tuple[str, ...] = ()
    are_strokes: bool = False
    words: Words | None = None
    may_miss: bool = False
    is_timed: bool = False


def check_facts(settings: TaskSettings, facts: Mapping[str, Any], key: str) -> None:
    """Refuses settings that are not those of the training.

    Raises:
        ValueError: naming both values.
    """
    found, trained = getattr(settings, key), facts[key]
    if found != trained:
        raise ValueError(f"tasks.{key} is {found!r:.80}, but was {trained!r:.80} in training")
