"""Episodes: the support and query sets a meta-learner adapts to and is judged on.

Shape legend: E episodes, N examples, T time steps, D features, O outputs, W ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
NO_CLASS = -100  # of a class made up for one episode; `cross_entropy` ignores it
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Examples:
    """A batch of example sets, one per episode.

    `x` is float `[E, N, T, D]`, or int64 token ids `[E, N, T]`; `y` is int64 `[E, N]` for
    classification or float `[E, N, O]` for regression.  `lengths` (int64 `[E, N]`, each ≥ 1) counts
    the valid time steps of each example; None means that all T are valid.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Examples:
        """The same examples on `device`, floating-point values in `dtype`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        lengths = None if self.lengths is None else self.lengths.to(device)
        return Examples(move(self.x), move(self.y), lengths)

    def __getitem__(self, part: slice) -> Examples:
        lengths = None if self.lengths is None else self.lengths[part]
        return Examples(self.x[part], self.y[part], lengths)


@dataclass(frozen=True)
class Episodes:
    """Support and query sets of E episodes.

    `way_classes` (int64 `[E, W]`, classification only) are the classes of the whole distribution
    that the labels 0 … W - 1 stand for, NO_CLASS for one that is none of them.  `seeds` (int64
    `[E]`) are the seeds of whatever else is random about an episode, such as dropout: like its
    examples they depend on the episode alone, never on the batch it is in.
    """

    support: Examples
    query: Examples
    seeds: Tensor
    way_classes: Tensor | None = None

    def __len__(self) -> int:
        return self.support.y.shape[0]

    def __getitem__(self, part: slice) -> Episodes:
        classes = None if self.way_classes is None else self.way_classes[part]
        return Episodes(self.support[part], self.query[part], self.seeds[part], classes)

    def to(self, device: torch.device, dtype: torch.dtype) -> Episodes:
        """The same episodes on `device`, floating-point values in `dtype`."""
        return replace(
            self, support=self.support.to(device, dtype), query=self.query.to(device, dtype)
        )


@dataclass(frozen=True)
class InputSpec:
    """What one example looks like to a network.

    Exactly one of `num_features` (real-valued sequences) and `vocabulary_size` (token ids, 0 being
    padding) is set.  `num_outputs` is the number of ways of a classification episode or the
    dimension of a regression target.
    """

    kind: Literal["classification", "regression"]
    num_outputs: int
    num_features: int | None = None
    vocabulary_size: int | None = None


@dataclass(frozen=True)
class Episode:
    """One episode in numpy: the arrays of `Episodes` without the leading axis.

    `support_ids` and `query_ids` name the underlying recordings, so that anyone can check that no
    recording is in both.  `way_classes` is as in `Episodes`.
    """

    support_x: np.ndarray
    support_y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    support_lengths: np.ndarray | None = None
    query_lengths: np.ndarray | None = None
    support_ids: np.ndarray | None = None
    query_ids: np.ndarray | None = None
    way_classes: np.ndarray | None = None


@dataclass(frozen=True)
class TaskDistribution:
    """A source of episodes with disjoint meta-train, meta-val and meta-test tasks.

    `sample_episode(split, rng)` draws one episode; `sample_joint` does for joint training, where no
    class may be made up (None: `sample_episode` makes up none).  `class_mean_features` maps `x`
    (and lengths) of one example set to the vectors `[E, N, F]` that the class-mean control
    compares; None for regression.
    """

    name: str
    input_spec: InputSpec
    seed: int
    sample_episode: Callable[[Split, np.random.Generator], Episode]
    class_mean_features: Callable[[Examples], Tensor] | None = None
    num_train_classes: int = 0
    fixed_labels: bool = False
    note: str = ""
    sample_joint: Callable[[Split, np.random.Generator], Episode] | None = None

    def for_joint_training(self) -> TaskDistribution:
        """The same tasks with every class known to the whole distribution."""
        if self.sample_joint is None:
            return self
        return replace(self, sample_episode=self.sample_joint)

    def episode(self, split: Split, index: int) -> Episode:
        """Episode `index` of `split`: a function of (seed, split, index) and of nothing else."""
        return self.sample_episode(split, self._rng(split, index))

    def episodes(self, split: Split, indices: Sequence[int]) -> Episodes:
        """The episodes at `indices`, stacked and padded to the longest example among them."""
        drawn = [self.episode(split, index) for index in indices]
        seeds = [int(self._rng(split, index).integers(2**62)) for index in indices]
        return Episodes(
            support=_stack(
                [e.support_x for e in drawn],
                [e.support_y for e in drawn],
                [e.support_lengths for e in drawn],
            ),
            query=_stack(
                [e.query_x for e in drawn],
                [e.query_y for e in drawn],
                [e.query_lengths for e in drawn],
            ),
            seeds=torch.tensor(seeds, dtype=torch.int64),
            way_classes=_stack_known([e.way_classes for e in drawn]),
        )

    def _rng(self, split: Split, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS.index(split), index))


def _stack(
    xs: list[np.ndarray], ys: list[np.ndarray], lengths: list[np.ndarray | None]
) -> Examples:
    longest = max(x.shape[1] for x in xs)
    padded = [np.pad(x, [(0, 0), (0, longest - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for x in xs]
    return Examples(
        x=torch.from_numpy(np.stack(padded)),
        y=torch.from_numpy(np.stack(ys)),
        lengths=_stack_known(lengths),
    )


def _stack_known(arrays: list[np.ndarray | None]) -> Tensor | None:
    known = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(known)) if known else None
