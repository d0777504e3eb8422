"""`raymeta new`: its guesses about a table, the file it writes, and its refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymeta.errors import DataError, ExperimentError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.draft import draft
from raymeta.tasks.guess import guess_tasks
from raymeta.tasks.load import load_tasks
from raymeta.tasks.table_settings import TableTasks


def table(num_classes: int = 9, num_people: int = 1, repeats: int = 5) -> pd.DataFrame:
    """Makes walks with a slope for each class, and further columns as people have them."""
    rng = np.random.default_rng(0)
    parts = []
    for kind, person, repeat in product(range(num_classes), range(num_people), range(repeats)):
        steps = int(rng.integers(5, 9))
        parts.append(
            pd.DataFrame(
                {
                    "recording": f"r{kind}-{person}-{repeat}",
                    "kind": f"kind {kind}",
                    "person": f"person {person}",
                    "time": np.arange(steps),
                    "x": kind * np.arange(steps) + rng.normal(size=steps),
                    "z": rng.normal(size=steps),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def written(folder: Path, frame: pd.DataFrame, name: str = "rows.csv") -> str:
    path = folder / name
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            frame.to_feather(path)
    return str(path)


def loaded(folder: Path, settings: TableTasks) -> Any:
    """Loads the tasks of the file that `raymeta new` writes."""
    file = folder / "mine.yaml"
    file.write_text(draft("mine", settings, "raymeta new", "mine.yaml"))
    experiment = load_experiment(str(file))
    assert experiment.tasks == settings
    assert experiment.search.space
    tasks = load_tasks(experiment)
    tasks.episodes("test", range(3))
    return tasks


# Library -> the names that its users' long tables have, and what raymeta makes of them.
ALIASES = {
    "nixtla": {"recording": "unique_id", "time": "ds", "kind": "y"},
    "autogluon": {"recording": "item_id", "time": "timestamp", "kind": "target"},
    "pytorch forecasting": {"recording": "group_ids", "time": "time_idx", "kind": "label"},
    "sktime": {"recording": "instances", "time": "timepoints", "kind": "class"},
    "aeon": {"recording": "case_id", "time": "timepoint", "kind": "label"},
    "tsai": {"recording": "sample_id", "time": "time", "kind": "target"},
}


@pytest.mark.parametrize("library", ALIASES)
def test_the_names_of_other_libraries_are_understood(library: str, tmp_path: Path) -> None:
    names = ALIASES[library]
    frame = table().rename(columns=names).drop(columns="person")
    if library in ("nixtla", "autogluon"):
        day = pd.Timestamp("2026-01-01")
        frame[names["time"]] = day + pd.to_timedelta(frame[names["time"]], unit="D")
    guess = guess_tasks(written(tmp_path, frame))
    found = guess.settings
    assert (found.sequence, found.time) == (names["recording"], names["time"])
    assert found.target == names["kind"]
    assert found.features == ["x", "z"]
    assert not found.time_differences
    loaded(tmp_path, found)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "feather", "arrow"])
def test_every_format_gives_the_same_guess_and_the_same_data(form: str, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    expected = guess_tasks(written(tmp_path / "csv", table()), target="kind")
    found = guess_tasks(written(tmp_path, table(), f"rows.{form}"), target="kind")
    assert found.findings == expected.findings
    one, other = (loaded(tmp_path, guess.settings) for guess in (expected, found))
    np.testing.assert_allclose(one.facts["mean"], other.facts["mean"], rtol=1e-9)
    assert one.deal == other.deal


def test_a_task_column_makes_each_of_its_groups_a_task(tmp_path: Path) -> None:
    location = written(tmp_path, table(3, num_people=6))
    guess = guess_tasks(location, target="kind", task=["person"])
    assert (guess.settings.kind, guess.settings.num_ways) == ("groups", 3)
    assert guess.settings.groups == ["person"]
    tasks = loaded(tmp_path, guess.settings)
    assert set(tasks.deal) == {"person"}
    # Labels stay, so that the draft begins with what all people have in common.
    experiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert (experiment.learner, experiment.ridge.learned_prior) == ("ridge", True)


def test_many_classes_are_held_out_and_known_groups_with_them(tmp_path: Path) -> None:
    guess = guess_tasks(written(tmp_path, table(12, num_people=6)), target="kind")
    assert (guess.settings.kind, guess.settings.groups) == ("classes", ["person"])
    assert set(loaded(tmp_path, guess.settings).deal) == {"kind", "person"}


def test_a_folder_and_a_pattern_are_read_whole(tmp_path: Path) -> None:
    for number, part in table().groupby("person"):
        written(tmp_path, part, f"{number}.csv")
    whole = guess_tasks(str(tmp_path), target="kind").settings
    some = guess_tasks(f"{tmp_path}/p*.csv", target="kind").settings
    assert (whole.data_dir, whole.files) == (str(tmp_path), [])
    assert (some.data_dir, some.files) == (str(tmp_path), ["p*.csv"])
    assert whole.data_files() == some.data_files()
    for location in (f"file://{tmp_path}", f"file://{tmp_path}/person 0.csv"):
        assert guess_tasks(location, target="kind").settings.data_files() == whole.data_files()


def test_unusable_columns_are_reported(tmp_path: Path) -> None:
    frame = table().assign(constant=1.5, note="text")
    frame["row"] = np.arange(len(frame))
    frame["height"] = frame.recording.map(lambda name: len(name) + 0.5 * int(name[1]))
    guess = guess_tasks(written(tmp_path, frame), target="kind")
    told = {finding.subject: finding.text for finding in guess.findings}
    assert guess.settings.features == ["x", "z"]
    assert "never changes" in told["constant"]
    assert "never changes" in told["note"]
    assert "counts the rows" in told["row"]
    assert "same in all rows of a sequence" in told["height"]


def test_missing_numbers_and_irregular_times_become_features(tmp_path: Path) -> None:
    frame = table()
    frame.loc[[1, 5], "x"] = None
    frame["time"] = frame["time"] ** 2
    guess = guess_tasks(written(tmp_path, frame), target="kind")
    assert (guess.settings.missing, guess.settings.time_differences) == ("mask", True)
    tasks = loaded(tmp_path, guess.settings)
    assert tasks.input_spec.num_features == 2 * 3 + 1


def test_classes_with_one_sequence_are_left_out(tmp_path: Path) -> None:
    frame = table()
    rare = frame.recording.isin(["r0-0-0", "r1-0-0"])
    frame.loc[rare, "kind"] = "rare " + frame.recording
    guess = guess_tasks(written(tmp_path, frame), target="kind")
    assert guess.settings.small_classes == "leave_out"
    with pytest.warns(UserWarning, match="2 classes have fewer than 4 sequences"):
        loaded(tmp_path, guess.settings)


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        (lambda f: f, {}, "which column is the class.*--target"),
        (lambda f: f, {"target": "knd"}, r"no column 'knd' \(--target\); did you mean 'kind'"),
        (lambda f: f.drop(columns="time"), {"target": "x"}, "numbers to be forecast need.*--time"),
        (
            lambda f: f.assign(kind=f.time % 3),  # labels of steps, not of sequences
            {"target": "kind"},
            "which column orders the rows",
        ),
        (
            lambda f: f.assign(recording=f.recording.str[-1]),
            {"target": "kind"},
            "which rows are one sequence.*--sequence",
        ),
        (
            lambda f: f.assign(other=f.recording).rename(columns={"recording": "one"}),
            {"target": "kind"},
            "several columns could tell: one, other; name the column with --sequence",
        ),
        (
            lambda f: f.drop(columns="time").sample(frac=1, random_state=0),
            {"target": "kind"},
            "which column orders the rows.*--time",
        ),
        (
            lambda f: f[["recording", "kind", "time"]],
            {"target": "kind"},
            "no column of numbers is left to be a feature",
        ),
        (lambda f: f, {"target": "kind", "task": ["person"]}, "three at least are needed"),
        (lambda f: f, {"target": "kind", "task": ["x"]}, "--task x must hold one label"),
        (lambda f: f, {"target": "kind", "task": ["kind"]}, "has another role already"),
        (
            lambda f: f[f.kind < "kind 2"],
            {"target": "kind"},
            "too few sequences for any episode: 2 classes",
        ),
        (
            lambda f: f.rename(columns={"recording": "case_id", "x": "value", "z": "dim_id"}),
            {"target": "kind"},
            "pivot it first",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_is_refused_with_the_option_that_tells_it(
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    options: dict[str, Any],
    complaint: str,
) -> None:
    location = written(tmp_path, change(table()))
    with pytest.raises(DataError, match=complaint) as error:
        guess_tasks(location, **options)
    assert len(str(error.value)) < 1500


def test_options_settle_open_roles(tmp_path: Path) -> None:
    frame = (
        table()
        .assign(other=lambda f: f.recording)
        .rename(columns={"recording": "one", "time": "clock"})
    )
    location = written(tmp_path, frame)
    found = guess_tasks(location, target="kind", sequence="one", time="clock").settings
    assert (found.sequence, found.time, found.features) == ("one", "clock", ["x", "z"])


@pytest.mark.parametrize("name", ["no", "a: b", "x #y", "é", "1e5", "'", '"', " z", "[a", "null"])
def test_columns_of_any_name_survive_the_file(tmp_path: Path, name: str) -> None:
    frame = table().rename(columns={"x": name, "kind": f"{name} kind"})
    guess = guess_tasks(written(tmp_path, frame), target=f"{name} kind")
    loaded(tmp_path, guess.settings)


def test_a_column_that_yaml_cannot_name_is_refused(tmp_path: Path) -> None:
    frame = table().rename(columns={"x": "x\x07"})
    guess = guess_tasks(written(tmp_path, frame), target="kind")
    with pytest.raises(ExperimentError, match="a YAML file cannot; rename it"):
        draft("mine", guess.settings, "raymeta new", "mine.yaml")


def test_other_columns_in_one_file_are_refused(tmp_path: Path) -> None:
    frame = table()
    written(tmp_path, frame[frame.index < 100], "a.csv")
    written(tmp_path, frame[frame.index >= 100].rename(columns={"z": "q"}), "b.csv")
    with pytest.raises(DataError, match=r"b.csv: must have the columns of a.csv"):
        guess_tasks(str(tmp_path), target="kind")


# Library -> the names that its users' tables of series have, and its target.
SERIES = {
    "nixtla": ("unique_id", "ds", "y"),
    "autogluon": ("item_id", "timestamp", "target"),
    "pytorch forecasting": ("group_ids", "time_idx", "volume"),
}


def series(library: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    name, time, target = SERIES[library]
    parts = []
    for number in range(12):
        months: Any = pd.date_range("2020-01-01", periods=90, freq="MS")
        if library == "pytorch forecasting":
            months = np.arange(90)
        values = {name: f"shop {number}", time: months, target: rng.normal(size=90).cumsum()}
        parts.append(pd.DataFrame(values | {"town": f"town {number // 2}"}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("library", SERIES)
def test_a_target_that_changes_within_series_is_to_be_forecast(
    library: str, tmp_path: Path
) -> None:
    name, time, target = SERIES[library]
    guess = guess_tasks(written(tmp_path, series(library)), target=target, task=["town"])
    found = guess.settings
    assert (found.kind, found.sequence, found.time) == ("forecast", name, time)
    assert (found.target, found.features, found.groups) == (target, [], ["town"])
    assert found.season == (1 if library == "pytorch forecasting" else 12)
    assert any("to be forecast" in finding.text for finding in guess.findings)
    tasks = loaded(tmp_path, found)
    assert tasks.input_spec.problem == "forecast"


def test_what_a_forecast_may_have_besides_is_offered_in_comments(tmp_path: Path) -> None:
    frame = series("nixtla").assign(price=2.0)
    settings = guess_tasks(written(tmp_path, frame), target="y", task=["town"]).settings
    text = draft("mine", settings, "raymeta new", "mine.yaml")
    for key in ("known", "calendar", "quantiles"):
        assert text.count(f"\n  # {key}: [") == 1
        text = text.replace(f"\n  # {key}: [", f"\n  {key}: [")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ExperimentError, match="ridge does not serve quantiles"):
        load_experiment(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(text.replace(", ridge]", "]"))
    experiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert experiment.problem.levels == (0.1, 0.5, 0.9)
    tasks = load_tasks(experiment)
    assert tasks.facts["columns"][1] == "price"
    assert len(tasks.facts["columns"]) == 2 + 4


def test_missing_values_of_series_are_refused(tmp_path: Path) -> None:
    frame = series("nixtla")
    frame.loc[5, "y"] = np.nan
    with pytest.raises(DataError, match=r"column y has 1 missing.*future"):
        guess_tasks(written(tmp_path, frame))


def doses() -> pd.DataFrame:
    """Makes pulses of six patients under a dose that is a number."""
    rng, parts = np.random.default_rng(0), []
    for patient, visit in product(range(6), range(5)):
        dose, steps = rng.uniform(5, 50), np.arange(6)
        facts = {"session": f"s{patient}-{visit}", "patient": f"patient {patient}", "dose": dose}
        parts.append(pd.DataFrame(facts | {"second": steps, "pulse": 60 + dose + steps}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("task", [["patient"], []])
def test_a_target_that_is_one_number_a_sequence_is_told_apart(
    task: list[str], tmp_path: Path
) -> None:
    frame = doses() if task else doses().drop(columns="patient")
    guess = guess_tasks(written(tmp_path, frame), target="dose", task=task)
    found = guess.settings
    assert (found.kind, found.sequence, found.time) == ("groups", "session", "second")
    assert (found.target.number, found.features, found.groups) == ("dose", ["pulse"], task)
    assert found.support == ("first" if task else "random")
    assert (found.num_shots, found.num_queries) == ((2, 2) if task else (3, 3))
    assert any("a number that is the same in all rows" in f.text for f in guess.findings)
    assert loaded(tmp_path, found).input_spec.problem == "regression"


def test_a_missing_number_of_a_sequence_is_refused(tmp_path: Path) -> None:
    frame = doses()
    frame.loc[frame.session == "s0-0", "dose"] = np.nan
    with pytest.raises(DataError, match=r"column dose has 6 missing numbers"):
        guess_tasks(written(tmp_path, frame), target="dose", task=["patient"])
