"""Few-shot recognition of handwritten characters from pen strokes (UCI "UJI Pen Characters").

A task is a set of unseen characters by unseen writers.

Shape legend: P points, S recordings, W ways, M examples of a class, T time steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.files import read_each, unread_files
from raymeta.data.readers.unipen import read_unipen
from raymeta.data.sequences import Sequences, content_of, joined
from raymeta.data.splits import Deal, deal_sealed, deal_units
from raymeta.episodes import (
    NO_CLASS,
    SPLITS,
    Episode,
    Examples,
    InputSpec,
    Legend,
    Split,
    TaskDistribution,
)
from raymeta.errors import DataError
from raymeta.storage.paths import path_at
from raymeta.tasks.augmentation import augment, blend, reverse
from raymeta.tasks.inputs import Inputs, check_facts
from raymeta.tasks.sampling import ClassPool, episode_of, fingerprint, unit_ids, unit_names
from raymeta.tasks.settings import Augmentation, PenTasks

# Eight letters (s and S count as one) are held out for validation: with fewer, validation episodes
# would hardly differ.
NUM_VAL_SHAPES, NUM_TEST_SHAPES = 8, 10
NUM_VAL_WRITERS, NUM_TEST_WRITERS = 2, 2
FEATURES = ("x", "y", "pen", "dx", "dy")
CONTEXT_REACH = 1.35  # of the grid around the pen, in root-mean-square radii of the character
STROKE_CHANNELS = ("x", "y", "stroke")  # of a recording, which `FEATURES` are made of

# For each small split_seed, the salt's number with which the shipped data's deal is the one of
# version 0.1, which permuted a list.  Found by trying one number after the other, so that numbers
# recorded with 0.1 stay; for other data and other seeds one number is as good as another.
_WRITER_SALTS = (578, 3446, 2012, 2494)
_SHAPE_SALTS = (66981, 800988, 2264457, 105723)


def load_pen(settings: PenTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution over pen characters.

    Args:
        settings: of the tasks.
        seed: of the episodes.
        sealed: whether to use the sealed deal: writers and shapes of meta-training are held out.

    Raises:
        DataError: a file is broken, the data hold copies, or they cannot serve such episodes.
    """
    files = settings.data_files()
    if not files:
        raise DataError(
            f"{settings.data_dir}: no file named UJIpenchars-w* found; set tasks.data_dir"
        )
    unread = unread_files(path_at(settings.data_dir), files) if settings.data_dir else []
    read = read_each(read_unipen, files)
    recordings = joined([sequences for sequences, _ in read])
    shape_of = shapes(recordings.classes, (group for _, groups in read for group in groups))
    recordings = Sequences(
        x=recordings.x,
        classes=recordings.classes,
        groups={
            **recordings.groups,
            "shape": tuple(shape_of[c] for c in recordings.classes),
        },
        ids=recordings.ids,
    )
    resampled = [resample(strokes_of(points), settings.num_points) for points in recordings.x]
    # Networks do not see a character's place on the tablet.
    contents = [content_of(points - points[0]) for points in recordings.x]
    refuse_copies(recordings, contents, "writer")

    deal: Deal = {
        "writer": _deal_writers([path.name for path in files], settings.split_seed),
        "shape": deal_shapes(shape_of, settings.split_seed),
    }
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
    splits = _splits(recordings, deal)
    used = [row for row, split in enumerate(splits) if split is not None]
    rows, dropped = distinct_rows(
        recordings.select(used),
        [contents[row] for row in used],
        [-SPLITS.index(splits[row] or "train") for row in used],
    )
    of_split: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for row in rows:
        of_split[splits[used[row]] or "train"].append(used[row])

    chosen = {split: recordings.select(of_split[split]) for split in SPLITS}
    pools = {split: ClassPool.build(chosen[split].classes, shape_of) for split in SPLITS}
    for split, pool in reversed(pools.items()):
        pool.check(split, settings.num_ways, settings.num_shots + settings.num_queries, "character")
    sampler = _Sampler(
        settings=settings,
        pools=pools,
        paths={s: np.array([resampled[row][0] for row in of_split[s]]) for s in SPLITS},
        pens={s: np.array([resampled[row][1] for row in of_split[s]]) for s in SPLITS},
        units={s: {a: unit_ids(chosen[s].groups[a]) for a in ("shape", "writer")} for s in SPLITS},
    )
    features = feature_names(settings.context_grid)
    facts = {"features": list(features), "num_points": settings.num_points}
    num_writers = len(set(chosen["test"].groups["writer"]))
    unblended = settings.augmentation.model_copy(update={"class_blend": 0.0})
    return TaskDistribution(
        name="pen",
        input_spec=InputSpec("classification", settings.num_ways, num_features=len(features)),
        seed=seed,
        sample_episode=partial(sampler.sample, settings.augmentation),
        sample_joint=partial(sampler.sample, unblended),
        class_mean_features=_class_mean_features,
        num_train_classes=4 * pools["train"].num_classes,
        note=(
            f"meta-test: {pools['test'].num_classes} characters × {num_writers} writers, none of "
            "which occurs in meta-training"
        ),
        fingerprint=fingerprint(chosen, facts),
        deal=deal,
        facts=facts,
        warnings=(*unread, *recordings.warnings, *dropped),
        legend=Legend(
            classes=sorted(set(chosen["test"].classes)),
            units=unit_names(chosen["test"].groups),
            are_strokes=True,
        ),
    )


def pen_inputs(settings: PenTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is a character's points: x, y, and the number of the stroke, counted up.

    Scale, place on the tablet and pace of the pen do not matter.
    """
    check_facts(settings, facts, "num_points")
    features = feature_names(settings.context_grid)
    if list(features) != facts["features"]:
        raise ValueError(
            f"tasks.context_grid is {settings.context_grid}, which makes {len(features)} features, "
            f"but there were {len(facts['features'])} in training"
        )
    return Inputs(
        channels=STROKE_CHANNELS,
        prepare=partial(_prepared, settings.num_points, settings.context_grid),
        features=features,
        are_strokes=True,
    )


def _prepared(
    num_points: int, context_grid: int, examples: Sequence[np.ndarray], names: Sequence[str]
) -> list[np.ndarray]:
    for name, points in zip(names, examples, strict=True):
        if len(points) < 2:
            raise DataError(f"{name}: a character needs two points at least, but has one")
        if (np.diff(points[:, 2]) < 0).any():
            raise DataError(
                f"{name}: the column of strokes must number them in the order of their writing, "
                "but a number is smaller than the one before it"
            )
    resampled = [resample(strokes_of(points), num_points) for points in examples]
    paths, pens = (np.stack(parts) for parts in zip(*resampled, strict=True))
    return list(strokes_to_features(paths, pens, context_grid))


@dataclass(frozen=True)
class _Sampler:
    """Draws episodes; `paths` `[S, T, 2]`, `pens` `[S, T]` and `units` `[S]` of each split."""

    settings: PenTasks
    pools: Mapping[Split, ClassPool]
    paths: Mapping[Split, np.ndarray]
    pens: Mapping[Split, np.ndarray]
    units: Mapping[Split, Mapping[str, np.ndarray]]

    def sample(self, augmentation: Augmentation, split: Split, rng: np.random.Generator) -> Episode:
        """One episode; `augmentation` is for meta-training."""
        num_ways, num_shots = self.settings.num_ways, self.settings.num_shots
        num_examples = num_shots + self.settings.num_queries
        pool = self.pools[split]
        rows, classes = pool.draw(num_ways, num_examples, rng)
        paths, pens = self.paths[split][rows], self.pens[split][rows]
        if split == "train":
            mirrored = rng.random(num_ways) < augmentation.class_mirror
            reversed_ = rng.random(num_ways) < augmentation.class_reverse
            # A mirrored or reversed character is a class of its own.
            classes = classes + (mirrored + 2 * reversed_) * pool.num_classes
            if augmentation.class_blend > 0:
                other_rows, _ = pool.draw(num_ways, num_examples, rng)
                blended = rng.random(num_ways) < augmentation.class_blend
                paths = blend(paths, self.paths[split][other_rows], blended, rng)
                classes[blended] = NO_CLASS
            paths, pens = reverse(paths, pens, reversed_)
            paths = augment(paths, augmentation, mirrored, rng)
        x = strokes_to_features(paths, pens, self.settings.context_grid)
        return episode_of(x, rows, classes, num_shots, units=self.units[split])


def shapes(characters: Iterable[str], groups: Iterable[frozenset[str]]) -> dict[str, str]:
    """Maps each character to its shape: the first of all characters that look like it.

    Groups that share a character are one group; a character of no group has a shape of its own.
    """
    shape_of = {character: character for character in characters}
    present = set(shape_of)
    merged: list[set[str]] = []
    for group in groups:
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group]
        merged.append(set(group).union(*touching))
    for together in merged:
        shape_of |= dict.fromkeys(together & present, min(together))
    return shape_of


def deal_shapes(shape_of: Mapping[str, str], split_seed: int) -> dict[str, Split]:
    """Deals digits to meta-test, eight letters to meta-validation, other letters to meta-training.

    Characters of one shape stay together, or training would see a held-out shape: o and O go with
    0, so the ten digits are twelve characters.  Where there are fewer than ten digits,
    letters complete the meta-test.
    """
    digits = {shape for character, shape in shape_of.items() if character.isdigit()}
    return deal_units(
        shape_of.values(),
        num_test=NUM_TEST_SHAPES,
        num_val=NUM_VAL_SHAPES,
        salt=_salt("characters", split_seed, _SHAPE_SALTS),
        goes_first=digits.__contains__,
    )


def _deal_writers(names: list[str], split_seed: int) -> dict[str, Split]:
    held_out = NUM_VAL_WRITERS + NUM_TEST_WRITERS
    if len(names) <= held_out:
        raise DataError(
            f"pen data must come from more than {held_out} writers, since {NUM_VAL_WRITERS} are "
            f"held out for validation and {NUM_TEST_WRITERS} for the test, but got {len(names)}"
        )
    return deal_units(
        names,
        num_test=NUM_TEST_WRITERS,
        num_val=NUM_VAL_WRITERS,
        salt=_salt("writers", split_seed, _WRITER_SALTS),
    )


def _salt(axis: str, split_seed: int, numbers: tuple[int, ...]) -> str:
    return f"{axis}-{split_seed}-{numbers[split_seed] if split_seed < len(numbers) else 0}"


def _splits(recordings: Sequences, deal: Deal) -> list[Split | None]:
    """Finds the common split of each recording's writer and shape; None if they differ."""
    found: list[Split | None] = []
    groups = recordings.groups
    for writer, shape in zip(groups["writer"], groups["shape"], strict=True):
        split = deal["writer"][writer]
        found.append(split if deal["shape"][shape] == split else None)
    return found


def strokes_of(points: np.ndarray) -> tuple[np.ndarray, ...]:
    """Splits a recording's points `[P, 3]` into strokes `[P, 2]` by their last column."""
    ends = np.flatnonzero(np.diff(points[:, 2])) + 1
    bounds = [0, *ends.tolist(), len(points)]
    return tuple(points[start:end, :2] for start, end in pairwise(bounds))


def resample(strokes: tuple[np.ndarray, ...], num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Resamples the pen's path in equal steps, with straight lines between strokes.

    Returns:
        Points `[T, 2]`, centred on their mean and divided by their root-mean-square radius, and
        the pen state `[T]`: 1 on paper, 0 in the air.
    """
    points = np.concatenate(strokes)
    # The segment that leads to a stroke's first point is travelled with the pen up.
    on_paper = np.ones(len(points))
    on_paper[np.cumsum([0, *map(len, strokes[:-1])])] = 0.0
    moves = points[1:] - points[:-1]
    segment = np.sqrt((moves * moves).sum(axis=1))
    position = np.zeros(len(points))
    np.cumsum(segment, out=position[1:])
    wanted = np.arange(num_points) * (position[-1] / (num_points - 1))
    wanted[-1] = position[-1]
    # A pen that rests repeats points; interpolation needs one point a position.
    keep = np.ones(len(points), dtype=bool)
    np.greater(segment, 0, out=keep[1:])
    if not keep.all():
        points, position, on_paper = points[keep], position[keep], on_paper[keep]
    path = np.empty((num_points, 2))
    for axis in (0, 1):
        path[:, axis] = np.interp(wanted, position, points[:, axis])
    last = len(points) - 1
    leading = np.minimum(np.maximum(position.searchsorted(wanted), 1), last)
    pen = on_paper[leading] if last else np.ones(num_points)
    path -= path.mean(axis=0)
    radius = np.sqrt((path**2).sum(axis=1).mean())
    return path / (radius or 1.0), pen


def feature_names(context_grid: int) -> tuple[str, ...]:
    """The names of what `strokes_to_features` returns of a step."""
    places = range(context_grid)
    return (*FEATURES, *(f"ink_{column}_{row}" for column in places for row in places))


def strokes_to_features(paths: np.ndarray, pens: np.ndarray, context_grid: int = 0) -> np.ndarray:
    """Network input float32 `[..., T, 5 + G²]` of paths `[..., T, 2]` and pen states `[..., T]`.

    Of each step: x, y, pen on paper, the unit direction of travel, and `ink_around`.
    """
    step = np.diff(paths, axis=-2, prepend=paths[..., :1, :])
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    direction = step / np.maximum(length, 1e-6)
    parts = [paths, pens[..., None], direction]
    if context_grid:
        parts.append(ink_around(paths, pens, context_grid))
    return np.concatenate(parts, axis=-1).astype(np.float32)


def context_places(context_grid: int) -> tuple[np.ndarray, float]:
    """The places of the grid on either axis `[G]`, from the pen, and the width of their windows."""
    places = np.linspace(-CONTEXT_REACH, CONTEXT_REACH, context_grid)
    return places, 4 / 3 * CONTEXT_REACH / max(context_grid - 1, 1)  # 2/3 of what is between places


def ink_around(paths: np.ndarray, pens: np.ndarray, context_grid: int) -> np.ndarray:
    """The amount of ink around each point, float32 `[..., T, G²]`, in whatever order it came.

    Twice the square root of the share of the path's points that are on paper and near each place of
    a grid around the point; every place sees a Gaussian window.  It is the idea of
    Belongie et al. 2002, "Shape Matching and Object Recognition Using Shape Contexts", on a square
    grid of soft bins: writers order their strokes differently, but leave the same ink.
    """
    places, width = context_places(context_grid)
    points, places = paths.astype(np.float32), places.astype(np.float32)
    apart = points[..., None, :, :] - points[..., :, None, :]  # [..., T, T, 2], from each to each
    near = np.exp(-((apart[..., None] - places) ** 2) / (2 * width * width))  # [..., T, T, 2, G]
    columns = near[..., 0, :] * pens[..., None, :, None].astype(np.float32)
    ink = columns.swapaxes(-1, -2) @ near[..., 1, :]  # [..., T, G, G]
    share = ink.reshape(*ink.shape[:-2], -1) / paths.shape[-2]
    return np.asarray(2 * np.sqrt(share))


def _class_mean_features(examples: Examples) -> Tensor:
    """The resampled points alone, `[E, N, T * 2]`."""
    return examples.x[..., :2].flatten(2)
