"""Random tables: every row is used or counted, and nothing leaks between splits."""

from __future__ import annotations

import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.episodes import SPLITS
from raymeta.errors import DataError
from raymeta.tasks.leaks import find_leaks
from raymeta.tasks.table import deal_table, load_table
from raymeta.tasks.table_settings import TableTasks

# Few values, so that copies and contradictions come up.
VALUES = st.sampled_from(["0", "1", "2", "-0.0", "0.5", "1e3"])
CLOCK = count(1_000_000_000)
FORMS = ("csv", "jsonl", "parquet", "feather")


@st.composite
def tables(draw: st.DrawFn) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Draws a table of sequences in random order, and settings to read it."""
    num_classes = draw(st.integers(1, 8))
    num_people = draw(st.integers(1, 5))
    gaps = draw(st.booleans())
    rows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 60))):
        own = {
            "id": f"s{number}",
            "kind": f"k{draw(st.integers(1, num_classes))}",
            "who": f"w{draw(st.integers(1, num_people))}",
        }
        for t in range(draw(st.integers(1, 4))):
            x = draw(st.one_of(VALUES, st.none())) if gaps else draw(VALUES)
            mode = draw(st.sampled_from(["on", "off", None, "Öl, 5"]))
            value = None if x is None else float(x)
            rows.append(own | {"t": 2.5 * t, "x": value, "mode": mode})
    order = np.random.default_rng(draw(st.integers(0, 9))).permutation(len(rows))
    ways = draw(st.integers(2, 3))
    chosen = {
        "kind": draw(st.sampled_from(["classes", "groups"])),
        "num_ways": ways,
        "num_queries": draw(st.integers(1, 2)),
        "val_classes": ways,
        "test_classes": ways,
        "missing": draw(st.sampled_from(["mask", "interpolate"] if gaps else ["refuse"])),
        "small_classes": draw(st.sampled_from(["refuse", "leave_out"])),
        "time_differences": draw(st.booleans()),
        "categories": ["mode"] if draw(st.booleans()) else [],
    }
    chosen["groups"] = ["who"] if chosen["kind"] == "groups" or draw(st.booleans()) else []
    return pd.DataFrame(rows).iloc[order], chosen


def write(frame: pd.DataFrame, folder: Path, form: str) -> None:
    for old in folder.glob("rows*"):
        old.unlink()
    file = folder / f"rows.{form}"
    match form:
        case "csv":
            frame.to_csv(file, index=False)
        case "jsonl":
            frame.to_json(file, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(file, index=False)
        case _:
            frame.reset_index(drop=True).to_feather(file)
    # A file of the same size and time is the same file to the cache.
    at = next(CLOCK)
    os.utime(file, (at, at))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(case=tables())
def test_every_row_is_used_or_accounted_for_and_nothing_leaks(
    form: str, case: tuple[pd.DataFrame, dict[str, Any]], tmp_path_factory: Any
) -> None:
    frame, chosen = case
    folder = tmp_path_factory.getbasetemp() / f"random {form}"
    folder.mkdir(exist_ok=True)
    write(frame, folder, form)
    columns = {"sequence": "id", "target": "kind", "time": "t", "features": ["x"]}
    tasks = TableTasks.model_validate(
        {"source": "table", "data_dir": str(folder), **columns, **chosen}
    )
    try:
        dealt = deal_table(tasks)
    except DataError as error:
        assert "who" in str(error) or "column" in str(error)  # noqa: PT017
        return
    sequences = {name: rows.sort_values("t") for name, rows in frame.groupby("id")}
    used = Counter[str]()
    for split in SPLITS:
        own = dealt.chosen[split]
        used.update(own.groups["id"])
        for row, name in enumerate(own.groups["id"]):
            rows = sequences[name]
            np.testing.assert_array_equal(own.x[row][:, 0], rows.x.astype(float))
            if chosen["categories"]:
                modes = [own.levels.get(code) for code in own.x[row][:, 1].tolist()]
                assert modes == [None if pd.isna(mode) else mode for mode in rows["mode"]]
            np.testing.assert_array_equal(own.times[row], rows.t)
            assert own.classes[row] == rows.kind.iloc[0]
            for axis, units in dealt.deal.items():
                assert units[rows[axis].iloc[0]] == split
    assert set(used.values()) <= {1}
    assert dealt.num_read == len(sequences) == used.total() + sum(dealt.left_out.values())
    axes = [*dealt.groups, *([""] if chosen["kind"] == "classes" else [])]
    assert [leak for leak in find_leaks(dealt.chosen, axes) if leak.level == "error"] == []
    ways = len(dealt.classes) if chosen["kind"] == "groups" else tasks.num_ways
    asked = ways, tasks.num_shots + tasks.num_queries
    try:
        loaded = load_table(tasks, seed=0)
    except DataError:
        return
    assert tasks.num_ways == ways
    assert dealt.fitting(*asked) == asked
    episodes = loaded.episodes("test", [0, 1])
    assert np.isfinite(episodes.query.x.numpy()).all()
