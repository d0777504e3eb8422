"""Remaining lives and doses as targets, from file to meta-test, and broken tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raymeta.episodes import SPLITS
from raymeta.errors import DataError, ExperimentError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.controls.summary_ridge import answers, summaries
from raymeta.evaluation.meta_test import meta_test
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.leaks import find_shared_sides
from raymeta.tasks.load import load_tasks
from raymeta.training.recipe import build_recipe, initial_meta_params
from raymeta.training.trainer import build_trainer

LIVES = """
name: pumps
tasks:
  source: table
  kind: groups
  data_dir: {folder}
  sequence: pump
  target: {{rul: hour, cap: 12}}
  features: [heat, noise]
  window: 5
  window_step: 3
  windows_each: 2
  support: random
  num_shots: 4
  num_queries: 6
  val_groups: 5
  test_groups: 5
learner: ridge
model: {{hidden_size: 4}}
training: {{val_episodes: 4, meta_steps: 2, meta_batch_size: 2}}
"""
DOSES = """
name: doses
tasks:
  source: table
  kind: groups
  data_dir: {folder}
  sequence: visit
  target: {{number: dose}}
  time: minute
  features: [pulse]
  groups: [patient]
  num_shots: 3
  num_queries: 2
learner: ridge
model: {{hidden_size: 4}}
training: {{val_episodes: 4, meta_steps: 2, meta_batch_size: 2}}
"""

Load = Callable[..., Experiment]


def pumps() -> pd.DataFrame:
    """Makes pumps that run 15 to 30 hours until they fail, and get hot before."""
    rows = []
    for pump in range(18):
        rng = np.random.default_rng(pump)
        hours = 100 * pump + 2 * np.arange(int(rng.integers(15, 31)))
        left = (hours[-1] - hours) / 2
        heat = 50 - 2 * np.minimum(left, 10) + rng.normal(0, 0.3, len(hours))
        noise = rng.normal(size=len(hours))
        rows.append(
            pd.DataFrame({"pump": f"pump {pump:02}", "hour": hours, "heat": heat, "noise": noise})
        )
    return pd.concat(rows, ignore_index=True)


def doses() -> pd.DataFrame:
    """Makes five patients whose pulse follows the dose, each in their own way."""
    rows = []
    for patient in range(5):
        for visit in range(6):
            rng = np.random.default_rng((patient, visit))
            dose, minutes = 10 + 5 * visit + rng.normal(), np.arange(int(rng.integers(4, 8)))
            pulse = 60 + (1 + patient) * dose / 10 + rng.normal(0, 0.1, len(minutes))
            facts = {"visit": f"p{patient}v{visit}", "patient": f"patient {patient}", "dose": dose}
            rows.append(pd.DataFrame(facts | {"minute": minutes, "pulse": pulse}))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def experiment(tmp_path: Path) -> Load:
    """Writes a table as CSV and loads an experiment on it."""

    def load(text: str, table: pd.DataFrame, *sets: str) -> Experiment:
        table.to_csv(tmp_path / "rows.csv", index=False)
        (tmp_path / "own.yaml").write_text(text.format(folder=tmp_path))
        return load_experiment(str(tmp_path / "own.yaml"), sets)

    return load


def test_remaining_lives_are_those_at_the_last_row_of_each_window(experiment: Load) -> None:
    table = pumps()
    tasks = load_tasks(experiment(LIVES, table))
    assert tasks.target_scale is not None
    mean, deviation = np.array(tasks.facts["mean"]), np.array(tasks.facts["deviation"])
    left = table.groupby("pump").hour.transform("max") - table.hour
    x = ((table[["heat", "noise"]].to_numpy() - mean) / deviation).astype(np.float32)
    known = {
        row.tobytes(): (pump, min(12.0, float(hours)))
        for row, pump, hours in zip(x, table.pump, left, strict=True)
    }
    for split in SPLITS:
        for index in range(20):
            episode = tasks.episode(split, index)
            sides = []
            for part, y in (
                (episode.support_x, episode.support_y),
                (episode.query_x, episode.query_y),
            ):
                shown = [known[own[-1].tobytes()] for own in part]
                expected = tasks.target_scale.mean + tasks.target_scale.deviation * y[:, 0]
                np.testing.assert_allclose([hours for _, hours in shown], expected, atol=1e-4)
                assert {tasks.deal["pump"][pump] for pump, _ in shown} == {split}
                sides.append({pump for pump, _ in shown})
            assert not sides[0] & sides[1]
            assert (len(sides[0]), len(sides[1])) == (2, 3)


def test_targets_are_scaled_by_meta_training_alone(experiment: Load) -> None:
    table = pumps()
    tasks = load_tasks(experiment(LIVES, table, "tasks.target.cap=null"))
    assert tasks.target_scale is not None
    found = []
    for pump, rows in table.groupby("pump"):
        if tasks.deal["pump"][pump] == "train":
            left = rows.hour.max() - rows.hour.to_numpy()
            found += [left[start + 4] for start in range(0, len(left) - 4, 3)]
    assert tasks.target_scale.mean == pytest.approx(np.mean(found))
    assert tasks.target_scale.deviation == pytest.approx(np.std(found))
    # The lives of the test have no say in it.
    tested = [pump for pump, split in tasks.deal["pump"].items() if split == "test"]
    table.loc[table.pump.isin(tested), "hour"] *= 7
    other = load_tasks(experiment(LIVES, table, "tasks.target.cap=null"))
    assert other.target_scale == tasks.target_scale
    assert other.fingerprint != tasks.fingerprint


def test_a_group_with_a_number_is_a_task_whose_first_sequences_are_the_support(
    experiment: Load,
) -> None:
    table = doses()
    tasks = load_tasks(experiment(DOSES, table))
    scale, dose = tasks.target_scale, table.groupby("visit").dose.first()
    assert scale is not None
    order = list(dict.fromkeys(table.visit))
    for split in SPLITS:
        episode = tasks.episode(split, 0)
        values = np.concatenate([episode.support_y, episode.query_y])[:, 0]
        shown = [
            str((dose - (scale.mean + scale.deviation * value)).abs().idxmin()) for value in values
        ]
        assert {tasks.deal["patient"][f"patient {name[1]}"] for name in shown} == {split}
        assert shown[:3] == [name for name in order if name[1] == shown[0][1]][:3]
        assert not set(shown[:3]) & set(shown[3:])


def test_numbers_are_trained_and_judged_in_own_units_beside_their_controls(
    experiment: Load,
) -> None:
    settings = experiment(LIVES, pumps())
    trainer = build_trainer(settings)
    assert np.isfinite(trainer.train(2)["train_loss"])
    tasks = trainer.tasks
    found = meta_test(
        Network(tasks, trainer.recipe, trainer.meta_params), {}, label="own", num_episodes=30
    )
    rows = {row.name: row for row in found.rows}
    assert {"support_mean", "summary_ridge", "kernel_ridge"} <= rows.keys()
    assert tasks.target_scale is not None
    for name in ("tuned", "support_mean", "summary_ridge", "kernel_ridge"):
        own, row = rows[name].own_units, rows[name]
        squared = tasks.target_scale.deviation**2 * row.score.mean
        assert own["squared error"].mean == pytest.approx(squared, rel=1e-5)
        error = own["absolute error, remaining hour"].mean
        assert 0 < error <= np.sqrt(own["squared error"].mean)
    # The support mean's, reckoned from the episodes.
    scale, errors = tasks.target_scale, []
    for index in range(30):
        episode = tasks.episode("test", index)
        errors.append(np.abs(episode.query_y - episode.support_y.mean()) * scale.deviation)
    assert rows["support_mean"].own_units["absolute error, remaining hour"].mean == pytest.approx(
        np.mean(errors), rel=1e-5
    )
    assert rows["summary_ridge"].score.mean < rows["support_mean"].score.mean


def test_summaries_and_ridge_are_those_of_numpy(experiment: Load) -> None:
    episodes = load_tasks(experiment(DOSES, doses())).episodes("train", [0, 1])
    support, query = episodes.support, episodes.query
    assert support.lengths is not None

    def told(x: torch.Tensor, length: int) -> np.ndarray:
        own = x[:length].double().numpy()
        slope = np.polyfit(np.arange(length), own, 1)[0]
        return np.concatenate([own.mean(axis=0), own.std(axis=0), own[-1], slope])

    known = np.array([told(x, int(n)) for x, n in zip(support.x[1], support.lengths[1])])  # noqa: B905
    np.testing.assert_allclose(summaries(support)[1], known, atol=1e-6)
    assert query.lengths is not None
    asked = np.array([told(x, int(n)) for x, n in zip(query.x[1], query.lengths[1])])  # noqa: B905
    mean, deviation = known.mean(axis=0), known.std(axis=0, ddof=1)
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    y = support.y[1].double().numpy()
    weights = np.linalg.solve(known.T @ known + 2.0 * np.eye(4), known.T @ (y - y.mean(axis=0)))
    expected = y.mean(axis=0) + asked @ weights
    np.testing.assert_allclose(answers(support, query, 2.0)[1], expected, atol=1e-6)


def test_inspect_explains_numbers_and_shows_an_episode_with_them(experiment: Load) -> None:
    found = inspect_tasks(experiment(LIVES, pumps()))
    assert found.is_sound
    assert "4 examples with their remaining hour to adapt to" in found.task
    (way,) = found.ways
    assert way.label == "remaining hour"
    support, query = ({told.split(":")[0] for told in side} for side in (way.support, way.query))
    assert len(support) == 2
    assert not support & query
    assert all(0 <= float(told.split(": ")[1]) <= 12 for told in (*way.support, *way.query))


@pytest.mark.parametrize("text", [LIVES, DOSES])
def test_no_side_holds_rows_of_the_other(experiment: Load, text: str) -> None:
    tasks = load_tasks(experiment(text, pumps() if text == LIVES else doses()))
    assert find_shared_sides(tasks) == []
    # Windows that overlap, dealt to both sides, are found without their ids too.
    sides = tasks.sample_episode

    def leaky(split, rng):
        episode = sides(split, rng)
        return replace(episode, query_x=episode.support_x[:1].repeat(len(episode.query_x), 0))

    assert find_shared_sides(replace(tasks, sample_episode=leaky), 2)[0].level == "error"


def changed(table: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    table = table.astype({column: object})
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (changed(doses(), "dose", 3, None), r"rows.csv, row 4, column dose: the value is missing"),
        (changed(doses(), "dose", 3, "much"), r"rows.csv, row 4, column dose: .*'much'"),
        (doses().assign(dose=4.5), r"column dose: is 4.5 in all examples of meta-training"),
        (changed(doses(), "patient", 1, "patient 3"), r"row 2, column patient: must be the same"),
        (doses()[lambda t: t.patient < "patient 2"], r"patient must have more than 2 groups"),
        (
            doses()[lambda t: (t.visit < "p1v4") | (t.visit > "p1v9")],
            r"must be at most 4, the examples of a task in the meta-\w+ split, but got 5",
        ),
    ],
)
def test_unusable_tables_are_refused(experiment: Load, table: pd.DataFrame, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_tasks(experiment(DOSES, table))


def test_a_target_that_is_missing_is_refused_where_features_may_be(experiment: Load) -> None:
    table = changed(doses(), "dose", 3, None)
    with pytest.raises(DataError, match=r"column dose: row 4 of the sequence has no number"):
        load_tasks(experiment(DOSES, table, "tasks.missing=mask"))


def test_too_few_whole_units_are_refused(experiment: Load) -> None:
    with pytest.raises(
        DataError, match=r"holds a task with \d+ windows of 5 sequences, of which 6"
    ):
        load_tasks(experiment(LIVES, pumps(), "tasks.num_queries=7"))


def test_equal_lives_above_the_cap_are_nothing_to_learn(experiment: Load) -> None:
    table = pumps()
    sets = (
        "tasks.target.cap=0.5",
        "tasks.window_step=100",
        "tasks.num_shots=2",
        "tasks.num_queries=2",
    )
    with pytest.raises(DataError, match=r"remaining hour: is 0.5 in all examples of meta-train"):
        load_tasks(experiment(LIVES, table, *sets))


@pytest.mark.parametrize(
    ("text", "override", "complaint"),
    [
        (DOSES, "tasks.kind=classes", "a number is for kind: groups alone"),
        (DOSES, "tasks.num_ways=2", "has no classes: leave num_ways out"),
        (DOSES, "tasks.small_classes=leave_out", "small_classes is for classes"),
        (LIVES, "tasks.time=heat", "target.rul must be the column of times"),
        (LIVES, "tasks.target={rul: hour, cap: 0}", "cap"),
        (LIVES, "tasks.target={life: hour}", "target"),
        (DOSES, "tasks.kind=forecast", "forecast has a column of numbers as target"),
        (LIVES, "learner=prototypes", "prototypes"),
        (LIVES, "search.space={tasks.target.cap: {low: 5, high: 9}}", "tasks.target.cap"),
    ],
)
def test_impossible_settings_are_refused(
    experiment: Load, text: str, override: str, complaint: str
) -> None:
    with pytest.raises(ExperimentError, match=complaint):
        experiment(text, pumps(), override)


def test_the_recipe_is_that_of_a_regression(experiment: Load) -> None:
    settings = experiment(DOSES, doses())
    assert settings.tasks.asks_for() == "regression"
    tasks = load_tasks(settings)
    recipe = build_recipe(settings, tasks)
    assert recipe.problem.name == "regression"
    assert initial_meta_params(recipe, torch.device("cpu"))


def test_the_shipped_engines_are_whole_runs_and_named_with_their_origin() -> None:
    settings = load_experiment("engines")
    found = inspect_tasks(settings)
    assert found.is_sound
    assert (found.dealt.num_read, found.dealt.left_out, found.dealt.warnings) == (100, {}, ())
    assert sum(own.lengths.sum() for own in found.dealt.chosen.values()) == 20631
    for own in found.dealt.chosen.values():
        for targets, x in zip(own.targets, own.x, strict=True):
            expected = np.minimum(125, np.arange(len(x))[::-1])
            np.testing.assert_array_equal(targets, expected)
            assert x.shape[1] == 14
    (file,) = settings.tasks.data_files()
    assert file.stat().st_size < 500_000
    assert "`cmapss/`" in (Path(str(file)).parents[1] / "README.md").read_text()
