"""The sides of an episode: windows, the sequences they come from, and their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymeta.episodes import SPLITS, TaskDistribution
from raymeta.errors import DataError, ExperimentError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.leaks import WINDOW, find_shared_sides
from raymeta.tasks.load import load_tasks
from raymeta.tasks.preparation import Mirror
from raymeta.tasks.sides import Draw, Windows

EXPERIMENT = """
name: moves
tasks:
  source: table
  kind: groups
  data_dir: {folder}
  sequence: recording
  target: move
  features: [x, y]
  groups: [person]
  window: 10
  num_ways: 2
  num_shots: 3
  num_queries: 3
model: {{hidden_size: 4}}
"""
NUM_ROWS = 34

Load = Callable[..., TaskDistribution]


def moves() -> pd.DataFrame:
    """Makes two moves by four people, recorded three times each; no two rows are alike."""
    rows = []
    for person in range(4):
        for move in range(2):
            for repeat in range(3):
                rng = np.random.default_rng((person, move, repeat))
                x = rng.normal(size=(NUM_ROWS, 2))
                name = f"p{person}m{move}r{repeat}"
                facts = {"recording": name, "move": f"m{move}", "person": f"p{person}"}
                rows.append(pd.DataFrame(facts | {"x": x[:, 0], "y": x[:, 1]}))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    moves().to_csv(tmp_path / "moves.csv", index=False)
    (tmp_path / "own.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    return tmp_path / "own.yaml"


@pytest.fixture
def load(file: Path) -> Load:
    return lambda *sets: load_tasks(load_experiment(str(file), sets))


def shown_rows(tasks: TaskDistribution) -> dict[bytes, tuple[str, int]]:
    """Maps what a network reads of a row to the row's recording and number."""
    table = moves()
    mean, deviation = np.array(tasks.facts["mean"]), np.array(tasks.facts["deviation"])
    x = ((table[["x", "y"]].to_numpy() - mean) / deviation).astype(np.float32)
    number = table.groupby("recording").cumcount()
    return {
        row.tobytes(): (name, int(at))
        for row, name, at in zip(x, table.recording, number, strict=True)
    }


@pytest.mark.parametrize(
    ("step", "starts"), [(None, [0, 10, 20]), (4, [0, 4, 8, 12, 16, 20, 24]), (13, [0, 13])]
)
def test_windows_begin_every_step_and_lie_within_their_sequence(
    step: int | None, starts: list[int]
) -> None:
    found = Windows.of(np.array([34, 7, 10]), 10, step)
    assert found.starts.tolist() == [*starts, 0, 0]
    assert found.owner.tolist() == [0] * len(starts) + [1, 2]
    assert found.lengths.tolist() == [10] * len(starts) + [7, 10]


def test_without_windows_a_sequence_is_one_example() -> None:
    found = Windows.of(np.array([34, 7]), None, None)
    assert (found.owner.tolist(), found.lengths.tolist()) == ([0, 1], [34, 7])


@pytest.mark.parametrize("seed", range(40))
def test_as_many_queries_are_left_as_promised_whatever_is_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, int(rng.integers(2, 6))).tolist()
    each = [None, 1, 2][seed % 3]
    draw = Draw(int(rng.integers(1, 5)), 99, at_random=seed % 2 == 0, each=each)
    promised = draw.num_served(sizes)
    if promised < 0:
        assert sum(min(size, each or size) for size in sizes) < draw.num_shots
        return
    ends = np.cumsum(sizes)
    sequences = np.split(np.arange(ends[-1]), ends[:-1])
    left = []
    for _ in range(200):
        try:
            rows = draw(sequences, rng)
        except ValueError:  # nothing is left for the queries
            left.append(0)
            continue
        owner = np.searchsorted(ends, rows, side="right")
        support, query = owner[: draw.num_shots], owner[draw.num_shots :]
        assert not set(support) & set(query)
        assert len(set(rows)) == len(rows)
        if each is not None:
            assert max(np.bincount(owner)) <= each
        left.append(len(query))
    assert min(left) == promised if not draw.at_random else min(left) >= promised


@pytest.mark.parametrize("rule", ["first", "random"])
def test_no_recording_is_on_both_sides_and_windows_are_its_rows(load: Load, rule: str) -> None:
    tasks = load(f"tasks.support={rule}")
    known, supports = shown_rows(tasks), set()
    for split in SPLITS:
        for index in range(30):
            episode = tasks.episode(split, index)
            sides = []
            for x, y in (
                (episode.support_x, episode.support_y),
                (episode.query_x, episode.query_y),
            ):
                shown = [[known[row.tobytes()] for row in own] for own in x]
                for rows, way in zip(shown, y, strict=True):
                    (name,) = {name for name, _ in rows}
                    start = rows[0][1]
                    assert start % 10 == 0
                    assert [at for _, at in rows] == list(range(start, start + 10))
                    assert tasks.deal["person"][name[:2]] == split
                    assert name[3] == str(way)
                sides.append({rows[0] for rows in shown})
            support, query = sides
            assert len(support) == len(query) == 6
            assert not {name for name, _ in support} & {name for name, _ in query}
            supports.add(frozenset(name for name, _ in support))
            if rule == "first":
                assert {name[4:] for name, _ in support} == {"r0"}
    assert (len(supports) > 4) == (rule == "random")


def test_an_episode_takes_a_bounded_number_of_windows_of_a_sequence(load: Load) -> None:
    tasks = load("tasks.windows_each=2", "tasks.num_shots=2")
    for index in range(20):
        episode = tasks.episode("train", index)
        assert episode.query_ids is not None
        assert np.bincount(episode.query_ids).max() == 2


def test_sequences_of_meta_training_become_their_mirror_image_with_all_their_windows(
    load: Load,
) -> None:
    plain, tasks = load("tasks.support=random"), load("tasks.support=random", "tasks.mirror=[y]")
    assert tasks.facts == plain.facts
    mean, deviation = np.array(plain.facts["mean"]), np.array(plain.facts["deviation"])
    table = moves()
    recordings, rows = table.recording.to_numpy(), table[["x", "y"]].to_numpy()
    count = {True: 0, False: 0}
    for index in range(20):
        episode = tasks.episode("train", index)
        assert episode.support_ids is not None
        assert episode.query_ids is not None
        signs: dict[int, bool] = {}
        for x, sequence in zip(
            (*episode.support_x, *episode.query_x),
            (*episode.support_ids, *episode.query_ids),
            strict=True,
        ):
            read = x.astype(float) * deviation + mean
            at = {
                turned: np.abs(rows[:, None] * [1, -1 if turned else 1] - read).max(axis=2)
                for turned in (False, True)
            }
            is_turned = bool(at[True].min() < at[False].min())
            found = at[is_turned].argmin(axis=0)
            assert at[is_turned][found, range(10)].max() < 1e-5
            assert found.tolist() == list(range(found[0], found[0] + 10))
            assert len(set(recordings[found])) == 1
            assert signs.setdefault(int(sequence), is_turned) == is_turned
            count[is_turned] += 1
    assert min(count.values()) > 0.3 * sum(count.values())
    for split in ("val", "test"):
        assert np.array_equal(tasks.episode(split, 0).query_x, plain.episode(split, 0).query_x)


def test_padding_stays_zero_in_a_mirror_image() -> None:
    mirror = Mirror.of(["y"], ["x", "y"], np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    x = np.array([[[1.0, 0.5], [0.0, 0.0]]], dtype=np.float32)
    # y was 4 + 2 * 0.5 = 5, and (-5 - 4) / 2 = -4.5.
    assert mirror(x, np.array([1])).tolist() == [[[1.0, -4.5], [0.0, 0.0]]]


def test_queries_that_are_not_sure_to_be_left_are_refused(load: Load) -> None:
    load("tasks.num_queries=6", "tasks.support=random")
    with pytest.raises(DataError, match=r"9 windows of 3 sequences, of which 6 are sure") as error:
        load("tasks.num_queries=7", "tasks.support=random")
    assert "tasks.window_step" in str(error.value)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("tasks.kind=classes", "window is for kind: groups alone"),
        ("tasks.window=null tasks.windows_each=2", "windows_each needs window"),
        ("tasks.window=null tasks.kind=classes tasks.support=random", "support is for kind"),
        ("tasks.spectrum={frequencies: 10}", "spectrum.frequencies must be at most 6"),
        ("tasks.spectrum={frequencies: 4, per_step: 3}", "must be a multiple of per_step"),
        ("tasks.spectrum={frequencies: 4} tasks.missing=mask", "evenly spaced rows"),
        ("tasks.mirror=[z]", "mirror must name features, each once, but got 'z'"),
        ("tasks.mirror=[x,x]", "each once, but got 'x'"),
        ("tasks.mirror=[x] tasks.spectrum={frequencies: 4}", "mirror needs signs"),
        ("tasks.mirror=[x] tasks.window=null tasks.kind=classes", "mirror is for kind: groups"),
    ],
)
def test_impossible_settings_are_refused(load: Load, override: str, complaint: str) -> None:
    sets = override.replace("{", "{").split(" tasks.")
    with pytest.raises(ExperimentError, match=complaint):
        load(sets[0], *(f"tasks.{more}" for more in sets[1:]))


def test_inspect_reports_windows_and_finds_no_shared_sides(file: Path) -> None:
    found = inspect_tasks(load_experiment(str(file)))
    assert found.is_sound
    assert "an example is a window of 10 rows, and no recording has windows on both" in found.task
    (enough,) = [finding.text for finding in found.findings if finding.subject == "enough"]
    assert enough == "every split serves 2 ways with 6 windows each"
    for way in found.ways:
        assert not set(way.support) & set(way.query)


@dataclass(frozen=True)
class _Leaky:
    """Puts something of the support set among the queries."""

    tasks: TaskDistribution
    kind: str

    def __call__(self, split, rng):
        episode = self.tasks.sample_episode(split, rng)
        assert episode.support_ids is not None
        x, ids = episode.query_x.copy(), np.array(episode.query_ids)
        match self.kind:
            case "sequence":
                ids[0] = episode.support_ids[1]
            case "example":
                x[0] = episode.support_x[1]
            case "rows":
                x[0, 10 - WINDOW :] = episode.support_x[1, :WINDOW]
        return replace(episode, query_x=x, query_ids=ids)


@pytest.mark.parametrize("kind", ["sequence", "example", "rows"])
def test_recordings_planted_on_both_sides_are_found(load: Load, kind: str) -> None:
    tasks = load()
    assert find_shared_sides(tasks) == []
    found = find_shared_sides(replace(tasks, sample_episode=_Leaky(tasks, kind)), 3)
    assert [finding.level for finding in found] == ["error"] * 3
    assert f"3 of 3 episodes of meta-train share data: {'both' if kind == 'rows' else ''}" in (
        found[0].text
    )
