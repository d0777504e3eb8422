"""Tables: reading, splits by class and group, training, and broken tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import raymeta
from raymeta.episodes import SPLITS, TaskDistribution
from raymeta.errors import DataError, ExperimentError
from raymeta.evaluation.controls.class_means import class_mean_scores
from raymeta.experiment.data_files import copy_data
from raymeta.experiment.file import load_experiment
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import load_tasks

NUM_CLASSES, NUM_PEOPLE, NUM_REPEATS = 9, 5, 4

# What a user writes into a file of his own.
EXPERIMENT = """
name: gestures
tasks:
  source: table
  data_dir: {folder}
  sequence: recording
  target: gesture
  time: time
  features: [x, y]
  groups: [person]
  num_ways: 2
  num_shots: 1
  num_queries: 2
  val_classes: 2
  test_classes: 2
model: {{hidden_size: 8}}
"""


def gestures(seed: int = 0) -> pd.DataFrame:
    """Makes circles by several people, with a speed and size for each class."""
    return _gestures(seed).copy()


@cache
def _gestures(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for gesture in range(NUM_CLASSES):
        for person in range(NUM_PEOPLE):
            for repeat in range(NUM_REPEATS):
                steps = np.arange(rng.integers(6, 12))
                phase = steps * (0.3 + 0.2 * gesture) + rng.uniform(0, 6)
                noise = rng.normal(0, 0.1, (2, len(steps)))
                rows.append(
                    pd.DataFrame(
                        {
                            "recording": f"g{gesture}p{person}r{repeat}",
                            "gesture": f"gesture {gesture}",
                            "person": f"person {person}",
                            "time": steps,
                            "x": (1 + gesture) * np.cos(phase) + noise[0],
                            "y": (1 + gesture) * np.sin(phase) + noise[1] + 100,
                            "note": "not read",
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


Load = Callable[..., TaskDistribution]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads tables, by default one as CSV; `sets` are overrides."""

    def load(*tables: pd.DataFrame, sets: tuple[str, ...] = ()) -> TaskDistribution:
        for number, table in enumerate(tables or (gestures(),)):
            table.to_csv(tmp_path / f"gestures{number}.csv", index=False)
        file = tmp_path / "own.yaml"
        file.write_text(EXPERIMENT.format(folder=tmp_path))
        return load_tasks(load_experiment(str(file), sets))

    return load


@pytest.mark.slow
def test_episodes_show_the_rows_of_the_table(load: Load) -> None:
    table = gestures()
    tasks = load(table)
    train = table[
        table.gesture.map(tasks.deal["gesture"]).eq("train")
        & table.person.map(tasks.deal["person"]).eq("train")
    ]
    values = train[["x", "y"]].to_numpy()
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    np.testing.assert_allclose(tasks.facts["mean"], mean)
    np.testing.assert_allclose(tasks.facts["deviation"], deviation)
    for split in SPLITS:
        known = {
            ((rows[["x", "y"]].to_numpy() - mean) / deviation).astype(np.float32).tobytes(): (
                rows.gesture.iloc[0],
                rows.person.iloc[0],
            )
            for _, rows in table.groupby("recording")
        }
        for index in range(30):
            episode = tasks.episode(split, index)
            assert episode.query_lengths is not None
            shown = [
                known[x[:length].tobytes()]
                for x, length in zip(episode.query_x, episode.query_lengths, strict=True)
            ]
            assert {tasks.deal["gesture"][gesture] for gesture, _ in shown} == {split}
            assert {tasks.deal["person"][person] for _, person in shown} == {split}
            gestures_shown = [gesture for gesture, _ in shown]
            assert gestures_shown[0] == gestures_shown[1] != gestures_shown[2]


@pytest.mark.parametrize("large", [1e200, -1e300, 1e308])
@pytest.mark.parametrize("split", SPLITS)
def test_numbers_too_large_to_be_standardised_are_refused(
    load: Load, large: float, split: str
) -> None:
    """A network would see zeros in meta-training, or infinities in meta-test."""
    table, deal = gestures(), load().deal
    row = next(
        row
        for row, (gesture, person) in enumerate(zip(table.gesture, table.person, strict=True))
        if deal["gesture"][gesture] == deal["person"][person] == split
    )
    table.loc[row, "y"] = large
    with pytest.raises(DataError, match="column y: holds numbers too large to be standardised"):
        load(table)


def test_parquet_and_csv_are_the_same_data(load: Load, tmp_path: Path) -> None:
    csv = load()
    gestures().to_parquet(tmp_path / "all.parquet")
    parquet = load(sets=("tasks.files=all.parquet",))
    assert parquet.fingerprint == csv.fingerprint
    one, other = (t.episodes("test", range(5)) for t in (csv, parquet))
    assert torch.equal(one.support.x, other.support.x)


def test_rows_in_any_order_are_sorted_by_time(load: Load) -> None:
    expected = load().episodes("test", range(5))
    table = gestures()
    shuffled = table.sample(frac=1, random_state=1)
    # The order of the sequences themselves is that of the file.
    shuffled["place"] = shuffled.recording.map({r: n for n, r in enumerate(table.recording)})
    shuffled = shuffled.sort_values("place", kind="stable").drop(columns="place")
    found = load(shuffled).episodes("test", range(5))
    assert torch.equal(found.support.x, expected.support.x)


def test_dates_order_rows_too(load: Load) -> None:
    expected = load()
    table = gestures()
    dated = table.assign(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(table.time, unit="s"))
    assert load(dated.iloc[::-1].iloc[::-1]).fingerprint == expected.fingerprint


def test_several_files_are_one_table(load: Load) -> None:
    whole = load()
    table = gestures()
    half = table.recording.isin(table.recording.unique()[: 4 * 20])
    assert load(table[half], table[~half]).fingerprint == whole.fingerprint


def test_the_class_mean_control_beats_chance(load: Load) -> None:
    scores = class_mean_scores(load(), "test", 100)
    assert scores.mean() > 0.7


@pytest.mark.ray
@pytest.mark.slow
def test_a_table_is_meta_trained_and_meta_tested(load: Load, tmp_path: Path) -> None:
    load()
    report = raymeta.train(
        str(tmp_path / "own.yaml"),
        overrides=[
            "training.meta_steps=4",
            "training.meta_batch_size=2",
            "training.val_episodes=4",
            "evaluation.num_episodes=10",
        ],
        runs_dir=tmp_path / "runs",
        keep_data=True,
    )
    assert np.isfinite(report.meta_test.rows[0].score.mean)
    assert "2 classes" in report.meta_test.note
    assert [path.name for path in (Path(str(report.run.path)) / "data").iterdir()] == [
        "gestures0.csv"
    ]


def spoilt(row: int, **values: Any) -> pd.DataFrame:
    """Returns the table with other values in one row, counted from 1."""
    table = gestures().astype(object)
    for column, value in values.items():
        table.loc[row - 1, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        pytest.param(
            spoilt(3, x="fast"), ", row 3, column x: 'fast' is not a finite number; mend", id="text"
        ),
        pytest.param(spoilt(7, y=None), ", row 7, column y: the value is missing", id="missing"),
        pytest.param(
            spoilt(2, x="inf"), ", row 2, column x: 'inf' is not a finite number", id="infinite"
        ),
        pytest.param(
            spoilt(2, x="9" * 5000), ", row 2, column x: '999", id="number of 5,000 digits"
        ),
        pytest.param(
            spoilt(2, gesture=None), ", row 2, column gesture: the value is missing", id="no class"
        ),
        pytest.param(
            spoilt(2, gesture="gesture 8"),
            ", row 2, column gesture: must be the same in all rows of sequence 'g0p0r0'",
            id="two classes",
        ),
        pytest.param(
            spoilt(2, person="person 8"),
            ", row 2, column person: must be the same in all rows of sequence 'g0p0r0'",
            id="two people",
        ),
        pytest.param(
            spoilt(2, time=0),
            ", row 2, column time: sequence 'g0p0r0' has the time of row 1",
            id="time",
        ),
        pytest.param(
            spoilt(2, time="soon"),
            ", row 2, column time: 'soon' is not a finite number",
            id="no time",
        ),
        pytest.param(
            gestures().rename(columns={"gesture": "gestures"}),
            ": has no column 'gesture'; did you mean 'gestures'?",
            id="unknown column",
        ),
        pytest.param(gestures()[:0], ": has no rows", id="no rows"),
    ],
)
def test_a_broken_table_is_refused_with_file_row_and_column(
    load: Load, tmp_path: Path, table: pd.DataFrame, complaint: str
) -> None:
    with pytest.raises(DataError) as error:
        load(table)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'gestures0.csv'}{complaint}")
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(b"", "cannot be read as CSV", id="empty"),
        pytest.param(b"\xff\xfe\x00", "", id="binary"),
        pytest.param(b"recording,gesture\n1,2,3\n", "cannot be read as CSV", id="ragged"),
        pytest.param(b"x,y\n1,2\n", "has no column 'recording'", id="other columns"),
        pytest.param(
            b"recording,gesture,person,time,x,x,y\n1,2,3,4,5,6,7\n",
            "multiple columns named x",
            id="column twice",
        ),
        pytest.param(b'recording,"gesture\n' * 1000, "", id="open quote"),
    ],
)
def test_a_damaged_csv_file_is_refused(
    load: Load, tmp_path: Path, content: bytes, complaint: str
) -> None:
    load()
    file = tmp_path / "gestures0.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_tasks(load_experiment(str(tmp_path / "own.yaml")))
    assert str(file) in str(error.value)
    assert complaint in str(error.value)
    assert len(str(error.value)) < 1500


def test_a_damaged_parquet_file_is_refused(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    gestures().to_parquet(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(sets=("tasks.files=all.parquet",))


def test_without_times_the_rows_of_a_sequence_must_be_together(load: Load) -> None:
    sets = ("tasks.time=null",)
    assert load(sets=sets).fingerprint == load().fingerprint
    apart = pd.concat([gestures()[1:], gestures()[:1]])
    with pytest.raises(DataError, match="the rows of sequence 'g0p0r0' are not together"):
        load(apart, sets=sets)


def test_a_sequence_id_in_two_files_is_refused(load: Load) -> None:
    with pytest.raises(DataError, match=r"gestures1.csv, sequence 'g0p0r0' occurs in another file"):
        load(gestures(0), gestures(1))


def test_a_longer_sequence_is_refused(load: Load) -> None:
    with pytest.raises(DataError, match=r"has 11 rows, but tasks.max_steps is 10"):
        load(sets=("tasks.max_steps=10",))


def test_a_person_under_two_names_is_refused(load: Load) -> None:
    table = gestures()
    copy = table[table.person == "person 3"].copy()
    copy["person"] = "somebody else"
    copy["recording"] += " again"
    with pytest.raises(
        DataError, match="person person 3 and person somebody else share 36 of 36 sequences"
    ):
        load(pd.concat([table, copy]))


def test_copies_of_one_sequence_are_dropped_and_counted(load: Load) -> None:
    table = gestures()
    copy = table[table.recording == "g0p0r0"].copy()
    copy["recording"] = "copy"
    whole, doubled = load(table), load(pd.concat([table, copy]))
    assert doubled.fingerprint == whole.fingerprint
    for split in SPLITS:
        one, other = (t.episodes(split, range(20)) for t in (whole, doubled))
        assert torch.equal(one.query.x, other.query.x)


def test_one_sequence_of_two_classes_is_dropped_and_counted(load: Load) -> None:
    tasks = load()
    one, other = [c for c, split in tasks.deal["gesture"].items() if split == "train"][:2]
    person = next(p for p, split in tasks.deal["person"].items() if split == "train")
    table = gestures()
    rows = table[(table.gesture == one) & (table.person == person)]
    copy = rows[rows.recording == rows.recording.iloc[0]].copy()
    copy["gesture"], copy["recording"] = other, "copy"
    with pytest.warns(UserWarning, match="2 sequences of equal content have different classes"):
        load(pd.concat([table, copy]), sets=("tasks.num_queries=1",))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("tasks.features=[x, x]", "a column has one role, but 'x' is named twice"),
        ("tasks.target=person", "a column has one role, but 'person' is named twice"),
        ("tasks.num_ways=3", "val_classes and test_classes must be at least num_ways"),
        ("tasks.files=../*.csv", "tasks.files: must name files within data_dir"),
        ("tasks.features=[]", "tasks.features must have at least 1 items"),
        ("tasks.split_seed=18446744073709551616", "tasks.split_seed"),
    ],
)
def test_impossible_settings_are_refused(load: Load, override: str, complaint: str) -> None:
    with pytest.raises(ExperimentError, match=complaint.replace("[", r"\[")):
        load(sets=(override,))


def test_too_few_groups_are_refused_with_the_keys(load: Load) -> None:
    with pytest.raises(DataError, match=r"person must have more than 5 groups.*tasks.val_groups"):
        load(sets=("tasks.test_groups=4",))


def test_features_differ_between_any_two_splits(load: Load) -> None:
    tasks = load()
    shown = {
        split: {x.tobytes() for i in range(40) for x in tasks.episode(split, i).query_x}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not shown[one] & shown[other]


@pytest.mark.slow
def test_the_command_line_prints_what_was_dropped_as_one_line(load: Load, tmp_path: Path) -> None:
    table, deal = gestures(), load().deal
    tested = table[
        table.gesture.map(deal["gesture"]).eq("test") & table.person.map(deal["person"]).eq("test")
    ]
    copy = tested[tested.recording == tested.recording.iloc[0]].copy()
    copy["recording"] = "copy"
    with pytest.warns(UserWarning, match="1 sequences are copies"):
        load(pd.concat([table, copy]))
    cluster = Path(raymeta.__file__).parents[1] / "cluster" / "local.yaml"
    command = [sys.executable, "-m", "raymeta", "check", str(tmp_path / "own.yaml")]
    checked = subprocess.run(
        [*command, "--cluster", str(cluster)], capture_output=True, text=True, check=False
    )
    (line,) = [line for line in checked.stderr.splitlines() if "arning" in line]
    assert line.startswith("warning: 1 sequences are copies of others and were dropped; gestures0")


def one_sequence(tasks: TaskDistribution, table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns the features of a support sequence before standardisation, and its rows."""
    episode = tasks.episode("train", 0)
    assert episode.support_lengths is not None
    length = int(episode.support_lengths[0])
    x = episode.support_x[0, :length] * tasks.facts["deviation"] + tasks.facts["mean"]
    y = x[:, tasks.facts["features"].index("y")]
    for _, rows in table.groupby("recording"):
        if len(rows) == length and np.allclose(rows.y, y, atol=1e-4):
            return x, rows
    pytest.fail("an episode shows a sequence of the table")


@pytest.mark.parametrize("word", ["", "NA", "nan", "null"])
def test_missing_numbers_are_interpolated_in_time(load: Load, word: str) -> None:
    table = gestures()
    table["time"] = table.time.astype(float) ** 2
    gaps = table.assign(x=table.x.astype(object))
    gaps.loc[gaps.index % 3 == 1, "x"] = word
    tasks = load(gaps, sets=("tasks.missing=interpolate",))
    x, rows = one_sequence(tasks, table)
    known = rows.index % 3 != 1
    expected = np.interp(rows.time, rows.time[known], rows.x[known])
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-4)


def test_a_mask_says_which_numbers_are_missing_and_since_when(load: Load) -> None:
    table = gestures()
    gaps = table.assign(x=table.x.where(table.index % 3 != 1))
    tasks = load(gaps, sets=("tasks.missing=mask",))
    assert tasks.facts["features"] == [
        "x", "y", "x observed", "y observed", "x time since observed", "y time since observed",
    ]  # fmt: skip
    assert tasks.input_spec.num_features == 6
    x, rows = one_sequence(tasks, table)
    known = (rows.index % 3 != 1).astype(float)
    np.testing.assert_allclose(x[:, 2], known, atol=1e-5)
    np.testing.assert_allclose(x[:, 3], 1.0, atol=1e-5)
    carried = rows.x.where(known == 1).ffill().fillna(tasks.facts["mean"][0])
    np.testing.assert_allclose(x[:, 0], carried, atol=1e-4)
    since = np.where(known[:-1] == 1, 1, 2)
    since[0] = 1  # before the first number the time counts from the first step
    np.testing.assert_allclose(x[1:, 4], since, atol=1e-4)


def test_a_sequence_without_any_number_cannot_be_interpolated(load: Load) -> None:
    table = gestures()
    table.loc[table.recording == "g3p3r3", "x"] = None
    sets = ("tasks.missing=interpolate", "tasks.groups=[]")
    with pytest.raises(DataError, match=r"'g3p3r3': column x has no number.*tasks.missing to mask"):
        load(table, sets=sets)
    load(table, sets=("tasks.missing=mask",))


def test_time_differences_of_dates_are_in_seconds(load: Load) -> None:
    table = gestures()
    clock = table.time.astype(float) ** 2
    dated = table.assign(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(clock, unit="min"))
    tasks = load(dated, sets=("tasks.time_differences=true",))
    x, rows = one_sequence(tasks, dated)
    steps = np.diff(clock[rows.index], prepend=clock[rows.index[0]])
    np.testing.assert_allclose(x[:, 2], 60 * steps, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rule", ["refuse", "leave_out"])
def test_small_classes_are_refused_or_left_out_and_counted(load: Load, rule: str) -> None:
    table = gestures()
    deal = load().deal["gesture"]
    small = next(name for name, split in deal.items() if split == "train")
    kept = table[table.gesture == small].recording.unique()[:2]
    cut = table[(table.gesture != small) | table.recording.isin(kept)]
    sets = (f"tasks.small_classes={rule}", "tasks.groups=[]")
    if rule == "refuse":
        with pytest.raises(DataError, match="must be at most 2, the examples of a class"):
            load(cut, sets=sets)
        return
    with pytest.warns(UserWarning, match="1 classes have fewer than 3 sequences; left out, with 2"):
        tasks = load(cut, sets=sets)
    assert small not in tasks.deal["gesture"]


GROUPS = ("tasks.kind=groups", f"tasks.num_ways={NUM_CLASSES}")


def test_a_group_is_a_task_whose_first_sequences_are_the_support(load: Load) -> None:
    tasks, table = load(sets=GROUPS), gestures()
    assert set(tasks.deal) == {"person"}
    assert tasks.fixed_labels
    mean, deviation = np.array(tasks.facts["mean"]), np.array(tasks.facts["deviation"])
    known = {
        ((rows[["x", "y"]].to_numpy() - mean) / deviation).astype(np.float32).tobytes(): name
        for name, rows in table.groupby("recording")
    }
    for split in SPLITS:
        for index in range(20):
            episode = tasks.episode(split, index)
            assert episode.support_lengths is not None
            assert episode.query_lengths is not None
            support, query = (
                [known[x[:length].tobytes()] for x, length in zip(part, lengths, strict=True)]
                for part, lengths in (
                    (episode.support_x, episode.support_lengths),
                    (episode.query_x, episode.query_lengths),
                )
            )
            (person,) = {name[2:4] for name in (*support, *query)}
            assert tasks.deal["person"][f"person {person[1]}"] == split
            # Labels are those of the whole table, and support comes before queries.
            assert [name[:2] for name in support] == [f"g{way}" for way in range(NUM_CLASSES)]
            assert [int(name[1]) for name in query] == episode.query_y.tolist()
            assert {name[4:] for name in support} == {"r0"}
            assert "r0" not in {name[4:] for name in query}


def test_groups_with_too_few_of_a_class_are_left_out_and_counted(load: Load) -> None:
    table, deal = gestures(), load(sets=GROUPS).deal["person"]
    person = next(name for name, split in deal.items() if split == "train")
    cut = table[(table.person != person) | (table.gesture != "gesture 0")]
    with pytest.raises(DataError, match="holds 0 examples of a class"):
        load(cut, sets=GROUPS)
    with pytest.warns(UserWarning, match=r"1 units of person have a class with fewer than 3"):
        tasks = load(cut, sets=(*GROUPS, "tasks.small_classes=leave_out"))
    assert person not in tasks.deal["person"]


def test_groups_have_all_classes_as_ways(load: Load) -> None:
    with pytest.raises(DataError, match=r"tasks.num_ways must be 9, the number of classes"):
        load(sets=("tasks.kind=groups",))


@pytest.mark.parametrize("form", ["tsv", "jsonl", "feather", "arrow", "stream.arrow"])
def test_every_format_is_the_same_data(load: Load, tmp_path: Path, form: str) -> None:
    csv, file = load(), tmp_path / f"all.{form}"
    match form:
        case "stream.arrow":  # as Hugging Face's save_to_disk writes it
            table = pa.Table.from_pandas(gestures())
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=10)
        case "tsv":
            gestures().to_csv(file, index=False, sep="\t")
        case "jsonl":
            gestures().to_json(file, orient="records", lines=True, double_precision=15)
        case _:
            gestures().to_feather(file)
    found = load(sets=(f"tasks.files=all.{form}",))
    np.testing.assert_allclose(found.facts["mean"], csv.facts["mean"], rtol=1e-12)
    assert found.deal == csv.deal


def test_lists_folders_and_patterns_name_the_files(load: Load, tmp_path: Path) -> None:
    whole, table = load(), gestures()
    (tmp_path / "gestures0.csv").unlink()
    for person, rows in table.groupby("person"):
        (tmp_path / f"{person} rows").mkdir()
        rows.to_csv(tmp_path / f"{person} rows" / "all.csv", index=False)
    file = tmp_path / "own.yaml"
    listed = [f"person {n} rows/all.csv" for n in range(NUM_PEOPLE)]
    for files in (["person * rows/*.csv"], listed, [*listed[::-1], "person 1*/*.csv"]):
        experiment = load_experiment(str(file), [f"tasks.files={files}"])
        assert [f"{path.parent.name}/{path.name}" for path in experiment.tasks.data_files()] == (
            listed
        )
        assert load_tasks(experiment).deal == whole.deal
    copied = copy_data(experiment, tmp_path / "copy")
    names = sorted(p.relative_to(tmp_path / "copy").as_posix() for p in tmp_path.rglob("copy/**/*"))
    assert [name for name in names if name.endswith("csv")] == [f"data/{name}" for name in listed]
    tasks = copied.tasks.model_copy(update={"data_dir": str(tmp_path / "copy" / "data")})
    assert load_tasks(copied.model_copy(update={"tasks": tasks})).deal == whole.deal


@pytest.mark.parametrize(
    "files", ["../*.csv", "/etc/*.csv", "a/../../b.csv", "**/*.csv", "a//b.csv", "*.csv\\0", "*"]
)
def test_patterns_that_lead_out_of_the_folder_are_refused(load: Load, files: str) -> None:
    with pytest.raises(ExperimentError, match=r"tasks.files: must"):
        load(sets=(f'tasks.files=["{files}"]',))


def test_a_link_out_of_the_folder_is_refused(load: Load, tmp_path: Path) -> None:
    load()
    outside = tmp_path.parent / f"{tmp_path.name} outside"
    outside.mkdir()
    (tmp_path / "gestures0.csv").rename(outside / "secret.csv")
    (tmp_path / "linked").symlink_to(outside)
    for files, link in (("[]", "gestures0.csv"), ("linked/*.csv", "linked/secret.csv")):
        if not (tmp_path / "gestures0.csv").is_symlink():
            (tmp_path / "gestures0.csv").symlink_to(outside / "secret.csv")
        with pytest.raises(DataError, match=rf"{link}: is a link to a file outside"):
            load_tasks(load_experiment(str(tmp_path / "own.yaml"), [f"tasks.files={files}"]))


def test_unread_tables_are_reported_if_all_files_were_asked_for(load: Load, tmp_path: Path) -> None:
    (tmp_path / "more.csv.gz").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 files are not read.*more.csv.gz"):
        load()


def test_the_shipped_vowels_are_whole_and_named_with_their_licence() -> None:
    experiment = load_experiment("vowels")
    dealt = inspect_tasks(experiment).dealt
    assert (dealt.num_read, dealt.left_out, dealt.warnings) == (270, {}, ())
    for split in SPLITS:
        assert set(dealt.sizes(split)[""].values()) == {30}
        lengths = dealt.chosen[split].lengths
        assert 7 <= lengths.min() < lengths.max() <= 26
    (file,) = experiment.tasks.data_files()
    assert file.stat().st_size < 300_000
    told = (Path(str(file)).parents[1] / "README.md").read_text()
    assert "`japanese_vowels/`" in told
    assert "CC BY 4.0" in told
    assert class_mean_scores(load_tasks(experiment), "test", 100).mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "sequences", "rows", "most_bytes"),
    [
        ("exercise", "watch_exercises", 140, (118, 327), 400_000),
        ("pigs", "pig_cvp", 312, (500, 500), 300_000),
    ],
)
def test_shipped_recordings_are_whole_and_named_with_their_licence(
    name: str, folder: str, sequences: int, rows: tuple[int, int], most_bytes: int
) -> None:
    experiment = load_experiment(name)
    found = inspect_tasks(experiment)
    assert found.is_sound
    dealt = found.dealt
    assert (dealt.num_read, dealt.left_out, dealt.warnings) == (sequences, {}, ())
    lengths = np.concatenate([dealt.chosen[split].lengths for split in SPLITS])
    assert (lengths.min(), lengths.max()) == rows
    (file,) = experiment.tasks.data_files()
    assert file.stat().st_size < most_bytes
    told = (Path(str(file)).parents[1] / "README.md").read_text()
    assert f"`{folder}/`" in told
    assert "BSD" in told
    assert (Path(str(file)).parent / "LICENSE").read_text().startswith("Copyright (c) 2018")


def test_a_file_that_builds_on_shipped_data_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("base: vowels\nname: own\ntasks: {num_shots: 2}\n")
    shipped, own = load_experiment("vowels").tasks, load_experiment(str(file)).tasks
    assert own == shipped.model_copy(update={"num_shots": 2})
