"""`raymeta inspect`: counts, leaks, whether the data are enough, an episode."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymeta.episodes import SPLITS
from raymeta.errors import ExperimentError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.inspection import Inspection, inspect_tasks

SETTINGS: dict[str, Any] = {
    "source": "table",
    "sequence": "recording",
    "target": "kind",
    "time": "time",
    "features": ["x"],
    "groups": ["person"],
    "num_ways": 2,
    "num_queries": 1,
    "val_classes": 2,
    "test_classes": 2,
}


def rows(num_classes: int = 8, num_people: int = 6, repeats: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for kind, person, repeat in product(range(num_classes), range(num_people), range(repeats)):
        own = {
            "recording": f"r{kind}-{person}-{repeat}",
            "kind": f"k{kind}",
            "person": f"p{person}",
        }
        steps = int(rng.integers(9, 14))
        own |= {"room": f"room {person % 2}"}
        parts.append(pd.DataFrame(own | {"time": np.arange(steps), "x": rng.normal(size=steps)}))
    return pd.concat(parts, ignore_index=True)


Inspect = Callable[..., Inspection]


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    def inspect(frame: pd.DataFrame, **changes: Any) -> Inspection:
        frame.to_parquet(tmp_path / "rows.parquet")
        tasks = SETTINGS | {"data_dir": str(tmp_path)} | changes
        return inspect_tasks(
            load_experiment("pen", ["search.space={}", f"tasks={tasks!r}".replace("None", "null")])
        )

    return inspect


def test_every_sequence_is_in_a_split_or_counted_with_a_reason(inspect: Inspect) -> None:
    found = inspect(rows())
    dealt = found.dealt
    assert dealt.num_read == 8 * 6 * 2
    used = sum(len(dealt.chosen[split]) for split in SPLITS)
    ((reason, count),) = dealt.left_out.items()
    assert used + count == dealt.num_read
    assert "in different splits" in reason
    assert found.is_sound
    assert "2 classes of kind that no network has seen, from person not seen either" in found.task


def test_an_episode_shows_sequences_of_the_test_by_name(inspect: Inspect) -> None:
    found = inspect(rows(), kind="groups", num_ways=8)
    tested = set(found.dealt.chosen["test"].groups["recording"])
    assert [way.label for way in found.ways] == [f"k{n}" for n in range(8)]
    for way in found.ways:
        assert len(way.support) == len(way.query) == 1
        assert {*way.support, *way.query} <= tested
        # The first sequence of a person and a class is the support.
        assert way.support[0].endswith("-0")


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"num_queries": 5}, "num_ways: 2, num_shots: 1, num_queries: 1"),
        ({"num_shots": 9, "num_queries": 9}, "num_ways: 2, num_shots: 1, num_queries: 1"),
        ({"kind": "groups", "num_ways": 3}, "num_ways: 8, num_shots: 1, num_queries: 1"),
    ],
)
def test_data_that_are_not_enough_are_reported_with_the_numbers_that_fit(
    inspect: Inspect, changes: dict[str, Any], fits: str
) -> None:
    found = inspect(rows(), **changes)
    (error,) = [finding for finding in found.findings if finding.level == "error"]
    assert error.subject == "enough"
    assert error.text.endswith(f"what would fit: {fits}")
    assert not found.ways
    numbers = dict(part.split(": ") for part in fits.split(", "))
    again = inspect(rows(), **(changes | {key: int(value) for key, value in numbers.items()}))
    assert again.is_sound


def test_a_column_that_may_be_groups_is_reported_until_it_is_named(inspect: Inspect) -> None:
    found = inspect(rows(), kind="groups", num_ways=8)
    (room,) = [finding for finding in found.findings if finding.subject == "room"]
    assert "add it to tasks.groups" in room.text
    frame = rows()
    frame["room"] = "room " + frame.person
    found = inspect(frame, kind="groups", num_ways=8)
    assert not [finding for finding in found.findings if finding.subject == "room"]


def test_windows_of_one_recording_in_two_splits_are_reported(inspect: Inspect) -> None:
    frame, chosen = rows(), inspect(rows()).dealt.chosen
    one, other = (chosen[split].groups["recording"][0] for split in ("train", "test"))
    window = frame[frame.recording == one].x.to_numpy()[:9]
    frame.loc[(frame.recording == other) & (frame.time < 9), "x"] = window
    found = inspect(frame)
    (overlap,) = [finding for finding in found.findings if finding.subject == "overlap"]
    assert one in overlap.text
    assert other in overlap.text
    assert found.is_sound


def test_a_source_without_data_of_the_user_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"tasks.source is sinusoid"):
        inspect_tasks(load_experiment("sinusoid"))
