"""Episodes are a function of (seed, split, index); stacking and moving keep their values."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymeta.episodes import SPLITS, Episode, Episodes, InputSpec, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.experiment.schema import Experiment
from raymeta.tasks.load import load_tasks

SOURCES: dict[str, dict[str, Any]] = {
    "pen": {"augmentation": {"class_reverse": 0.5, "class_blend": 0.5}},
    "sentiment": {},
    "sinusoid": {},
}

every_source = pytest.mark.parametrize("name", SOURCES)
splits = st.sampled_from(SPLITS)
index_lists = st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True)


@cache
def distribution(name: str, seed: int = 0) -> TaskDistribution:
    tasks = {"source": name} | SOURCES[name]
    return load_tasks(Experiment.model_validate({"name": name, "seed": seed, "tasks": tasks}))


def tensors(episodes: Episodes) -> list[Tensor]:
    """Returns all tensors of a batch, in one order."""
    found = [episodes.seeds, episodes.way_classes]
    for examples in (episodes.support, episodes.query):
        found += [examples.x, examples.y, examples.lengths]
    return [tensor for tensor in found if tensor is not None]


def digest(name: str, seed: int, split: Split, index: int) -> str:
    """Hashes all values of one episode except its seed."""
    content = [
        t.numpy().tobytes() for t in tensors(distribution(name, seed).episodes(split, [index]))
    ]
    return hashlib.sha256(b"".join(content[1:])).hexdigest()


@every_source
@settings(deadline=None, max_examples=25)
@given(split=splits, indices=index_lists, data=st.data())
def test_an_episode_is_the_same_in_every_batch_and_order(
    name: str, split: Split, indices: list[int], data: st.DataObject
) -> None:
    tasks = distribution(name)
    batch = tensors(tasks.episodes(split, indices))
    order = data.draw(st.permutations(range(len(indices))))
    reordered = tensors(tasks.episodes(split, [indices[i] for i in order]))
    for row, index in enumerate(indices):
        alone = tensors(tasks.episodes(split, [index]))
        for in_batch, elsewhere, single in zip(batch, reordered, alone, strict=True):
            assert torch.equal(in_batch[row], single[0])
            assert torch.equal(elsewhere[order.index(row)], single[0])


@every_source
def test_episodes_of_other_seeds_splits_and_indices_differ(name: str) -> None:
    keys = list(product((0, 1), SPLITS, range(5)))
    assert len({digest(name, *key) for key in keys}) == len(keys)
    seeds = {
        int(distribution(name, seed).episodes(split, [index]).seeds) for seed, split, index in keys
    }
    assert len(seeds) == len(keys)


@pytest.mark.slow
def test_another_process_draws_the_same_episodes() -> None:
    """Workers share no memory and hash strings differently."""
    script = (
        "import runpy, sys; digest = runpy.run_path(sys.argv[1])['digest']\n"
        "print(*(digest(name, 3, 'train', 7) for name in sys.argv[2:]))"
    )
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    elsewhere = subprocess.run(
        [sys.executable, "-c", script, __file__, *SOURCES],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.split() == [digest(name, 3, "train", 7) for name in SOURCES]


@every_source
def test_batches_have_the_documented_shapes_and_types(name: str) -> None:
    tasks = distribution(name)
    episodes = tasks.episodes("train", [0, 1, 2])
    assert len(episodes) == 3
    assert episodes.seeds.dtype == torch.int64
    for examples in (episodes.support, episodes.query):
        sizes = examples.x.shape[:3]
        if tasks.input_spec.vocabulary_size is None:
            assert examples.x.shape == (*sizes, tasks.input_spec.num_features)
            assert examples.x.dtype == torch.float32
        else:
            assert examples.x.shape == sizes
            assert examples.x.dtype == torch.int64
            assert int(examples.x.max()) < tasks.input_spec.vocabulary_size
        if tasks.input_spec.problem == "regression":
            assert examples.y.shape == (*sizes[:2], tasks.input_spec.num_outputs)
            assert examples.y.dtype == torch.float32
        else:
            assert examples.y.shape == sizes[:2]
            assert examples.y.dtype == torch.int64
            assert set(examples.y.flatten().tolist()) == set(range(tasks.input_spec.num_outputs))
        if examples.lengths is not None:
            assert examples.lengths.dtype == torch.int64
            assert 1 <= int(examples.lengths.min()) <= int(examples.lengths.max()) <= sizes[2]


def of_varying_length(
    num_steps: dict[Split, int], *, with_lengths: bool = True
) -> TaskDistribution:
    """Makes episodes of one support and two query examples, of up to `num_steps` steps."""

    def sample(split: Split, rng: np.random.Generator) -> Episode:
        longest = rng.integers(1, num_steps[split] + 1, size=2)
        support_x = rng.normal(size=(1, longest[0], 3))
        query_x = rng.normal(size=(2, longest[1], 3))
        return Episode(
            support_x=support_x,
            support_y=np.zeros(1, dtype=np.int64),
            query_x=query_x,
            query_y=np.arange(2),
            support_lengths=longest[:1] if with_lengths else None,
            query_lengths=rng.integers(1, longest[1] + 1, size=2) if with_lengths else None,
        )

    return TaskDistribution("varying", InputSpec("classification", 2, num_features=3), 0, sample)


@settings(deadline=None, max_examples=50)
@given(split=splits, indices=index_lists)
def test_stacking_pads_with_zeros_to_the_longest_and_keeps_lengths(
    split: Split, indices: list[int]
) -> None:
    tasks = of_varying_length({"train": 2, "val": 7, "test": 30})
    batch = tasks.episodes(split, indices)
    drawn = [tasks.episode(split, index) for index in indices]
    for part, xs, lengths in (
        (batch.support, [e.support_x for e in drawn], [e.support_lengths for e in drawn]),
        (batch.query, [e.query_x for e in drawn], [e.query_lengths for e in drawn]),
    ):
        assert part.x.shape[2] == max(x.shape[1] for x in xs)
        assert part.lengths is not None
        for stacked_NTD, x_NTD in zip(part.x.numpy(), xs, strict=True):
            assert np.array_equal(stacked_NTD[:, : x_NTD.shape[1]], x_NTD)
            assert not stacked_NTD[:, x_NTD.shape[1] :].any()
        assert np.array_equal(part.lengths.numpy(), np.stack([n for n in lengths if n is not None]))


def test_what_an_episode_lacks_the_batch_lacks() -> None:
    batch = of_varying_length({"train": 1, "val": 1, "test": 1}, with_lengths=False).episodes(
        "val", [0, 1]
    )
    assert (batch.support.lengths, batch.query.lengths, batch.way_classes) == (None, None, None)


@every_source
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_moving_converts_floats_only(name: str, dtype: torch.dtype) -> None:
    before = distribution(name).episodes("val", [0, 1])
    after = before.to(torch.device("cpu"), dtype)
    for old, new in zip(tensors(before), tensors(after), strict=True):
        assert new.dtype == (dtype if old.is_floating_point() else torch.int64)
        assert torch.equal(new, old.to(new.dtype))


@every_source
def test_moving_takes_examples_to_the_device(name: str) -> None:
    moved = distribution(name).episodes("val", [0]).to(torch.device("meta"), torch.float32)
    for examples in (moved.support, moved.query):
        present = [t for t in (examples.x, examples.y, examples.lengths) if t is not None]
        assert {t.device.type for t in present} == {"meta"}


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 7}, "token ids must be from 0 to 6, but got 1 to 7"),
        ({"x": 10**9}, "token ids must be from 0 to 6"),
        ({"x": -1}, "token ids must be from 0 to 6, but got -1 to 1"),
        ({"lengths": 0}, "lengths must be from 1 to 4, but got 0 to 4"),
        ({"lengths": 5}, "lengths must be from 1 to 4"),
        ({"lengths": -3}, "lengths must be from 1 to 4"),
    ],
)
def test_tokens_and_lengths_that_no_network_can_read_are_refused(
    part: str, change: dict[str, int], message: str
) -> None:
    def sample(split: Split, rng: np.random.Generator) -> Episode:
        values = {"x": np.ones((2, 4), np.int64), "lengths": np.full(2, 4)}
        changed = {name: value.copy() for name, value in values.items()}
        for name, bad in change.items():
            changed[name].flat[-1] = bad
        support, query = (changed if part == p else values for p in ("support", "query"))
        return Episode(
            support_x=support["x"],
            support_y=np.arange(2),
            query_x=query["x"],
            query_y=np.arange(2),
            support_lengths=support["lengths"],
            query_lengths=query["lengths"],
        )

    tasks = TaskDistribution("words", InputSpec("classification", 2, vocabulary_size=7), 0, sample)
    with pytest.raises(DataError, match=f"tasks 'words', val episodes: {message}"):
        tasks.episodes("val", [0, 1])


def test_examples_of_another_number_of_features_are_refused() -> None:
    tasks = of_varying_length({"train": 2, "val": 2, "test": 2})
    other = replace(tasks, input_spec=InputSpec("classification", 2, num_features=4))
    with pytest.raises(DataError, match=r"must be \[N, T, 4\], but got"):
        other.episodes("train", [0])


@every_source
def test_another_training_seed_changes_only_meta_training_episodes(name: str) -> None:
    tasks = {"source": name} | SOURCES[name]
    given = {"name": name, "tasks": tasks, "training": {"seed": 1}}
    other, own = load_tasks(Experiment.model_validate(given)), distribution(name)
    assert (other.deal, other.fingerprint) == (own.deal, own.fingerprint)
    for split in SPLITS:
        pairs = zip(
            tensors(own.episodes(split, range(3))),
            tensors(other.episodes(split, range(3))),
            strict=True,
        )
        same = [a.shape == b.shape and torch.equal(a, b) for a, b in pairs]
        assert same[0] == all(same) == (split != "train")
