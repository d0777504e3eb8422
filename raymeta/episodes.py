"""Episodes: the support sets a meta-learner adapts to, and the query sets it is scored on.

Shape legend: E episodes, N examples, T time steps, D features, O outputs, W ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymeta.errors import DataError
from raymeta.problem import PROBLEMS
from raymeta.uncertainty import Units

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


def joined(first: Examples, second: Examples) -> Examples:
    """Concatenates both sets episode by episode, padded to the longer one."""
    return _padded_together([first, second], dim=1)


def batch_of(sets: Sequence[Examples]) -> Examples:
    """Stacks batches of episodes with as many examples each, padded to the longest."""
    return sets[0] if len(sets) == 1 else _padded_together(sets, dim=0)


def _padded_together(sets: Sequence[Examples], dim: int) -> Examples:
    longest = max(one.x.shape[2] for one in sets)

    def padded(x: Tensor) -> Tensor:
        behind = longest - x.shape[2]
        return F.pad(x, (0, behind) if x.dim() == 3 else (0, 0, 0, behind))

    def lengths(examples: Examples) -> Tensor:
        if examples.lengths is not None:
            return examples.lengths
        return torch.full(
            examples.x.shape[:2], examples.x.shape[2], dtype=torch.int64, device=examples.x.device
        )

    needs_lengths = any(one.lengths is not None or one.x.shape[2] != longest for one in sets)
    return Examples(
        torch.cat([padded(one.x) for one in sets], dim=dim),
        torch.cat([one.y for one in sets], dim=dim),
        torch.cat([lengths(one) for one in sets], dim=dim) if needs_lengths else None,
    )


@dataclass(frozen=True)
class Episodes:
    """Support and query sets of E episodes.

    `way_classes` (int64 `[E, W]`, classification only) are the classes of the whole distribution
    that the labels 0 … W - 1 stand for, NO_CLASS for one that is none of them.  `seeds` (int64
    `[E]`) seed an episode's other random parts, such as dropout: like its examples they depend on
    the episode alone, never on its batch.
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
    """The format of one example as a network reads it.

    Exactly one of `num_features` (real-valued sequences) and `vocabulary_size` (token ids, 0 being
    padding) is set.  `num_outputs` is the number of ways of a classification episode, the dimension
    of a regression target, or that times the levels of quantiles.  `problem` is a name in
    `PROBLEMS`.
    """

    problem: str
    num_outputs: int
    num_features: int | None = None
    vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(
                f"problem must be one of {', '.join(PROBLEMS)}, but got {self.problem!r}"
            )


@dataclass(frozen=True)
class Past:
    """The past of each forecast query, in the series' own units.

    `values` `[M, P]` are the P steps before the first one to be forecast.  An answer of H steps
    stands for the forecast `base + unit * answer`, with `base` `[M, H]` and `unit` `[M, 1]`.  Of
    several episodes there is a leading axis E.
    """

    values: np.ndarray
    base: np.ndarray
    unit: np.ndarray


@dataclass(frozen=True)
class TargetScale:
    """Targets are in deviations from the mean, both of meta-training; `name` is their column."""

    mean: float
    deviation: float
    name: str


@dataclass(frozen=True)
class Episode:
    """One episode in numpy: the arrays of `Episodes` without the leading axis.

    `support_ids` and `query_ids` name the underlying recordings, so that anyone can check that no
    recording is in both.  `way_classes` is as in `Episodes`.

    `query_units` says what is new at deployment about every query example: a writer, a class, a
    domain.  Each axis, by its name, has the integer id `[N]` of every query's unit, the same in all
    episodes of a split.  Intervals of scores are over these units.  None: the episode is a unit of
    its own.  `query_past` is there for forecasts alone.
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
    query_units: Mapping[str, np.ndarray] | None = None
    query_past: Past | None = None


@dataclass(frozen=True)
class Legend:
    """The names and units by which meta-test episodes are drawn for people.

    `classes` name what `Episode.way_classes` number, `units` the units of an axis by their ids.
    `texts` are the examples by their ids, where they are texts.  `channels` name the C features of
    a time step that come first; `mean` and `deviation` `[C]` turn them into the data's own units.
    `are_strokes`: the first three features are x, y and whether the pen is on paper.
    """

    classes: Sequence[str] = ()
    units: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Sequence[str] = ()
    channels: Sequence[str] = ()
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None
    are_strokes: bool = False


@dataclass(frozen=True)
class TaskDistribution:
    """A source of episodes with disjoint meta-train, meta-val and meta-test tasks.

    `sample_episode(split, rng)` draws one episode; `sample_joint` does for joint training, where no
    class may be made up (None: `sample_episode` makes up none).  `class_mean_features` maps `x`
    (and lengths) of one example set to the vectors `[E, N, F]` that the class-mean control
    compares; None for regression.

    `fingerprint` is a digest of the data as they are used.  `deal` says which split each unit
    belongs to: axis -> unit -> split.  `facts` are what a network must know of its inputs, such as
    the vocabulary; JSON keeps them.  `warnings` tell the user what the loader could not use.
    Another `training_seed` draws other meta-training episodes, and the same of all other splits.
    `encoded`: the features are token vectors of a pretrained encoder.  `recorded` are the same
    episodes as they were recorded, if networks read spectra.  `target_scale` belongs to targets
    that are standardised numbers.  `season` are the steps of a season, of forecasts alone.
    `legend` is for drawings; without it there are fewer.
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
    fingerprint: str = ""
    deal: Mapping[str, Mapping[str, Split]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    training_seed: int = 0
    encoded: bool = False
    season: int | None = None
    legend: Legend = field(default_factory=Legend)
    recorded: TaskDistribution | None = None
    target_scale: TargetScale | None = None

    def for_joint_training(self) -> TaskDistribution:
        """Returns the same tasks without made-up classes."""
        if self.sample_joint is None:
            return self
        return replace(self, sample_episode=self.sample_joint)

    def episode(self, split: Split, index: int) -> Episode:
        """Episode `index` of `split`: a function of the seeds, the split and the index alone."""
        return self.sample_episode(split, self._rng(split, index))

    def episodes(self, split: Split, indices: Sequence[int]) -> Episodes:
        """The episodes at `indices`, stacked and padded to the longest example among them.

        Raises:
            DataError: an episode has lengths, token ids or features that a network cannot read.
        """
        drawn = [self.episode(split, index) for index in indices]
        seeds = [int(self._rng(split, index).integers(2**62)) for index in indices]
        episodes = stacked(drawn, seeds)
        for examples in (episodes.support, episodes.query):
            self._check(split, examples)
        return episodes

    def query_units(self, split: Split, num_episodes: int) -> Units:
        """Gets the units of the queries of the first episodes of `split`.

        Raises:
            DataError: `Episode.query_units` are not integers, one a query, of the same axes in all
                episodes.
        """
        drawn = [self.episode(split, index) for index in range(num_episodes)]
        axes = set(drawn[0].query_units or ())
        for index, episode in enumerate(drawn):
            units = episode.query_units or {}
            found = [(axis, np.asarray(ids)) for axis, ids in units.items()]
            expected = (len(episode.query_y),)
            is_sound = all(i.shape == expected and i.dtype.kind in "iu" for _, i in found)
            if set(units) != axes or not is_sound:
                raise DataError(
                    f"tasks {self.name!r}, {split} episode {index}: query_units must have an "
                    f"integer for each of the {len(episode.query_y)} queries on each axis that "
                    f"episode 0 has ({', '.join(sorted(axes)) or 'none'}), but got "
                    f"{', '.join(f'{a}: {i.dtype} {list(i.shape)}' for a, i in found) or 'none'}"
                )
        ids = {a: np.stack([(e.query_units or {})[a] for e in drawn]) for a in sorted(axes)}
        return Units(ids, num_episodes, len(drawn[0].query_y))

    def query_past(self, split: Split, num_episodes: int) -> Past:
        """Gets the past of the queries of the first episodes of `split`; forecasts only."""
        found = [self.episode(split, index).query_past for index in range(num_episodes)]
        pasts = [past for past in found if past is not None]
        assert len(pasts) == num_episodes, "a forecast's episodes have a past"
        return Past(
            np.stack([past.values for past in pasts]),
            np.stack([past.base for past in pasts]),
            np.stack([past.unit for past in pasts]),
        )

    def _check(self, split: Split, examples: Examples) -> None:
        """Refuses values that a GPU would silently read other memory for, or turn into NaN.

        On the CPU, once per batch, the check is cheap.
        """
        spec, x, lengths = self.input_spec, examples.x, examples.lengths
        where = f"tasks {self.name!r}, {split} episodes"
        if spec.num_features is not None and x.shape[3:] != (spec.num_features,):
            raise DataError(
                f"{where}: examples must be [N, T, {spec.num_features}], but got "
                f"{list(x.shape[1:])}"
            )
        if spec.vocabulary_size is not None:
            _check_range(f"{where}: token ids", x, 0, spec.vocabulary_size - 1)
        if lengths is not None:
            _check_range(f"{where}: lengths", lengths, 1, x.shape[2])

    def _rng(self, split: Split, index: int) -> np.random.Generator:
        own = (self.training_seed,) if split == "train" and self.training_seed else ()
        return np.random.default_rng((self.seed, SPLITS.index(split), index, *own))


def stacked(drawn: Sequence[Episode], seeds: Sequence[int]) -> Episodes:
    """Several episodes as one batch, padded to the longest example among them."""
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


def _stack(
    xs: list[np.ndarray], ys: list[np.ndarray], lengths: list[np.ndarray | None]
) -> Examples:
    longest = max(x.shape[1] for x in xs)
    padded = [
        x
        if x.shape[1] == longest
        else np.pad(x, [(0, 0), (0, longest - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        for x in xs
    ]
    return Examples(
        x=torch.from_numpy(np.stack(padded)),
        y=torch.from_numpy(np.stack(ys)),
        lengths=_stack_known(lengths),
    )


def _check_range(what: str, values: Tensor, low: int, high: int) -> None:
    if not values.numel():
        raise DataError(f"{what} must be given, but there are none")
    least, most = (int(end) for end in values.aminmax())
    if least < low or most > high:
        raise DataError(f"{what} must be from {low} to {high}, but got {least} to {most}")


def _stack_known(arrays: list[np.ndarray | None]) -> Tensor | None:
    known = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(known)) if known else None
