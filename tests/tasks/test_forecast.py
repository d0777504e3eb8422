"""Forecasts: an episode's content, nothing of the future in it, and the deal of series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymeta.episodes import SPLITS, Episode
from raymeta.errors import DataError, ExperimentError, RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.own_units import forecasts_of
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment, Training
from raymeta.tasks.cutter import Cutter, moved_season, seasonal_naive
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import load_inputs, load_tasks
from raymeta.training.trainer import build_trainer

SETTINGS: dict[str, Any] = {
    "source": "table",
    "kind": "forecast",
    "sequence": "shop",
    "target": "sales",
    "time": "day",
    "features": ["price"],
    "groups": ["town"],
    "season": 3,
    "horizon": 4,
    "context": 5,
    "num_shots": 2,
    "num_queries": 3,
    "stride": 2,
}
TINY = Training(meta_steps=2, meta_batch_size=2, val_episodes=4)
CUTTER = Cutter(
    context=5,
    horizon=4,
    season=3,
    stride=2,
    num_shots=2,
    num_queries=3,
    difference="season",
)


def sales(num_shops: int = 12, days: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.concat(
        pd.DataFrame(
            {
                "shop": f"shop {shop}",
                "town": f"town {shop % 6}",
                "day": pd.date_range("2026-01-01", periods=days),
                "sales": 100 + rng.normal(size=days).cumsum(),
                "price": rng.uniform(1, 2, days),
            }
        )
        for shop in range(num_shops)
    )


Load = Callable[..., Experiment]


@pytest.fixture
def experiment(tmp_path: Path) -> Load:
    def experiment(frame: pd.DataFrame, **changes: Any) -> Experiment:
        frame.to_parquet(tmp_path / "rows.parquet")
        tasks = SETTINGS | {"data_dir": str(tmp_path)} | changes
        return load_experiment(
            "pen",
            ["search.space={}", "learner=maml", f"tasks={tasks!r}".replace("None", "null")],
        )

    return experiment


def parts(episode: Episode) -> list[np.ndarray]:
    return [episode.support_x, episode.support_y, episode.query_x, episode.query_y]


def test_windows_are_where_the_settings_put_them() -> None:
    """Compares with indices by hand: the past is 5 + 4 + 2 = 11 steps, the cut at 20."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 2))
    episode = CUTTER.episode(x, 20)
    y = x[:, 0]
    unit = np.mean([abs(y[t] - y[t - 3]) for t in range(9 + 3, 20)])
    assert episode.support_ids is not None
    assert episode.query_ids is not None
    assert episode.support_ids.tolist() == [14, 16]
    assert episode.query_ids.tolist() == [20, 22, 24]
    for ends, targets in (([14, 16], episode.support_y), ([20, 22, 24], episode.query_y)):
        for end, found in zip(ends, targets, strict=True):
            base = [y[end - 3], y[end - 2], y[end - 1], y[end - 3]]
            np.testing.assert_allclose(found, (y[end : end + 4] - base) / unit, rtol=1e-9)
    assert episode.support_lengths is not None
    assert episode.support_lengths.tolist() == [5, 7]
    assert episode.query_x.shape == (3, 11, 3)
    np.testing.assert_allclose(
        episode.query_x[1, :, 0], (y[11:22] - y[21]) / unit, rtol=1e-5, atol=1e-6
    )
    changes = [0, 0, 0, *(y[t] - y[t - 3] for t in range(14, 22))]
    np.testing.assert_allclose(episode.query_x[1, :, 1], np.array(changes) / unit, rtol=1e-5)
    prices = x[9:20, 1]
    price = (x[11:22, 1] - prices.mean()) / prices.std()
    np.testing.assert_allclose(episode.query_x[1, :, 2], price, rtol=1e-5, atol=1e-6)
    assert episode.query_past is not None
    np.testing.assert_array_equal(episode.query_past.values[2], y[13:24])  # noqa: PD011


KNOWING = replace(CUTTER, num_known=3, num_calendar=2)  # of five columns the last three


def test_what_is_known_in_advance_follows_the_window() -> None:
    """Compares with indices by hand: the columns are target, feature, price, sine and cosine."""
    x = np.random.default_rng(1).normal(size=(40, 5))
    episode = KNOWING.episode(x, 20)
    assert KNOWING.num_inputs(5) == 7
    assert episode.support_x.shape == (2, 15, 7)
    assert episode.query_x.shape == (3, 15, 7)
    assert episode.support_lengths is not None
    assert episode.query_lengths is not None
    assert (episode.support_lengths.tolist(), episode.query_lengths.tolist()) == ([9, 11], [15] * 3)
    plain = CUTTER.episode(x, 20)
    np.testing.assert_array_equal(episode.support_y, plain.support_y)
    past = x[9:20, 2]
    for rows, ends, before in (
        (episode.support_x, (14, 16), (5, 7)),
        (episode.query_x, (20, 22, 24), (11,) * 3),
    ):
        for row, end, length in zip(rows, ends, before, strict=True):
            ahead = row[length : length + 4]
            assert not row[:length, 6].any()
            assert (ahead[:, 6] == 1).all()
            assert not ahead[:, :3].any()
            price = (x[end : end + 4, 2] - past.mean()) / past.std()
            np.testing.assert_allclose(ahead[:, 3], price, rtol=1e-5)
            np.testing.assert_allclose(ahead[:, 4:6], x[end : end + 4, 3:], rtol=1e-6)
            np.testing.assert_allclose(row[:length, 4:6], x[end - length : end, 3:], rtol=1e-6)
            assert not row[length + 4 :].any()
    np.testing.assert_array_equal(episode.query_x[:, :11, :4], plain.query_x[..., :4])


@pytest.mark.parametrize("column", range(5))
def test_of_the_future_a_network_reads_what_is_known_in_advance_alone(column: int) -> None:
    """Later values of a column change no input but of the steps that know it."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 5))
    before = KNOWING.episode(x, 20)
    for step in range(20, 28):
        other = x.copy()
        other[step:, column] = 1e6 * rng.normal(size=len(x) - step)
        after = KNOWING.episode(other, 20)
        np.testing.assert_array_equal(after.support_x, before.support_x)
        for row, end in enumerate((20, 22, 24)):
            window = slice(0, 11)
            if step >= end:
                np.testing.assert_array_equal(
                    after.query_x[row, window], before.query_x[row, window]
                )
            ahead = after.query_x[row, 11:], before.query_x[row, 11:]
            reads = column >= 2 and step < end + 4
            assert np.array_equal(*ahead) == (not reads)
            seen = max(0, step - end)
            np.testing.assert_array_equal(ahead[0][:seen], ahead[1][:seen])


def promoted(weeks: int = 8) -> pd.DataFrame:
    """Sales of independent noise, and 5 more on days of a campaign, which come by chance."""
    rng = np.random.default_rng(3)
    frame = sales(num_shops=18, days=7 * weeks)
    frame["price"] = rng.integers(2, size=len(frame)).astype(float)
    frame["sales"] = 5 * frame["price"] + 0.3 * rng.normal(size=len(frame))
    return frame


@pytest.mark.slow
def test_a_known_feature_that_decides_the_future_is_learned(experiment: Load) -> None:
    """Without its values to come the error is many times as large."""
    changes = {"season": 1, "num_shots": 1, "num_queries": 2, "context": 12, "horizon": 2}
    errors = {}
    for role in ("known", "features"):
        columns: dict[str, Any] = {"features": [], "known": [], role: ["price"]}
        made = experiment(promoted(), **changes, **columns, difference="last")
        training = Training(meta_steps=150, meta_batch_size=16, outer_lr=0.02, val_episodes=60)
        model = made.model.model_copy(update={"hidden_size": 12})
        maml = made.maml.model_copy(update={"adaptation_steps": 1, "inner_lr": 0.01})
        made = made.model_copy(update={"training": training, "model": model, "maml": maml})
        trainer = build_trainer(made)
        trainer.train(150)
        errors[role] = trainer.validate()["val_mase"]
    assert errors["known"] < 0.35 * errors["features"]


def test_the_calendar_is_read_from_the_times(experiment: Load) -> None:
    tasks = load_tasks(
        experiment(sales(), calendar=["weekday", "month"], known=["price"], features=[])
    )
    assert tasks.input_spec.num_features == 1 + 1 + 4 + 2
    names = ["sine of weekday", "cosine of weekday", "sine of month", "cosine of month"]
    assert tasks.facts["columns"] == ["sales", "price", *names]
    assert (tasks.facts["known"], tasks.facts["season"]) == (["price"], 3)
    episode = tasks.episode("train", 0)
    assert episode.query_ids is not None
    for row, first in enumerate(episode.query_ids):
        days = pd.date_range("2026-01-01", periods=40)[first - 11 : first + 4]
        weekday, month = 2 * np.pi * days.day_of_week / 7, 2 * np.pi * (days.month - 1) / 12
        wanted = [np.sin(weekday), np.cos(weekday), np.sin(month), np.cos(month)]
        np.testing.assert_allclose(episode.query_x[row, :, 3:7], np.array(wanted).T, atol=1e-6)


def test_a_calendar_needs_dates(experiment: Load) -> None:
    frame = sales()
    frame["day"] = np.tile(np.arange(40), 12)
    with pytest.raises(DataError, match=r"column day: tasks\.calendar needs dates.*is of int64"):
        load_tasks(experiment(frame, calendar=["weekday"]))


@pytest.mark.parametrize("difference", ["season", "drift", "last"])
def test_nothing_depends_on_what_comes_after_it(difference: str) -> None:
    """Later values change no support window and no query that ends before them."""
    cutter = Cutter(**{**CUTTER.__dict__, "difference": difference})
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 2))
    before = cutter.episode(x, 20)
    for step in range(20, 28):
        other = x.copy()
        other[step:] = 1e6 * rng.normal(size=other[step:].shape)
        after = cutter.episode(other, 20)
        np.testing.assert_array_equal(after.support_x, before.support_x)
        np.testing.assert_array_equal(after.support_y, before.support_y)
        known = sum(end <= step for end in (20, 22, 24))
        np.testing.assert_array_equal(after.query_x[:known], before.query_x[:known])
        if known < 3:
            assert not np.array_equal(after.query_x[known:], before.query_x[known:])
        assert not np.array_equal(after.query_y, before.query_y)


def test_the_scale_of_a_series_makes_no_difference() -> None:
    x = np.random.default_rng(3).normal(size=(40, 2))
    for one, other in zip(
        parts(CUTTER.episode(x, 20)), parts(CUTTER.episode(1000 * x + 7, 20)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_outputs_are_read_back_in_the_series_own_units() -> None:
    x = np.random.default_rng(4).normal(size=(40, 2))
    episode = CUTTER.episode(x, 21)
    past = episode.query_past
    assert past is not None
    values = past.base + past.unit * episode.query_y
    for row, end in enumerate((21, 23, 25)):
        np.testing.assert_allclose(values[row], x[end : end + 4, 0], rtol=1e-9)


def test_every_cut_leaves_room_for_past_and_future_and_a_past_that_changes() -> None:
    assert (CUTTER.past, CUTTER.future) == (11, 8)
    x = np.random.default_rng(5).normal(size=(25, 1))
    assert CUTTER.cuts(x).tolist() == list(range(11, 25 - 8 + 1))
    assert CUTTER.cuts(x[:18]).tolist() == []
    still = np.tile([1.0, 2.0, 3.0], 10)[:, None]  # the same in every season
    assert CUTTER.cuts(still).tolist() == []
    still[20:] += 1
    assert CUTTER.cuts(still).tolist() == [21, 22]
    for cut in CUTTER.cuts(x):
        assert all(np.isfinite(part).all() for part in parts(CUTTER.episode(x, int(cut))))


def test_plain_forecasts_repeat_and_move_the_last_season() -> None:
    known = np.array([1.0, 2.0, 3.0, 5.0, 6.0, 8.0])
    assert seasonal_naive(known, 3, 4).tolist() == [5, 6, 8, 5]
    assert seasonal_naive(known, 1, 2).tolist() == [8, 8]
    assert moved_season(known, 3, 4).tolist() == [10, 11, 13, 15]
    assert moved_season(np.stack([known, known]), 3, 4).shape == (2, 4)


def test_no_group_and_no_series_is_in_two_splits(experiment: Load) -> None:
    tasks = load_tasks(experiment(sales()))
    assert tasks.input_spec.problem == "forecast"
    assert (tasks.input_spec.num_outputs, tasks.input_spec.num_features) == (4, 3)
    assert set(tasks.deal) == {"town"}
    found = inspect_tasks(experiment(sales()))
    assert found.is_sound
    assert "cut at a random step: the 11 steps before the cut" in found.task
    for axis in ("shop", "town"):
        units = [set(found.dealt.chosen[split].groups[axis]) for split in SPLITS]
        assert sum(map(len, units)) == len(set.union(*units))
    (way,) = found.ways
    assert len(way.support) == 2
    assert len(way.query) == 3
    episodes = tasks.episodes("test", range(20))
    assert episodes.query.y.shape == (20, 3, 4)
    assert set(tasks.query_units("test", 20).counts) == {"shop", "town"}


def test_without_groups_series_are_dealt(experiment: Load) -> None:
    found = inspect_tasks(experiment(sales(), groups=[], val_groups=3, test_groups=4))
    assert [len(found.dealt.chosen[split]) for split in SPLITS] == [5, 3, 4]
    (warning,) = [f for f in found.findings if f.level == "warning"]
    assert (warning.subject, "tasks.groups" in warning.text) == ("town", True)


def test_a_series_in_other_units_is_a_copy(experiment: Load) -> None:
    frame = sales()
    copy = frame[frame.shop == "shop 0"].assign(shop="copy", town="town 1")
    copy["sales"] = 1000 * copy["sales"] + 3
    dealt = inspect_tasks(experiment(pd.concat([frame, copy]))).dealt
    assert sum(dealt.left_out.values()) == 1
    assert "copies of others" in next(iter(dealt.left_out))
    assert sum(len(own) for own in dealt.chosen.values()) + 1 == dealt.num_read == 13


def test_short_series_are_refused_or_left_out_and_counted(experiment: Load) -> None:
    frame = sales()
    frame = frame[(frame.shop != "shop 3") | (frame.day < "2026-01-15")]
    with pytest.raises(DataError, match=r"1 series cannot be cut.*11 steps.*8 after.*shop 3"):
        load_tasks(experiment(frame))
    with pytest.warns(match="left out"):
        load_tasks(experiment(frame, small_classes="leave_out"))
    dealt = inspect_tasks(experiment(frame, small_classes="leave_out")).dealt
    assert list(dealt.left_out.values()) == [1]


def test_gaps_in_time_are_reported(experiment: Load) -> None:
    frame = sales()
    frame = frame[(frame.shop != "shop 3") | (frame.day.dt.day != 7)]
    with pytest.warns(match="1 series have gaps in day"):
        load_tasks(experiment(frame))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 2}, "context must be at least season"),
        ({"missing": "interpolate"}, "looks into the future"),
        ({"time_differences": True}, "evenly spaced"),
        ({"num_ways": 5}, "no classes"),
        ({"horizon": 0}, "horizon"),
        ({"features": ["sales"]}, "named twice"),
        ({"quantiles": [0.1, 0.9]}, r"hold 0\.5, the point forecast.*but got \[0\.1, 0\.9\]"),
        ({"quantiles": [0.5, 0.5]}, "ascend strictly between 0 and 1"),
        ({"quantiles": [0.0, 0.5]}, "ascend strictly between 0 and 1"),
        ({"quantiles": [0.5, 1.0]}, "ascend strictly"),
        ({"known": ["price"]}, "'price' is named twice"),
        ({"calendar": ["weekday"], "time": None}, "calendar needs a column of times"),
        ({"calendar": ["hour", "hour"]}, "name parts once each"),
        ({"calendar": ["year"]}, "'month', 'weekday' or 'hour'"),
        ({"kind": "groups", "known": ["price"], "features": ["x"]}, "known is for kind: forecast"),
        ({"kind": "groups", "quantiles": [0.5]}, "quantiles is for kind: forecast alone"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, Any], message: str, experiment: Load
) -> None:
    with pytest.raises(ExperimentError, match=message):
        experiment(sales(), **changes)


@pytest.mark.parametrize("value", [None, "many", float("inf")])
def test_targets_that_are_no_numbers_are_refused(value: Any, experiment: Load) -> None:
    frame = sales().reset_index(drop=True)
    frame["sales"] = frame["sales"].astype(object)
    frame.loc[7, "sales"] = value
    if value is not None:
        frame["sales"] = frame["sales"].astype(str)
    with pytest.raises(DataError, match="row 8, column sales"):
        load_tasks(experiment(frame))


def test_learners_of_classes_do_not_serve_forecasts(experiment: Load) -> None:
    with pytest.raises(ExperimentError, match="prototypes does not serve forecast"):
        load_experiment("employment", ["learner=prototypes", "search.space={}"])


@pytest.mark.parametrize("learner", ["ridge", "matching", "alpaca", "imaml", "prototypes"])
def test_learners_that_give_no_quantiles_say_why(learner: str) -> None:
    overrides = ["tasks.quantiles=[0.1, 0.5, 0.9]", "search.space={}", f"learner={learner}"]
    with pytest.raises(
        ExperimentError, match=rf"{learner} does not serve quantiles: .*choose maml"
    ):
        load_experiment("employment", overrides)


def test_quantiles_change_the_problem_and_no_episode(experiment: Load) -> None:
    plain, asked = experiment(sales()), experiment(sales(), quantiles=[0.25, 0.5])
    assert (asked.metric, asked.mode, asked.problem.levels) == ("val_crps", "min", (0.25, 0.5))
    tasks = load_tasks(asked)
    assert (tasks.input_spec.problem, tasks.input_spec.num_outputs) == ("quantiles", 8)
    assert tasks.fingerprint != load_tasks(plain).fingerprint
    for one, other in zip(
        parts(tasks.episode("train", 3)), parts(load_tasks(plain).episode("train", 3)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_network_learns_the_quantiles_of_a_known_distribution(experiment: Load) -> None:
    """Steps are independent and normal: the past tells nothing but the scale."""
    frame = sales(num_shops=24, days=60)
    frame["sales"] = np.random.default_rng(0).normal(size=len(frame))
    levels = [0.1, 0.5, 0.9]
    changes = {"quantiles": levels, "features": [], "difference": "last", "season": 1}
    made = experiment(frame, **changes, num_queries=2, num_shots=1, horizon=2, context=20)
    training = Training(meta_steps=100, meta_batch_size=16, outer_lr=0.02, val_episodes=100)
    model = made.model.model_copy(update={"hidden_size": 8})
    maml = made.maml.model_copy(update={"adaptation_steps": 1, "inner_lr": 0.01})
    made = made.model_copy(update={"training": training, "model": model, "maml": maml})
    trainer = build_trainer(made)
    before = trainer.validate()["val_crps"]
    trainer.train(100)
    assert trainer.validate()["val_crps"] < 0.7 * before
    network = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
    (outputs,) = forecasts_of([network], 100, 1, "val")
    targets = trainer.tasks.episodes("val", range(100)).query.y
    quantiles = made.problem.quantiles(outputs)
    below = (targets.unsqueeze(-1) <= quantiles).double().mean(dim=(0, 1, 2)).tolist()
    assert below == pytest.approx(levels, abs=0.1)


def test_using_a_forecast_network_is_refused_with_the_reason(experiment: Load) -> None:
    made = experiment(sales())
    with pytest.raises(RunError, match="raymeta forecast RUN FILE"):
        load_inputs(made.tasks, load_tasks(made).facts)


def test_a_network_trains_on_windows_and_is_validated(experiment: Load) -> None:
    trainer = build_trainer(experiment(sales()).model_copy(update={"training": TINY}))
    assert np.isfinite(trainer.train(2)["train_loss"])
    found = trainer.validate()
    assert np.isfinite(found["val_mase"])
