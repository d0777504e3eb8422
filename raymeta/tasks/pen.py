"""Few-shot recognition of handwritten characters from pen strokes (UCI "UJI Pen Characters").

A task is a set of characters no network has seen, written by people no network has seen.

Shape legend: W ways, M examples of a class, T time steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from raymeta.errors import DataError
from raymeta.remote import AnyPath, found_in
from raymeta.tasks.episodes import NO_CLASS, Episode, Examples, InputSpec, Split, TaskDistribution

DATA_DIR = Path(__file__).parent / "data" / "uji_pen"
NUM_VAL_CHARACTERS, NUM_TEST_CHARACTERS = 16, 12
NUM_VAL_WRITERS, NUM_TEST_WRITERS = 2, 2

_GROUP = re.compile(r"^\.COMMENT Class #\d+: \[\S+\] = \{(?P<members>.*)\}$")
_SEGMENT = re.compile(r'^\.SEGMENT CHARACTER \S+ \? "(?P<character>.)"$')
_POINT = re.compile(r"^ *(?P<x>-?\d{1,9}) +(?P<y>-?\d{1,9})$")


@dataclass(frozen=True)
class Augmentation:
    """How meta-training episodes are varied.

    Per class of an episode, all examples alike, an affine map: a rotation (uniform in ±degrees), a
    mirror image (with a probability), a log-normal stretch of each axis and a normal shear, which
    turn few characters into as many classes as one likes.  More so where a class is written
    backwards, or blended point by point with another one (each with a probability): Rajendran et
    al. 2020, "Meta-learning requires meta-augmentation".  Per example, smaller affine maps, and a
    smooth random bending of the path.
    """

    class_rotation_deg: float = 0.0
    class_mirror: float = 0.0
    class_reverse: float = 0.0
    class_blend: float = 0.0
    class_scale: float = 0.0
    class_shear: float = 0.0
    example_rotation_deg: float = 0.0
    example_scale: float = 0.0
    example_shear: float = 0.0
    example_bend: float = 0.0


@dataclass(frozen=True)
class Recording:
    """One character as one person wrote it once: strokes of integer points `[P, 2]`."""

    writer: str
    character: str
    strokes: tuple[np.ndarray, ...]


def read_unipen(path: AnyPath) -> tuple[list[Recording], list[frozenset[str]]]:
    """Reads one writer's file.

    Returns:
        The recordings in file order, and the groups of characters of one shape that the file's
        `.COMMENT Class` lines declare.

    Raises:
        DataError: the file cannot be read, holds no character or breaks the format.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UNIPEN text: {error}") from error

    recordings: list[Recording] = []
    groups: list[frozenset[str]] = []
    character: str | None = None
    strokes: list[list[tuple[int, int]]] = []
    pen_is_down = False

    def finish() -> None:
        if character is None:
            return
        if pen_is_down:
            raise DataError(f'{path}: the character "{character}" ends without .PEN_UP')
        arrays = tuple(np.array(stroke, dtype=np.float64) for stroke in strokes if stroke)
        if sum(len(a) for a in arrays) < 2:
            raise DataError(f'{path}: the character "{character}" has fewer than two points')
        recordings.append(Recording(path.name, character, arrays))

    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip()
        if segment := _SEGMENT.match(line):
            finish()
            character, strokes, pen_is_down = segment["character"], [], False
        elif line == ".PEN_DOWN":
            strokes.append([])
            pen_is_down = True
        elif line == ".PEN_UP":
            pen_is_down = False
        elif line.startswith(".SEGMENT"):
            raise DataError(
                f'{path}, line {number}: expected .SEGMENT CHARACTER … "x", but got {line!r}'
            )
        elif group := _GROUP.match(line):
            groups.append(frozenset(re.findall(r'"(.)"', group["members"])))
        elif point := _POINT.match(line):
            if not pen_is_down or character is None:
                raise DataError(f"{path}, line {number}: a point outside .PEN_DOWN … .PEN_UP")
            strokes[-1].append((int(point["x"]), int(point["y"])))
        elif line and not line.startswith("."):
            raise DataError(
                f"{path}, line {number}: expected a keyword or two integers, but got {line!r}"
            )
    finish()
    if not recordings:
        raise DataError(f"{path}: no character found; is the file empty or not in UNIPEN format?")
    return recordings, groups


def resample(strokes: tuple[np.ndarray, ...], num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """The pen's path at equal steps of its length, straight through the air between strokes.

    Returns:
        Points `[T, 2]`, centred on their mean and divided by their root-mean-square radius, and
        the pen state `[T]`: 1 on paper, 0 in the air.
    """
    points = np.concatenate(strokes)
    # The segment that leads to a stroke's first point is travelled with the pen up.
    on_paper = np.concatenate([np.r_[0.0, np.ones(len(s) - 1)] for s in strokes])
    segment = np.linalg.norm(np.diff(points, axis=0), axis=1)
    position = np.r_[0.0, np.cumsum(segment)]
    wanted = np.linspace(0.0, position[-1], num_points)
    # Dwelling pens repeat points; interpolation needs one point a position.
    keep = np.r_[True, segment > 0]
    path = np.stack([np.interp(wanted, position[keep], points[keep, axis]) for axis in (0, 1)], 1)
    leading = np.clip(np.searchsorted(position[keep], wanted, side="left"), 1, None)
    pen = on_paper[keep][np.minimum(leading, keep.sum() - 1)] if keep.sum() > 1 else wanted * 0 + 1
    path -= path.mean(axis=0)
    radius = np.sqrt((path**2).sum(axis=1).mean())
    return path / (radius or 1.0), pen


def split_characters(groups: list[frozenset[str]], seed: int) -> dict[Split, list[str]]:
    """Meta-train and meta-validation on letters, meta-test on digits: 34 / 16 / 12 characters.

    Sixteen characters are eight shapes; fewer would make every validation episode much the same.
    Every group of one shape stays in one split, or training would see the shape of a held-out
    character (s and S): o and O go with 0, which makes the ten digits twelve characters.  `seed`
    deals the letters.
    """
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    order.sort(key=lambda group: not any(c.isdigit() for c in group))
    dealt: dict[Split, list[str]] = {"test": [], "val": [], "train": []}
    rest = sum(len(group) for group in groups)
    room: dict[Split, int] = {
        "test": NUM_TEST_CHARACTERS,
        "val": NUM_VAL_CHARACTERS,
        "train": rest,
    }
    for group in order:
        split = next(s for s in dealt if len(dealt[s]) + len(group) <= room[s])
        dealt[split] += sorted(group)
    return dealt


def load_pen(
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    num_points: int,
    augmentation: Augmentation,
    seed: int,
    split_seed: int,
    data_dir: AnyPath | None = None,
) -> TaskDistribution:
    """The task distribution over pen characters.

    Args:
        num_ways: classes of an episode.
        num_shots: support examples a class.
        num_queries: query examples a class.
        num_points: time steps a character is resampled to.
        augmentation: of meta-training episodes; the other splits are left as they are.
        seed: of the episodes.
        split_seed: of the deal of characters and writers into splits.
        data_dir: a folder of UNIPEN files, one a writer; None takes the set that is shipped.

    Raises:
        DataError: a file is broken, or the data cannot serve such episodes.
    """
    folder = data_dir or DATA_DIR
    files = [path for path in found_in(folder, "UJIpenchars-w*") if path.is_file()]
    if not files:
        raise DataError(f"{folder}: no file named UJIpenchars-w* found; set tasks.data_dir")
    recordings: list[Recording] = []
    groups: set[frozenset[str]] = set()
    for path in files:
        found, declared = read_unipen(path)
        recordings += found
        groups.update(declared)
    present = {r.character for r in recordings}
    grouped = frozenset().union(*groups)
    every_group = sorted(
        {g & present for g in groups if g & present} | {frozenset({c}) for c in present - grouped},
        key=min,
    )

    characters = split_characters(every_group, split_seed)
    writers = _split_writers([p.name for p in files], split_seed)
    pools = {
        split: _Pool.build(recordings, characters[split], writers[split], every_group, num_points)
        for split in characters
    }
    for split, pool in pools.items():
        pool.check(split, num_ways, num_shots + num_queries)

    def sample(augmentation: Augmentation, split: Split, rng: np.random.Generator) -> Episode:
        pool = pools[split]
        paths, pens, ids, classes = pool.draw(num_ways, num_shots + num_queries, rng)
        if split == "train":
            mirrored = rng.random(num_ways) < augmentation.class_mirror
            reversed_ = rng.random(num_ways) < augmentation.class_reverse
            classes = classes + (mirrored + 2 * reversed_) * pool.num_characters
            if augmentation.class_blend > 0:
                others, *_ = pool.draw(num_ways, num_shots + num_queries, rng)
                blended = rng.random(num_ways) < augmentation.class_blend
                share = np.where(blended, rng.uniform(*BLEND_SHARES, num_ways), 0.0)
                paths = paths + share[:, None, None, None] * (others - paths)
                classes[blended] = NO_CLASS
            paths, pens = reverse(paths, pens, reversed_)
            paths = augment(paths, augmentation, mirrored, rng)
        x = strokes_to_features(paths, pens)
        labels = np.repeat(np.arange(num_ways)[:, None], num_shots + num_queries, axis=1)

        def part(values: np.ndarray, columns: slice) -> np.ndarray:
            chosen = values[:, columns]
            return chosen.reshape(-1, *chosen.shape[2:])

        support, query = slice(0, num_shots), slice(num_shots, None)
        return Episode(
            support_x=part(x, support),
            support_y=part(labels, support),
            query_x=part(x, query),
            query_y=part(labels, query),
            support_ids=part(ids, support),
            query_ids=part(ids, query),
            way_classes=classes,
        )

    return TaskDistribution(
        name="pen",
        input_spec=InputSpec("classification", num_ways, num_features=NUM_FEATURES),
        seed=seed,
        sample_episode=partial(sample, augmentation),
        sample_joint=partial(sample, replace(augmentation, class_blend=0.0)),
        class_mean_features=_class_mean_features,
        num_train_classes=4 * pools["train"].num_characters,
        note=(
            f"meta-test: {len(characters['test'])} characters × {len(writers['test'])} writers, "
            "none of which occurs in meta-training"
        ),
    )


NUM_FEATURES = 5
BLEND_SHARES = 0.25, 0.6  # of the other character in a blend


def strokes_to_features(paths: np.ndarray, pens: np.ndarray) -> np.ndarray:
    """Network input float32 `[..., T, 5]`: x, y, pen on paper, and the unit direction of travel."""
    step = np.diff(paths, axis=-2, prepend=paths[..., :1, :])
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    direction = step / np.maximum(length, 1e-6)
    return np.concatenate([paths, pens[..., None], direction], axis=-1).astype(np.float32)


def _class_mean_features(examples: Examples) -> Tensor:
    """The resampled points alone, `[E, N, T * 2]`."""
    return examples.x[..., :2].flatten(2)


def reverse(
    paths: np.ndarray, pens: np.ndarray, reversed_: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paths `[W, M, T, 2]` and pens `[W, M, T]`, the classes of `reversed_` written backwards."""
    return (
        np.where(reversed_[:, None, None, None], paths[..., ::-1, :], paths),
        np.where(reversed_[:, None, None], pens[..., ::-1], pens),
    )


def augment(
    paths: np.ndarray,
    augmentation: Augmentation,
    mirrored: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Applies `augmentation` to the paths `[W, M, T, 2]` of an episode; same shape.

    `mirrored` (bool `[W]`) says which classes become their mirror image.
    """
    a = augmentation
    ways, examples, steps, _ = paths.shape
    class_map = _random_affine(rng, (ways, 1), a.class_rotation_deg, a.class_scale, a.class_shear)
    class_map[..., 0] *= np.where(mirrored, -1.0, 1.0)[:, None, None]
    example_map = _random_affine(
        rng, (ways, examples), a.example_rotation_deg, a.example_scale, a.example_shear
    )
    bent = paths @ (class_map @ example_map).swapaxes(-1, -2)
    if a.example_bend > 0:
        # A random trigonometric displacement of the path, smooth in time: low frequencies only.
        time = np.linspace(0.0, 1.0, steps)
        waves = np.stack([np.cos(np.pi * k * time) for k in range(1, 5)])  # [4, T]
        weights = rng.normal(0.0, a.example_bend, (ways, examples, 2, 4)) / np.arange(1, 5)
        bent = bent + (weights @ waves).swapaxes(-1, -2)
    bent = bent - bent.mean(axis=-2, keepdims=True)
    radius = np.sqrt((bent**2).sum(axis=-1).mean(axis=-1))[..., None, None]
    return np.asarray(bent / np.maximum(radius, 1e-6))


def _random_affine(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    rotation_deg: float,
    scale: float,
    shear: float,
) -> np.ndarray:
    """Random maps `[*shape, 2, 2]`: rotation × shear × scale."""
    angle = np.deg2rad(rng.uniform(-rotation_deg, rotation_deg, shape))
    turn = np.stack(
        [
            np.stack([np.cos(angle), -np.sin(angle)], -1),
            np.stack([np.sin(angle), np.cos(angle)], -1),
        ],
        -2,
    )
    stretch = np.exp(rng.normal(0.0, scale, (*shape, 2)))
    slant = np.broadcast_to(np.eye(2), (*shape, 2, 2)).copy()
    slant[..., 0, 1] = rng.normal(0.0, shear, shape)
    return np.asarray(turn @ slant * stretch[..., None, :])


def _split_writers(names: list[str], seed: int) -> dict[Split, list[str]]:
    held_out = NUM_VAL_WRITERS + NUM_TEST_WRITERS
    if len(names) <= held_out:
        raise DataError(
            f"pen data must come from more than {held_out} writers, since {NUM_VAL_WRITERS} are "
            f"held out for validation and {NUM_TEST_WRITERS} for the test, but got {len(names)}"
        )
    order = [names[i] for i in np.random.default_rng((seed, 1)).permutation(len(names))]
    return {
        "test": sorted(order[:NUM_TEST_WRITERS]),
        "val": sorted(order[NUM_TEST_WRITERS:held_out]),
        "train": sorted(order[held_out:]),
    }


@dataclass(frozen=True)
class _Pool:
    """The recordings of one split, resampled, by shape group and character."""

    groups: list[list[tuple[int, np.ndarray]]]  # per shape group: character, its recordings
    num_characters: int
    paths: np.ndarray  # [R, T, 2]
    pens: np.ndarray  # [R, T]

    @classmethod
    def build(
        cls,
        recordings: list[Recording],
        characters: list[str],
        writers: list[str],
        groups: list[frozenset[str]],
        num_points: int,
    ) -> _Pool:
        kept = [r for r in recordings if r.character in characters and r.writer in writers]
        by_character: dict[str, list[int]] = {}
        for number, recording in enumerate(kept):
            by_character.setdefault(recording.character, []).append(number)
        resampled = [resample(r.strokes, num_points) for r in kept]
        names = sorted(by_character)
        return cls(
            num_characters=len(names),
            groups=[
                [(names.index(c), np.array(by_character[c])) for c in names if c in group]
                for group in groups
                if any(c in by_character for c in group)
            ],
            paths=np.array([path for path, _ in resampled]),
            pens=np.array([pen for _, pen in resampled]),
        )

    def check(self, split: Split, num_ways: int, num_examples: int) -> None:
        if num_ways > len(self.groups):
            raise DataError(
                f"tasks.num_ways must be at most {len(self.groups)}, the number of different "
                f"character shapes in the meta-{split} split, but got {num_ways}"
            )
        smallest = min(len(numbers) for group in self.groups for _, numbers in group)
        if num_examples > smallest:
            raise DataError(
                f"tasks.num_shots + tasks.num_queries must be at most {smallest}, the recordings "
                f"of a character in the meta-{split} split, but got {num_examples}"
            )

    def draw(
        self, num_ways: int, num_examples: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Paths `[W, M, T, 2]`, pens `[W, M, T]`, recordings `[W, M]` and characters `[W]`."""
        groups = [self.groups[g] for g in rng.permutation(len(self.groups))[:num_ways]]
        chosen = [group[rng.integers(len(group))] for group in groups]
        ids = np.stack([rng.permutation(numbers)[:num_examples] for _, numbers in chosen])
        characters = np.array([character for character, _ in chosen])
        return self.paths[ids], self.pens[ids], ids, characters
