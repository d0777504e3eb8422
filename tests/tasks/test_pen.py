"""Pen characters: reading, splits, episodes, resampling, augmentation and broken files.

Episodes show paths only, so what was drawn is found again by comparing them with every recording.

Shape legend: W ways, M examples of a class, N examples, T time steps.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.data.readers.unipen import read_unipen
from raymeta.episodes import NO_CLASS, SPLITS, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.augmentation import augment, reverse
from raymeta.tasks.pen import (
    CONTEXT_REACH,
    deal_shapes,
    feature_names,
    load_pen,
    pen_inputs,
    resample,
    shapes,
    strokes_of,
    strokes_to_features,
)
from raymeta.tasks.settings import PEN_DIR, Augmentation, PenTasks

NUM_POINTS = 24
DIGITS = "0123456789"


def only(**settings: float) -> Augmentation:
    """Makes an augmentation of these settings and nothing else."""
    return Augmentation(**dict.fromkeys(Augmentation.model_fields, 0.0) | settings)


NO_AUGMENTATION = only()
FULL_AUGMENTATION = Augmentation(
    class_rotation_deg=30.0,
    class_mirror=0.5,
    class_reverse=0.5,
    class_blend=0.5,
    class_scale=0.2,
    class_shear=0.2,
    example_rotation_deg=10.0,
    example_scale=0.1,
    example_shear=0.1,
    example_bend=0.1,
)

every_split = pytest.mark.parametrize("split", SPLITS)
several_split_seeds = pytest.mark.parametrize("split_seed", range(4))


class Recording(NamedTuple):
    """One character as one person wrote it once."""

    writer: str
    character: str
    strokes: tuple[np.ndarray, ...]


def recordings_in(path: Path) -> tuple[list[Recording], set[frozenset[str]]]:
    """Reads the recordings of one file and its declared groups of one shape."""
    sequences, groups = read_unipen(path)
    rows = zip(sequences.groups["writer"], sequences.classes, sequences.x, strict=True)
    return [Recording(writer, c, strokes_of(points)) for writer, c, points in rows], set(groups)


@cache
def shipped() -> tuple[list[Recording], set[frozenset[str]]]:
    """Reads all recordings and all declared groups of one shape."""
    found = [recordings_in(path) for path in sorted(PEN_DIR.iterdir())]
    return [r for recordings, _ in found for r in recordings], set().union(*(g for _, g in found))


def shape_of(character: str) -> frozenset[str]:
    return next(group for group in shipped()[1] if character in group)


@cache
def features() -> np.ndarray:
    """Prepares each recording as a network reads it, `[R, T, 5]`."""
    return np.stack(
        [strokes_to_features(*resample(r.strokes, NUM_POINTS)) for r in shipped()[0]]
    ).astype(np.float64)


def sketches(x: np.ndarray) -> np.ndarray:
    """Keeps every third point: enough to tell recordings apart."""
    return x[:, ::3, :2].reshape(len(x), -1).astype(np.float64)


def nearest(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the recordings nearest to paths `[N, T, 2]`, and the largest differences."""
    known = sketches(features())
    products = np.einsum("nf,rf->nr", sketches(paths), known)
    numbers = ((known**2).sum(axis=1) - 2 * products).argmin(axis=1)
    return numbers, np.abs(paths - features()[numbers, :, :2]).max(axis=(1, 2))


def recognised(x: np.ndarray) -> list[Recording]:
    """Finds the recordings that unaugmented examples `[N, T, 5]` show."""
    numbers, _ = nearest(x[..., :2])
    np.testing.assert_allclose(x, features()[numbers], atol=1e-4)
    return [shipped()[0][number] for number in numbers]


@cache
def pen(
    *,
    num_ways: int = 5,
    num_shots: int = 1,
    num_queries: int = 3,
    augmentation: Augmentation = NO_AUGMENTATION,
    seed: int = 0,
    split_seed: int = 0,
    data_dir: Path | None = None,
) -> TaskDistribution:
    settings = PenTasks(
        source="pen",
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        num_points=NUM_POINTS,
        augmentation=augmentation,
        split_seed=split_seed,
        data_dir=None if data_dir is None else str(data_dir),
    )
    return load_pen(settings, seed=seed)


def drawn(tasks: TaskDistribution, split: Split, num_episodes: int = 80) -> list[Recording]:
    """Finds the recordings in many episodes."""
    episodes = tasks.episodes(split, range(num_episodes))
    x = torch.cat([episodes.support.x, episodes.query.x], dim=1)
    return recognised(x.flatten(0, 1).numpy())


# Reading


def test_shipped_files_hold_62_characters_by_11_writers_twice() -> None:
    recordings, groups = shipped()
    assert len(recordings) == 1364
    times = Counter((r.writer, r.character) for r in recordings)
    assert set(times.values()) == {2}
    assert len({writer for writer, _ in times}) == 11
    characters = {character for _, character in times}
    assert characters == set(DIGITS) | {c for c in map(chr, range(128)) if c.isalpha()}
    # Upper and lower case of a letter have one shape; so have o, O and 0.
    assert groups == (
        {frozenset({c, c.upper()}) for c in characters if c.islower() and c != "o"}
        | {frozenset(c) for c in DIGITS if c != "0"}
        | {frozenset("oO0")}
    )


def test_strokes_are_the_points_of_the_file_in_their_order() -> None:
    path = PEN_DIR / "UJIpenchars-w05"
    recordings, _ = recordings_in(path)
    text = path.read_text()
    points = [
        tuple(map(int, found)) for found in re.findall(r"^ *(\d+) +(\d+) *$", text, re.MULTILINE)
    ]
    read = np.concatenate([stroke for r in recordings for stroke in r.strokes])
    assert np.array_equal(read, points)
    assert sum(len(r.strokes) for r in recordings) == text.count(".PEN_DOWN")
    assert [r.character for r in recordings] == re.findall(
        r'^\.SEGMENT .* "(.)"', text, re.MULTILINE
    )
    assert {r.writer for r in recordings} == {path.name}


# Splits and episodes


@several_split_seeds
def test_no_character_shape_or_writer_is_in_two_splits(split_seed: int) -> None:
    found = {split: drawn(pen(split_seed=split_seed), split) for split in SPLITS}
    characters = {split: {r.character for r in found[split]} for split in SPLITS}
    writers = {split: {r.writer for r in found[split]} for split in SPLITS}
    shapes = {split: {shape_of(c) for c in characters[split]} for split in SPLITS}
    for parts in (characters, writers, shapes):
        for one, other in combinations(SPLITS, 2):
            assert not set(parts[one]) & set(parts[other])
    assert [len(characters[split]) for split in SPLITS] == [34, 16, 12]
    assert [len(writers[split]) for split in SPLITS] == [7, 2, 2]
    assert characters["test"] == set(DIGITS) | {"o", "O"}


def test_split_seed_deals_characters_and_writers_and_seed_does_not() -> None:
    def dealt(seed: int, split_seed: int) -> tuple[set[str], set[str]]:
        found = drawn(pen(seed=seed, split_seed=split_seed), "val")
        return {r.character for r in found}, {r.writer for r in found}

    first, same, other = dealt(0, 0), dealt(1, 0), dealt(0, 1)
    assert first == same
    assert first[0] != other[0]
    assert first[1] != other[1]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_every_deal_of_characters_is_complete_and_keeps_shapes_together(seed: int) -> None:
    recordings, groups = shipped()
    shape = shapes((r.character for r in recordings), groups)
    dealt = deal_shapes(shape, seed)
    of_character = {character: dealt[shape[character]] for character in shape}
    assert Counter(of_character.values()) == {"train": 34, "val": 16, "test": 12}
    for group in groups:
        assert len({of_character[character] for character in group}) == 1


def test_groups_that_share_a_character_are_one_shape() -> None:
    groups = [frozenset("aA"), frozenset("bB"), frozenset("Aä")]
    assert shapes("aAäbc", groups) == {"a": "A", "A": "A", "ä": "A", "b": "B", "c": "c"}


@every_split
def test_no_episode_holds_two_characters_of_one_shape(split: Split) -> None:
    for x in pen(num_ways=5).episodes(split, range(150)).support.x.numpy():
        assert len({shape_of(r.character) for r in recognised(x)}) == 5


@every_split
def test_support_and_query_share_no_recording(split: Split) -> None:
    tasks = pen(num_shots=2, num_queries=2)
    recordings: dict[int, int] = {}
    for index in range(60):
        episode = tasks.episode(split, index)
        assert episode.support_ids is not None
        assert episode.query_ids is not None
        ids = np.concatenate([episode.support_ids, episode.query_ids]).tolist()
        shown = recognised(np.concatenate([episode.support_x, episode.query_x]))
        assert len({id(r) for r in shown}) == len(set(ids)) == 5 * 4
        # An id names the same recording wherever it occurs.
        for number, recording in zip(ids, shown, strict=True):
            assert recordings.setdefault(number, id(recording)) == id(recording)
    assert len(set(recordings.values())) == len(recordings)


@every_split
def test_labels_and_way_classes_name_the_characters(split: Split) -> None:
    num_shots, num_queries = 1, 3
    tasks = pen(num_shots=num_shots, num_queries=num_queries)
    class_of: dict[str, int] = {}
    label_of: dict[str, set[int]] = {}
    for index in range(60):
        episode = tasks.episode(split, index)
        assert episode.way_classes is not None
        for x, labels, num_examples in (
            (episode.support_x, episode.support_y, num_shots),
            (episode.query_x, episode.query_y, num_queries),
        ):
            assert Counter(labels.tolist()) == dict.fromkeys(range(5), num_examples)
            for recording, label in zip(recognised(x), labels.tolist(), strict=True):
                number = int(episode.way_classes[label])
                assert class_of.setdefault(recording.character, number) == number
                label_of.setdefault(recording.character, set()).add(label)
    assert sorted(class_of.values()) == list(range(len(class_of)))
    # A label means nothing beyond its episode.
    assert set(range(5)) in label_of.values()


# Resampling

coordinates = st.integers(-1000, 1000)
strokes_lists = st.lists(
    st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
).filter(lambda strokes: len({point for stroke in strokes for point in stroke}) > 1)


def as_strokes(points: list[list[tuple[int, int]]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(stroke, dtype=np.float64) for stroke in points)


def walk(strokes: tuple[np.ndarray, ...], distance: float) -> tuple[np.ndarray, float | None]:
    """Returns point and pen state after `distance`; no state where the pen may just change."""
    points = np.concatenate(strokes)
    starts = {int(n) for n in np.cumsum([len(stroke) for stroke in strokes])}
    travelled = 0.0
    for number in range(1, len(points)):
        leg = points[number] - points[number - 1]
        length = float(np.hypot(*leg))
        if length > 0 and distance <= travelled + length:
            share = (distance - travelled) / length
            pen_state = float(number not in starts)
            return points[number - 1] + share * leg, pen_state if 0.001 < share < 0.999 else None
        travelled += length
    return points[-1], None


@settings(deadline=None, max_examples=60)
@given(strokes=strokes_lists.map(as_strokes), num_points=st.integers(4, 40))
def test_resampling_walks_the_path_at_equal_steps(
    strokes: tuple[np.ndarray, ...], num_points: int
) -> None:
    path, pen_states = resample(strokes, num_points)
    legs = np.diff(np.concatenate(strokes), axis=0)
    total = np.hypot(legs[:, 0], legs[:, 1]).sum()
    walked = [walk(strokes, total * step / (num_points - 1)) for step in range(num_points)]
    expected = np.stack([point for point, _ in walked])
    expected -= expected.mean(axis=0)
    radius = np.sqrt((expected**2).sum(axis=1).mean())
    np.testing.assert_allclose(path * radius, expected, atol=1e-6)
    known = [number for number, (_, state) in enumerate(walked) if state is not None]
    assert pen_states[known].tolist() == [walked[number][1] for number in known]
    assert set(pen_states) <= {0.0, 1.0}


@settings(deadline=None, max_examples=40)
@given(
    strokes=strokes_lists.map(as_strokes),
    shift=st.tuples(coordinates, coordinates),
    power=st.integers(-4, 6),
)
def test_resampling_ignores_place_and_size(
    strokes: tuple[np.ndarray, ...], shift: tuple[int, int], power: int
) -> None:
    path, pen_states = resample(strokes, NUM_POINTS)
    # Powers of two, so that rounding moves no point across the end of a stroke.
    moved = tuple(stroke * 2.0**power + shift for stroke in strokes)
    moved_path, moved_states = resample(moved, NUM_POINTS)
    np.testing.assert_allclose(moved_path, path, atol=1e-9)
    assert np.array_equal(moved_states, pen_states)
    np.testing.assert_allclose(path.mean(axis=0), 0.0, atol=1e-9)
    assert (path**2).sum(axis=1).mean() == pytest.approx(1.0)


def test_pen_is_up_between_strokes_and_down_on_them() -> None:
    strokes = as_strokes([[(0, 0), (1, 0)], [(3, 0), (4, 0)]])
    path, pen_states = resample(strokes, 9)
    np.testing.assert_allclose(np.diff(path[:, 0]), np.diff(path[:, 0])[0])
    assert pen_states.tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]


@settings(deadline=None, max_examples=40)
@given(points=strokes_lists, data=st.data())
def test_dwelling_on_a_point_changes_nothing(
    points: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    times = st.integers(1, 3)
    dwelt = [[p for p in stroke for _ in range(data.draw(times))] for stroke in points]
    for one, other in zip(
        resample(as_strokes(points), NUM_POINTS),
        resample(as_strokes(dwelt), NUM_POINTS),
        strict=True,
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("points", [[[(518, 1147)] * 2], [[(3, 4)], [(3, 4)]]])
def test_a_path_of_no_length_becomes_a_dot(points: list[list[tuple[int, int]]]) -> None:
    path, pen_states = resample(as_strokes(points), NUM_POINTS)
    assert np.array_equal(path, np.zeros((NUM_POINTS, 2)))
    assert pen_states.tolist() == [1] * NUM_POINTS
    assert np.isfinite(strokes_to_features(path, pen_states)).all()


def test_features_are_place_pen_and_unit_direction() -> None:
    path = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 0.0]])
    expected = np.array([[0, 0, 1, 0, 0], [3, 4, 1, 0.6, 0.8], [3, 4, 0, 0, 0], [3, 0, 1, 0, -1]])
    found = strokes_to_features(path, np.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ink_is_what_gaussian_windows_around_the_pen_see_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    path, pens = rng.normal(size=(7, 2)), np.array([1.0, 1, 0, 1, 0, 1, 1])
    places, width = [-CONTEXT_REACH, 0.0, CONTEXT_REACH], 2 / 3 * CONTEXT_REACH
    wanted = np.zeros((7, 3, 3))
    for step, column, row in itertools.product(range(7), range(3), range(3)):
        seen = path[step] + [places[column], places[row]]
        apart = ((path - seen) ** 2).sum(axis=1)
        share = (pens * np.exp(-apart / (2 * width**2))).mean()
        wanted[step, column, row] = 2 * math.sqrt(share)
    found = strokes_to_features(path, pens, 3)
    np.testing.assert_allclose(found[:, 5:], wanted.reshape(7, 9), atol=1e-6)
    assert np.array_equal(found[:, :5], strokes_to_features(path, pens))
    assert len(feature_names(3)) == 14
    # Whoever draws the same in another order leaves the same ink.
    order = rng.permutation(7)
    shuffled = strokes_to_features(path[order], pens[order], 3)
    np.testing.assert_allclose(shuffled[:, 5:], found[order, 5:], atol=1e-6)


def test_episodes_have_the_ink_around_and_a_trained_grid_is_kept() -> None:
    plain, with_ink = (
        load_pen(PenTasks(source="pen", context_grid=grid), seed=0) for grid in (0, 2)
    )
    assert with_ink.input_spec.num_features == 9
    for split in SPLITS:
        one, other = (
            tasks.sample_episode(split, np.random.default_rng(3)) for tasks in (plain, with_ink)
        )
        assert np.array_equal(one.support_x, other.support_x[..., :5])
    with pytest.raises(ValueError, match=r"context_grid is 3, which makes 14 features, .* 9 in"):
        pen_inputs(PenTasks(source="pen", context_grid=3), with_ink.facts)


# Augmentation


@cache
def paths_of_classes() -> np.ndarray:
    """Draws four recordings each of six characters, `[W, M, T, 2]`."""
    recordings = shipped()[0]
    return np.stack(
        [
            np.stack(
                [
                    resample(r.strokes, NUM_POINTS)[0]
                    for r in recordings
                    if r.character == character
                ][:4]
            )
            for character in "aGk5Rz"
        ]
    )


def augmented(augmentation: Augmentation, *, mirrored: bool = False, seed: int = 0) -> np.ndarray:
    paths = paths_of_classes()
    flags = np.full(len(paths), mirrored)
    return augment(paths, augmentation, flags, np.random.default_rng(seed))


def linear_maps(after: np.ndarray) -> tuple[np.ndarray, float]:
    """Finds the maps `[W, M, 2, 2]` of unit norm that led to `after`, and the largest deviation."""
    before = paths_of_classes()
    maps = np.linalg.pinv(before) @ after
    deviation = float(np.abs(before @ maps - after).max())
    maps = maps / np.linalg.norm(maps, axis=(-2, -1), keepdims=True)
    return maps.swapaxes(-1, -2), deviation


def test_no_augmentation_leaves_paths_unchanged() -> None:
    np.testing.assert_allclose(augmented(NO_AUGMENTATION), paths_of_classes(), atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_all_examples_of_a_class_share_its_affine_map(mirrored: bool) -> None:
    after = augmented(
        only(class_rotation_deg=40.0, class_scale=0.3, class_shear=0.3), mirrored=mirrored
    )
    maps, deviation = linear_maps(after)
    assert deviation < 1e-9
    np.testing.assert_allclose(maps, np.broadcast_to(maps[:, :1], maps.shape), atol=1e-9)
    for one, other in combinations(maps[:, 0], 2):
        assert np.abs(one - other).max() > 0.01
    assert ((np.linalg.det(maps) < 0) == mirrored).all()


@pytest.mark.parametrize(
    "augmentation",
    [
        only(example_rotation_deg=5.0),
        only(example_scale=0.05),
        only(example_shear=0.05),
    ],
)
def test_examples_of_a_class_vary_a_little_among_themselves(augmentation: Augmentation) -> None:
    maps, deviation = linear_maps(augmented(augmentation))
    assert deviation < 1e-9
    for of_class in maps:
        for one, other in combinations(of_class, 2):
            assert 1e-4 < np.abs(one - other).max() < 0.3


def test_rotations_stay_within_their_limit() -> None:
    angles = []
    for seed in range(50):
        maps, _ = linear_maps(augmented(only(class_rotation_deg=20.0), seed=seed))
        angles += np.rad2deg(np.arctan2(maps[:, 0, 1, 0], maps[:, 0, 0, 0])).tolist()
    assert -20.0 - 1e-6 < min(angles) < -18.0
    assert 18.0 < max(angles) < 20.0 + 1e-6


def test_bending_is_no_affine_map_and_smooth_in_time() -> None:
    bent = augmented(only(example_bend=0.1))
    _, deviation = linear_maps(bent)
    assert deviation > 0.01
    # The displacement is made of four half-waves, up to the renormalised place and size.
    time = np.linspace(0.0, 1.0, NUM_POINTS)
    waves = np.stack([np.cos(np.pi * k * time) for k in range(5)])
    before = paths_of_classes()
    for w, m in np.ndindex(before.shape[:2]):
        for axis in (0, 1):
            basis = np.column_stack([before[w, m, :, axis], *waves])
            _, residual, *_ = np.linalg.lstsq(basis, bent[w, m, :, axis])
            assert residual.item() < 1e-18


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_augmented_paths_are_centred_and_of_unit_size(seed: int) -> None:
    after = augmented(FULL_AUGMENTATION, mirrored=True, seed=seed)
    np.testing.assert_allclose(after.mean(axis=-2), 0.0, atol=1e-9)
    np.testing.assert_allclose((after**2).sum(axis=-1).mean(axis=-1), 1.0)


def test_only_meta_training_episodes_are_augmented() -> None:
    tasks = pen(augmentation=FULL_AUGMENTATION)
    for split in SPLITS:
        x = tasks.episodes(split, range(40)).support.x.flatten(0, 1).numpy()
        _, differences = nearest(x[..., :2])
        if split == "train":
            assert differences.min() > 0.01
        else:
            assert differences.max() < 1e-4


def test_mirrored_and_reversed_characters_are_classes_of_their_own() -> None:
    tasks = pen(augmentation=only(class_mirror=0.5, class_reverse=0.5))
    num_characters = 34
    assert tasks.num_train_classes == 4 * num_characters
    class_of: dict[str, set[int]] = {}
    for index in range(400):
        episode = tasks.episode("train", index)
        assert episode.way_classes is not None
        classes = episode.way_classes[episode.query_y]
        variants, characters = np.divmod(classes, num_characters)
        is_mirrored, is_reversed = variants % 2 == 1, variants >= 2
        paths = episode.query_x[..., :2] * np.where(is_mirrored, -1.0, 1.0)[:, None, None] ** [1, 0]
        paths = np.where(is_reversed[:, None, None], paths[:, ::-1], paths)
        numbers, differences = nearest(paths)
        assert differences.max() < 1e-4
        for number, character, class_ in zip(numbers, characters, classes, strict=True):
            of_character = class_of.setdefault(shipped()[0][number].character, set())
            of_character.add(int(class_))
            assert {int(other) % num_characters for other in of_character} == {character}
    assert len(class_of) == num_characters
    assert sorted(set().union(*class_of.values())) == list(range(4 * num_characters))


def test_a_reversed_recording_is_the_strokes_written_backwards() -> None:
    for recording in shipped()[0]:
        path, pen_states = resample(recording.strokes, NUM_POINTS)
        backwards = tuple(stroke[::-1] for stroke in recording.strokes[::-1])
        expected_path, expected_states = resample(backwards, NUM_POINTS)
        paths, pens = reverse(path[None, None], pen_states[None, None], np.array([True]))
        np.testing.assert_allclose(paths[0, 0], expected_path, atol=1e-9)
        assert np.array_equal(pens[0, 0], expected_states)


def test_only_the_asked_classes_are_reversed() -> None:
    paths = paths_of_classes()
    pens = np.random.default_rng(0).integers(0, 2, paths.shape[:3]).astype(float)
    flags = np.arange(len(paths)) % 2 == 0
    after, pens_after = reverse(paths, pens, flags)
    assert np.array_equal(after[flags], paths[flags][:, :, ::-1])
    assert np.array_equal(after[~flags], paths[~flags])
    assert np.array_equal(pens_after[~flags], pens[~flags])


def test_a_blend_mixes_two_characters_in_one_share_and_is_no_class() -> None:
    known = features()[..., :2].reshape(len(features()), -1)
    gram = np.einsum("if,jf->ij", known, known)
    squares = np.diag(gram)
    determinant = np.outer(squares, squares) - gram**2
    np.fill_diagonal(determinant, np.inf)
    episode = pen(augmentation=only(class_blend=1.0)).episode("train", 0)
    assert episode.way_classes is not None
    assert episode.way_classes.tolist() == [NO_CLASS] * 5
    blends: dict[int, list[tuple[str, str, float]]] = {}
    for x, label in zip(episode.query_x, episode.query_y, strict=True):
        # The pair of recordings of which the path is the best linear combination.
        path = x[:, :2].astype(np.float64).reshape(-1)
        along = np.einsum("if,f->i", known, path)
        weights = (squares * along[:, None] - gram * along) / determinant
        explained = weights * along[:, None] + weights.T * along
        pair = np.unravel_index(explained.argmax(), explained.shape)
        assert explained[pair] == pytest.approx(path @ path)
        one, other = sorted(
            (shipped()[0][number].character, weight)
            for number, weight in zip(pair, (weights[pair], weights.T[pair]), strict=True)
        )
        share = float(other[1] / (one[1] + other[1]))
        blends.setdefault(int(label), []).append((one[0], other[0], share))
    for of_class in blends.values():
        names, shares = {blend[:2] for blend in of_class}, [blend[2] for blend in of_class]
        assert len(names) == 1
        np.testing.assert_allclose(shares, shares[0], atol=1e-4)
        assert 0.25 <= shares[0] <= 0.75


# Broken data and impossible requests

CHARACTER = '.SEGMENT CHARACTER 0-1 ? "{}"\n.PEN_DOWN\n 1 2\n 3 4\n 5 7\n.PEN_UP\n.DT 100\n'
A, B = CHARACTER.format("a"), CHARACTER.format("b")


def written(characters: Sequence[str], writer: int) -> str:
    """Writes every character twice, never the same way."""
    rng = np.random.default_rng(writer)
    return "".join(
        CHARACTER.format(c).replace(" 5 7", " {} {}".format(*rng.integers(8, 10**6, 2)))
        for c in characters
        for _ in range(2)
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("", ": cannot be read as UNIPEN text: the file is empty", id="empty file"),
        pytest.param(".COMMENT a\n", ": no character found", id="no character"),
        pytest.param("a,b\n", ", line 1: expected a keyword or two integers", id="other format"),
        pytest.param(A + " 12\n", ", line 8: expected a keyword or two integers", id="cut line"),
        pytest.param(
            A.replace("3 4", "3 4.5"), ", line 4: expected a keyword or two integers", id="decimal"
        ),
        pytest.param(A + " 1 2\n", ", line 8: a point outside .PEN_DOWN", id="point in the air"),
        pytest.param(" 1 2\n" + A, ", line 1: a point outside .PEN_DOWN", id="point at the start"),
        pytest.param(".PEN_DOWN\n 1 2\n" + A, ", line 2: a point outside", id="no character yet"),
        pytest.param(
            A + B.replace(" 3 4\n 5 7\n", ""),
            ': the character "b" has fewer than two points',
            id="one point",
        ),
        pytest.param(
            A.replace(" 1 2\n 3 4\n 5 7\n", "") + B,
            ': the character "a" has fewer than two points',
            id="no point",
        ),
        pytest.param(A + "é", ", line 8: expected a keyword or two integers", id="no keyword"),
        pytest.param(
            A + B.replace('"b"', '"b'),
            ", line 8: ",
            id="cut segment line",
        ),
        pytest.param(
            A + B[: B.index(" 5 7")],
            ": ",
            id="cut between lines",
        ),
    ],
)
def test_broken_file_is_refused_with_its_name_and_line(
    tmp_path: Path, content: str, complaint: str
) -> None:
    for number in range(1, 6):
        (tmp_path / f"UJIpenchars-w0{number}").write_text(written("ab", number))
    broken = tmp_path / "UJIpenchars-w03"
    broken.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"^{re.escape(f'{broken}{complaint}')}"):
        pen(data_dir=tmp_path)


@pytest.mark.parametrize("quality", ["?", "OK", "GOOD", "BAD", "LAME"])
def test_every_quality_label_is_read(tmp_path: Path, quality: str) -> None:
    path = tmp_path / "UJIpenchars-w01"
    path.write_text(A.replace("?", quality).replace("0-1", "0:2-3,4"))
    (recording,), _ = recordings_in(path)
    assert recording.character == "a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_letters_beyond_ascii_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "UJIpenchars-w01"
    path.write_text(CHARACTER.format("é"), encoding=encoding)
    (recording,), _ = recordings_in(path)
    assert recording.character == "é"


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"UJIpenchars-w0{number}").write_text(written("ab", number))
    path = tmp_path / "UJIpenchars-w03"
    path.write_text(CHARACTER.format("é"), encoding="latin-1")
    with pytest.raises(DataError, match=r"w03: cannot be read as UNIPEN text: not UTF-8 \(byte"):
        pen(data_dir=tmp_path)


@pytest.mark.parametrize("split_seed", [0, 1, 99])
def test_a_copied_writer_is_refused_under_any_file_name(tmp_path: Path, split_seed: int) -> None:
    for path in PEN_DIR.iterdir():
        shutil.copy(path, tmp_path)
    # Blank lines and comments are no difference.
    text = (PEN_DIR / "UJIpenchars-w05").read_text().replace("\n.DT 100", "\n.COMMENT a\n")
    (tmp_path / "UJIpenchars-woman").write_text(text)
    with pytest.raises(DataError, match=r"w05 and writer UJIpenchars-woman share 124 of 124"):
        pen(data_dir=tmp_path, split_seed=split_seed)


def test_a_copy_elsewhere_on_the_tablet_is_a_copy(tmp_path: Path) -> None:
    for path in PEN_DIR.iterdir():
        shutil.copy(path, tmp_path)
    text = (PEN_DIR / "UJIpenchars-w05").read_text()
    moved = re.sub(
        r"^ *(-?\d+) +(-?\d+)$",
        lambda point: f"{int(point[1]) + 3} {int(point[2]) - 70}",
        text,
        flags=re.MULTILINE,
    )
    (tmp_path / "UJIpenchars-woman").write_text(moved)
    with pytest.raises(DataError, match=r"w05 and writer UJIpenchars-woman share 124 of 124"):
        pen(data_dir=tmp_path)


def test_a_recording_in_two_files_is_used_once(tmp_path: Path) -> None:
    writers = pen().deal["writer"]
    for path in PEN_DIR.iterdir():
        shutil.copy(path, tmp_path)
    tested, trained = (
        next(writer for writer, split in writers.items() if split == wanted)
        for wanted in ("test", "train")
    )
    text = (PEN_DIR / tested).read_text()
    start = text.index(".SEGMENT")
    recording = text[start : text.index(".SEGMENT", start + 1)]
    with (tmp_path / trained).open("a") as file:
        file.write(recording)
    ours, shipped_tasks = pen(data_dir=tmp_path), pen()
    for split in ("val", "test"):
        one, other = (t.episodes(split, range(20)) for t in (ours, shipped_tasks))
        assert torch.equal(one.query.x, other.query.x)
    assert ours.deal == shipped_tasks.deal


def test_data_without_letters_for_validation_are_refused_in_words(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"UJIpenchars-w0{number}").write_text(written("0123456789", number))
    with pytest.raises(DataError, match="the meta-val split holds no character; more data"):
        pen(data_dir=tmp_path)


def test_five_writers_are_enough_and_four_too_few(tmp_path: Path) -> None:
    for path in sorted(PEN_DIR.iterdir())[:5]:
        shutil.copy(path, tmp_path)
    assert len({r.writer for r in drawn(pen(num_queries=1, data_dir=tmp_path), "train")}) == 1
    (tmp_path / "UJIpenchars-w05").unlink()
    with pytest.raises(DataError, match=r"must come from more than 4 writers.*, but got 4$"):
        pen(data_dir=tmp_path)


def test_missing_folder_is_named_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no file named UJI.*; set tasks.data_dir"):
        pen(data_dir=tmp_path / "nowhere")


def test_a_set_of_more_characters_is_dealt_whole(tmp_path: Path) -> None:
    printable = [chr(code) for code in range(33, 127) if chr(code) != '"']
    for number in range(11):
        (tmp_path / f"UJIpenchars-w{number:02}").write_text(written(printable, number))
    assert pen(data_dir=tmp_path).num_train_classes == 4 * (len(printable) - 8 - 10)


@pytest.mark.parametrize(
    ("key", "numbers", "limit", "split"),
    [
        ("num_ways", {"num_ways": 9}, 8, "val"),
        ("num_ways", {"num_ways": 11}, 10, "test"),
        ("num_shots + tasks.num_queries", {"num_shots": 2, "num_queries": 3}, 4, "test"),
    ],
)
def test_impossible_episodes_are_refused(
    key: str, numbers: dict[str, int], limit: int, split: Split
) -> None:
    with pytest.raises(DataError) as error:
        pen(**numbers)
    message = str(error.value)
    assert message.startswith(f"tasks.{key} must be at most {limit}, ")
    assert message.endswith(f"in the meta-{split} split, but got {sum(numbers.values())}")


def test_the_largest_possible_episodes_are_served() -> None:
    episode = pen(num_shots=1, num_queries=3).episode("test", 0)
    assert (episode.support_x.shape[0], episode.query_x.shape[0]) == (5, 15)


def test_files_whose_names_do_not_fit_are_reported(tmp_path: Path) -> None:
    for path in PEN_DIR.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "writer12.txt").write_text(A)
    (tmp_path / ".DS_Store").write_text("")
    (warning,) = pen(data_dir=tmp_path).warnings
    assert warning == (
        f"{tmp_path}: 1 files are not read, since their names do not fit: writer12.txt"
    )
