"""Large tables are prepared once a machine, and mapped: the same episodes, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymeta.data import files
from raymeta.data.files import forget_read
from raymeta.episodes import SPLITS, Episode, TaskDistribution
from raymeta.errors import DataError
from raymeta.experiment.file import load_experiment
from raymeta.tasks import load as load_module
from raymeta.tasks import ready, regression, table
from raymeta.tasks.load import load_tasks

EXPERIMENT = """
name: moves
tasks:
  source: table
  data_dir: {folder}
  sequence: recording
  target: move
  time: at
  features: [x, y]
  groups: [person]
  max_steps: 40
  num_ways: 2
  num_shots: 2
  num_queries: 2
  val_classes: 2
  test_classes: 2
model: {{hidden_size: 4}}
"""
KINDS: dict[str, tuple[str, ...]] = {
    "classes": ("tasks.test_groups=2",),
    "groups": ("tasks.kind=groups", "tasks.num_ways=6", "tasks.mirror=[y]"),
    "windows, masks, times": (
        *("tasks.kind=groups", "tasks.num_ways=6", "tasks.window=7", "tasks.window_step=3"),
        *("tasks.missing=mask", "tasks.time_differences=true"),
    ),
    "spectra": (
        *("tasks.kind=groups", "tasks.num_ways=6"),
        "tasks.spectrum={frequencies: 8, per_step: 2}",
    ),
    "a number": (
        *("tasks.kind=groups", "tasks.target={number: dose}", "tasks.num_ways=1"),
        *("learner=ridge", "tasks.window=7"),
    ),
    "forecasts": (
        *("tasks.kind=forecast", "tasks.target=dose", "tasks.num_ways=1", "learner=ridge"),
        *("tasks.context=4", "tasks.horizon=2", "tasks.num_shots=2", "tasks.num_queries=2"),
    ),
    "remaining life": (
        *("tasks.kind=groups", "tasks.target={rul: at}", "tasks.num_ways=1", "learner=ridge"),
        *("tasks.window=7", "tasks.window_step=4"),
    ),
}
every_kind = pytest.mark.parametrize("sets", KINDS.values(), ids=KINDS)

Load = Callable[..., TaskDistribution]


def moves() -> pd.DataFrame:
    """Makes six moves by seven people, recorded six times each, of 20 to 40 rows."""
    rows = []
    for number in range(6 * 7 * 6):
        rng = np.random.default_rng(number)
        steps = int(rng.integers(20, 41))
        x = rng.normal(size=(steps, 2))
        facts = {
            "recording": f"r{number:03}",
            "move": f"m{number % 6}",
            "person": f"p{number // 36}",
            "at": np.cumsum(rng.integers(1, 4, steps)),
            "dose": rng.normal(size=steps),
        }
        rows.append(pd.DataFrame(facts | {"x": x[:, 0], "y": x[:, 1]}))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "raymeta" / "tables"


@pytest.fixture
def file(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "data").mkdir()
    moves().to_parquet(tmp_path / "data" / "moves.parquet")
    (tmp_path / "own.yaml").write_text(EXPERIMENT.format(folder=tmp_path / "data"))
    return tmp_path / "own.yaml"


@pytest.fixture
def load(file: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads as a process that begins does, by default a table that counts as large."""

    def load(*sets: str, least: int = 0) -> TaskDistribution:
        monkeypatch.setattr(ready, "LARGE_BYTES", least)
        load_module._load.cache_clear()
        forget_read()
        files._content_digest.cache_clear()
        return load_tasks(load_experiment(str(file), sets))

    return load


@pytest.fixture
def never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the table was read")

    for module in (table, regression):
        monkeypatch.setattr(module, "read_sequences", fail)


def values_of(episode: Episode) -> list[bytes]:
    parts = [value for value in vars(episode).values() if isinstance(value, np.ndarray)]
    return [part.tobytes() for part in (*parts, *(episode.query_units or {}).values())]


def check_equal(one: TaskDistribution, other: TaskDistribution) -> None:
    for split in SPLITS:
        for index in range(5):
            found = values_of(one.episode(split, index))
            assert found == values_of(other.episode(split, index))
            assert len(found) > 6
    for name in ("fingerprint", "deal", "facts", "note", "warnings", "target_scale", "input_spec"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.legend.units == other.legend.units
    assert list(one.legend.classes) == list(other.legend.classes)
    assert json.loads(json.dumps(other.facts)) == one.facts


@every_kind
def test_mapped_tables_give_the_same_episodes_bit_for_bit(
    load: Load, cache: Path, sets: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    plain = load(*sets, least=10**9)
    assert not cache.exists()
    made = load(*sets)
    assert len(list(cache.iterdir())) == 1
    request.getfixturevalue("never_reads")
    mapped = load(*sets)
    for found in (made, mapped):
        check_equal(plain, found)
        if plain.recorded is not None:
            assert found.recorded is not None
            check_equal(plain.recorded, found.recorded)


def test_what_counts_for_drawing_alone_shares_a_file(
    load: Load, cache: Path, request: pytest.FixtureRequest
) -> None:
    load()
    request.getfixturevalue("never_reads")
    assert load("tasks.num_shots=1", "tasks.num_queries=3", "seed=5").seed == 5
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(DataError, match=r"num_shots \+ tasks.num_queries must be at most"):
        load("tasks.num_queries=1000")


def test_other_settings_and_data_have_files_of_their_own(load: Load, cache: Path) -> None:
    found = [load(), load("tasks.split_seed=1"), load("evaluation.sealed=true", "tasks.num_ways=2")]
    small = ("tasks.small_classes=leave_out",)
    found += [load(*small), load(*small, "tasks.num_queries=3")]
    (data,) = (cache.parents[2] / "data").iterdir()
    changed, before = moves(), data.stat()
    changed["x"] *= -1.0
    changed.to_parquet(data)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.stat().st_size == before.st_size
    found.append(load())
    assert len(list(cache.iterdir())) == len(found) == 6
    assert found[0].fingerprint != found[-1].fingerprint


@pytest.mark.slow
def test_a_damaged_file_is_made_anew(
    load: Load, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load()
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # `first` is mapped to it
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        check_equal(first, load())
    assert f"{file}: cannot be used and is made anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_reported_and_done_without(
    load: Load, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(least=10**9)
    cache.parent.mkdir(parents=True)
    cache.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        check_equal(plain, load())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "every process holds it by itself" in told[0]
    assert "set XDG_CACHE_HOME" in told[0]


WORKER = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from pathlib import Path
from raymeta.experiment.file import load_experiment
from raymeta.tasks import ready, table
from raymeta.tasks.load import load_tasks
ready.LARGE_BYTES = 0
deal = table.deal_table
def told(*arguments, **named):
    print("deals", flush=True)
    return deal(*arguments, **named)
table.deal_table = told
tasks = load_tasks(load_experiment(sys.argv[1]))
print("holds", tasks.fingerprint, flush=True)
sys.stdin.readline()
for line in Path("/proc/self/smaps").read_text().splitlines():
    words = line.split()
    is_head = not words[0].endswith(":")
    if is_head:
        ours = line.endswith(".arrow")
    elif ours and words[0] in ("Rss:", "Pss:", "Private_Dirty:"):
        print(words[0], words[1], flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_processes_prepare_once_and_share_their_pages(file: Path) -> None:
    count = 3
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(count)
    ]
    said: list[list[str]] = []
    for process in running:
        assert process.stdout is not None
        said.append([process.stdout.readline().strip()])
        if said[-1] == ["deals"]:
            said[-1].append(process.stdout.readline().strip())
    memory = []
    for process in running:  # all hold their tasks; one after the other looks
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("look\n")
        process.stdin.flush()
        found = dict(process.stdout.readline().split() for _ in range(3))
        memory.append({name: int(value) for name, value in found.items()})
    for process in running:
        process.communicate()
        assert process.returncode == 0
    assert sum(lines[0] == "deals" for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    assert all(own["Private_Dirty:"] == 0 for own in memory)
    # The first one looks while all others live, and so has its share of each page.
    assert memory[0]["Pss:"] <= memory[0]["Rss:"] / count + 4
    assert memory[0]["Rss:"] > 4 * count
