"""Categories: their levels, inputs and guards, from a file to a network that learns by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymeta.data.readers.values import categories
from raymeta.data.sequences import level_code
from raymeta.episodes import SPLITS, Split, TaskDistribution
from raymeta.errors import DataError, DataWarning, ExperimentError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import meta_test
from raymeta.experiment.file import load_experiment
from raymeta.tasks.draft import draft
from raymeta.tasks.guess import guess_tasks
from raymeta.tasks.levels import columns_of_levels
from raymeta.tasks.load import load_tasks
from raymeta.training.trainer import build_trainer

EXPERIMENT = """
name: events
learner: ridge
ridge: {{learned_prior: true}}
tasks:
  source: table
  data_dir: {folder}
  kind: groups
  groups: [machine]
  sequence: run
  target: state
  features: [volt]
  categories: [event]
  num_ways: 2
  num_shots: 2
  num_queries: 3
model: {{hidden_size: 8, pooling: mean}}
training: {{meta_steps: 40, meta_batch_size: 8, outer_lr: 0.02, val_episodes: 4, pretrain_steps: 0}}
"""


PROTOTYPES = "learner=prototypes"


def events(seed: int = 0, num_machines: int = 8) -> pd.DataFrame:
    """Runs of machines, told apart by their events alone: in `good` ones, `idle` goes before."""
    rng = np.random.default_rng(seed)
    rows = []
    for machine in range(num_machines):
        for run in range(12):
            num_steps = int(rng.integers(6, 10))
            rare, often = ("fault", "idle") if run % 2 else ("idle", "fault")
            event = rng.choice([rare, often, "work"], num_steps, p=[0.05, 0.6, 0.35])
            rows.append(
                pd.DataFrame(
                    {
                        "run": f"{machine}-{run}",
                        "machine": f"m{machine}",
                        "state": "good" if run % 2 else "bad",
                        "volt": rng.normal(size=num_steps),
                        "event": event,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def experiment_on(folder: Path, frame: pd.DataFrame, *overrides: str) -> Any:
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "events.csv", index=False)
    (folder / "events.yaml").write_text(EXPERIMENT.format(folder=folder))
    return load_experiment(str(folder / "events.yaml"), list(overrides))


def accuracy(experiment: Any) -> float:
    trainer = build_trainer(experiment)
    trainer.train(40)
    network = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
    return meta_test(network, {}, label="trained", num_episodes=30).rows[0].score.mean


def test_a_network_learns_what_only_the_category_tells(tmp_path: Path) -> None:
    assert accuracy(experiment_on(tmp_path, events())) > 0.85
    assert accuracy(experiment_on(tmp_path, events(), "tasks.categories=[]")) < 0.65


def split_rows(tasks: TaskDistribution, split: Split) -> np.ndarray:
    drawn = [tasks.episode(split, index) for index in range(30)]
    found = [
        x[:length]
        for episode in drawn
        for x, length in zip(episode.query_x, episode.query_lengths, strict=True)  # type: ignore[arg-type]
    ]
    return np.concatenate(found)


def test_the_inputs_are_the_levels_of_meta_training_centred_by_their_shares(
    tmp_path: Path,
) -> None:
    frame = events()
    experiment = experiment_on(tmp_path, frame)
    first = load_tasks(experiment)
    trained = [unit for unit, split in first.deal["machine"].items() if split == "train"]
    tested = [unit for unit, split in first.deal["machine"].items() if split == "test"]
    share = frame[frame.machine.isin(trained)].event.value_counts(normalize=True)
    assert first.facts["levels"] == {"event": ["fault", "idle", "work"]}
    np.testing.assert_allclose(
        first.facts["mean"][1:], [share["fault"], share["idle"], share["work"]], atol=1e-12
    )
    assert first.facts["deviation"][1:] == [1.0] * 3
    assert first.facts["features"] == ["volt", "event", "event", "event"]
    rows = split_rows(first, "train")[:, 1:]
    allowed = np.eye(3) - np.array(first.facts["mean"][1:])
    distance = np.abs(rows[:, None] - allowed).max(axis=2).min(axis=1)
    assert distance.max() < 1e-6
    # Neither the levels nor anything else of meta-training depends on the test's rows.
    own = frame.machine.isin(tested)
    frame.loc[own & (frame.event == "work"), "event"] = "new"
    experiment = experiment_on(tmp_path, frame)
    with pytest.warns(DataWarning, match="meta-test split, column event: 'new' did not occur"):
        other = load_tasks(experiment)
    assert other.facts == first.facts
    assert other.fingerprint != first.fingerprint
    for index in range(5):
        np.testing.assert_array_equal(
            first.episode("train", index).query_x, other.episode("train", index).query_x
        )
    # What is unknown reads as the mean of what is known.
    unknown = (split_rows(other, "test")[:, 1:] == 0).all(axis=1)
    assert unknown.any()
    assert not unknown.all()


def test_a_missing_value_is_a_level_if_training_has_it(tmp_path: Path) -> None:
    frame = events()
    frame.loc[frame.index % 5 == 0, "event"] = None
    tasks = load_tasks(experiment_on(tmp_path, frame))
    assert tasks.facts["levels"] == {"event": ["fault", "idle", "work", None]}
    assert tasks.input_spec.num_features == 5
    for split in SPLITS:
        assert ((split_rows(tasks, split)[:, 1:] > 0).sum(axis=1) == 1).all()


def test_columns_of_levels() -> None:
    levels: dict[str, list[str | None]] = {"a": ["x", "y", None], "b": ["1"]}
    x, y, one, other = map(level_code, ("x", "y", "1", "other"))
    codes = np.array([[x, one], [y, other], [np.nan, np.nan], [other, one]])
    gap = np.nan
    wanted = [[1, 0, 0, 1], [0, 1, 0, gap], [0, 0, 1, gap], [gap, gap, gap, 1]]
    np.testing.assert_array_equal(columns_of_levels(codes, levels), wanted)
    assert columns_of_levels(np.zeros((3, 0)), {}).shape == (3, 0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array(["x", "y", "x"]), ["x", "y", "x"]),
        (pa.array(["x", "", None]), ["x", None, None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["True", "FALSE", "true"]), ["true", "false", "true"]),
        (pa.array([3, -1, 3]), ["3", "-1", "3"]),
        (pa.array([3.0, float("nan"), None]), ["3", None, None]),
        (pa.array([2**60, 0, 1]), [str(2**60), "0", "1"]),
        (pa.array([None, None, None]), [None] * 3),
    ],
)
def test_levels_are_the_same_in_all_formats(values: pa.Array, wanted: list[str | None]) -> None:
    codes, texts = categories(Path("t"), pa.table({"c": values}), "c")
    assert [texts[code] if code >= 0 else None for code in codes.tolist()] == wanted
    assert len(set(texts)) == len(texts)
    assert "" not in texts


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (pa.array([1.0, 2.5]), "row 2, column c: 2.5 is no whole number"),
        (pa.array([[1], [2]]), "must hold text, truth values or whole numbers"),
        (pa.array([b"x", b"y"]), "must hold text, truth values or whole numbers"),
    ],
)
def test_what_names_no_level_is_refused(values: pa.Array, why: str) -> None:
    with pytest.raises(DataError, match=why):
        categories(Path("t"), pa.table({"c": values}), "c")


def test_too_many_levels_are_refused(tmp_path: Path) -> None:
    frame = events()
    frame["event"] = [f"e{n}" for n in range(len(frame))]
    with pytest.raises(DataError, match=r"column event: has \d+ levels in meta-training"):
        load_tasks(experiment_on(tmp_path, frame))


def test_text_as_a_feature_is_refused_with_the_way_to_read_it(tmp_path: Path) -> None:
    experiment = experiment_on(
        tmp_path, events(), "tasks.categories=[]", "tasks.features=[volt, event]"
    )
    with pytest.raises(DataError, match=r"names, not numbers, belong into tasks\.categories"):
        load_tasks(experiment)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["tasks.features=[event]"], "'event' is named twice"),
        (["tasks.categories=[volt]"], "'volt' is named twice"),
        (["tasks.spectrum={frequencies: 2}"], "categories have no spectrum"),
        (["tasks.mirror=[event]"], "mirror must name features"),
        (["tasks.categories=[]", "tasks.features=[]"], "features"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, overrides: list[str], why: str
) -> None:
    with pytest.raises(ExperimentError, match=why):
        experiment_on(tmp_path, events(), *overrides)


def spoilt(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[frame.index % 7 == 0, "volt"] = np.nan
    return frame


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (["tasks.features=[]"], None),
        (["tasks.missing=mask"], spoilt),
        (["tasks.missing=interpolate"], spoilt),
        (["tasks.window=4"], None),
        (["tasks.mirror=[volt]"], None),
        (
            ["tasks.kind=classes", "tasks.groups=[]", "tasks.target=machine", "learner=alignment"],
            None,
        ),
    ],
)
def test_categories_go_with_other_keys(
    tmp_path: Path,
    overrides: list[str],
    change: Callable[[pd.DataFrame], pd.DataFrame] | None,
) -> None:
    held = ["tasks.val_classes=2", "tasks.test_classes=2"]
    frame = events() if change is None else change(events())
    trainer = build_trainer(experiment_on(tmp_path, frame, *overrides, *held))
    assert np.isfinite(trainer.train(2)["train_loss"])
    features = trainer.tasks.facts["features"]
    assert features[-3:] == ["event"] * 3
    assert trainer.tasks.input_spec.num_features == len(features)
    tasks = trainer.tasks
    for split in SPLITS:
        one_hot = split_rows(tasks, split)[:, -3:] + np.array(tasks.facts["mean"][-3:])
        assert np.abs(np.sort(one_hot, axis=1) - [0, 0, 1]).max() < 1e-6


def test_numbers_are_predicted_from_categories(tmp_path: Path) -> None:
    frame = events()
    frame["dose"] = (frame.event == "idle").groupby(frame.run).transform("mean")
    target = ["tasks.target={number: dose}", "tasks.features=[]", "ridge.learned_prior=false"]
    experiment = experiment_on(
        tmp_path, frame, *target, "tasks.num_ways=1", "tasks.num_shots=5", "tasks.num_queries=5"
    )
    trainer = build_trainer(experiment)
    assert trainer.tasks.input_spec.num_features == 3
    trainer.train(30)
    assert trainer.validate()["val_loss"] < 0.5  # 1 is the error of the mean


FORECAST = """
name: sales
tasks:
  source: table
  data_dir: {folder}
  kind: forecast
  sequence: shop
  target: sold
  features: [price]
  categories: [offer, town]
  num_shots: 2
  num_queries: 1
  horizon: 1
  context: 4
model: {{hidden_size: 8}}
maml: {{adaptation_steps: 1, inner_lr: 0.02}}
training: {{meta_steps: 60, meta_batch_size: 16, outer_lr: 0.02, pretrain_steps: 0}}
"""


def sales() -> pd.DataFrame:
    """Shops whose next sales go by the offer of the day: `up` or `down` with noise, or `same`."""
    rng = np.random.default_rng(0)
    shops = []
    for shop in range(24):
        offer = rng.choice(["up", "down", "same"], 24)
        step = pd.Series(offer).map({"up": 1.0, "down": -1.0, "same": 0.0}).to_numpy()
        sold = 50 + np.concatenate([[0.0], step[:-1].cumsum()]) + 0.05 * rng.normal(size=24)
        town = ("north", "south")[shop % 2]
        price = rng.normal(size=24)
        columns = {"shop": f"s{shop}", "sold": sold, "price": price, "offer": offer, "town": town}
        shops.append(pd.DataFrame(columns))
    return pd.concat(shops, ignore_index=True)


def forecast_on(folder: Path, frame: pd.DataFrame, *overrides: str) -> Any:
    frame.to_csv(folder / "sales.csv", index=False)
    (folder / "sales.yaml").write_text(FORECAST.format(folder=folder))
    return load_experiment(str(folder / "sales.yaml"), list(overrides))


@pytest.mark.slow
def test_a_forecast_goes_by_the_category_that_decides_it(tmp_path: Path) -> None:
    mase = []
    for overrides in ([], ["tasks.categories=[]"]):
        trainer = build_trainer(forecast_on(tmp_path, sales(), *overrides))
        trainer.train(60)
        mase.append(trainer.validate()["val_mase"])
    assert mase[0] < 0.6
    assert mase[1] > 0.8


def test_windows_of_forecasts_have_centred_levels_that_the_past_does_not_scale(
    tmp_path: Path,
) -> None:
    frame = sales()
    tasks = load_tasks(forecast_on(tmp_path, frame))
    trained = [unit for unit, split in tasks.deal["shop"].items() if split == "train"]
    rows = frame[frame.shop.isin(trained)]
    shares = [
        *rows.offer.value_counts(normalize=True)[["down", "same", "up"]],
        *rows.town.value_counts(normalize=True)[["north", "south"]],
    ]
    np.testing.assert_allclose(tasks.facts["shares"], shares)
    assert tasks.input_spec.num_features == 2 + 1 + 5
    episode = tasks.episode("test", 0)
    one_hot = episode.query_x[0, :, 3:] + np.array(shares)
    np.testing.assert_allclose(
        np.sort(one_hot[:, :3], axis=1), [[0, 0, 1]] * len(one_hot), atol=1e-6
    )
    np.testing.assert_allclose(np.sort(one_hot[:, 3:], axis=1), [[0, 1]] * len(one_hot), atol=1e-6)
    # The other inputs are what they are without categories.
    plain = load_tasks(forecast_on(tmp_path, frame, "tasks.categories=[]")).episode("test", 0)
    np.testing.assert_array_equal(episode.query_x[..., :3], plain.query_x)
    np.testing.assert_array_equal(episode.query_y, plain.query_y)
    assert "levels" not in load_tasks(forecast_on(tmp_path, frame, "tasks.categories=[]")).facts


def test_a_draft_has_the_categories_that_it_finds(tmp_path: Path) -> None:
    frame = events()
    frame["note"] = [f"note {n}" for n in range(len(frame))]
    experiment_on(tmp_path, frame)
    guess = guess_tasks(str(tmp_path / "events.csv"), target="state", task=["machine"])
    assert guess.settings.categories == ["event"]
    assert guess.settings.features == ["volt"]
    assert any(found.subject == "note" for found in guess.findings)
    (tmp_path / "new.yaml").write_text(draft("new", guess.settings, "raymeta new", "new.yaml"))
    assert load_experiment(str(tmp_path / "new.yaml")).tasks == guess.settings
    frame = frame.drop(columns=["volt", "note"])
    frame.to_csv(tmp_path / "events.csv", index=False)
    guess = guess_tasks(str(tmp_path / "events.csv"), target="state", task=["machine"])
    assert (guess.settings.categories, guess.settings.features) == (["event"], [])


def test_meta_gradients_reach_the_vectors_of_all_levels(tmp_path: Path) -> None:
    trainer = build_trainer(experiment_on(tmp_path, events(), "learner=maml"))
    before = trainer.meta_params["rnn.weight_ih_l0"].clone()
    trainer.train(1)
    moved = (trainer.meta_params["rnn.weight_ih_l0"] - before).abs().amax(dim=0)
    assert moved.shape == (4,)  # volt, and three levels
    assert bool((moved > 0).all())


def test_levels_stand_beside_what_is_known_in_advance(tmp_path: Path) -> None:
    frame = sales()
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(frame.groupby("shop").cumcount(), unit="D")
    frame["day"] = days.dt.strftime("%Y-%m-%d")
    also = ("time=day", "features=[]", "known=[price]", "calendar=[weekday]")
    tasks = load_tasks(forecast_on(tmp_path, frame, *(f"tasks.{text}" for text in also)))
    (test,) = [unit for unit, split in tasks.deal["shop"].items() if split == "test"]
    episode = tasks.episode("test", 0)
    cutter = tasks.sample_episode.cutter  # type: ignore[attr-defined]
    assert episode.query_ids is not None
    (read, *_), cut = episode.query_x, int(episode.query_ids[0])
    size, horizon = cutter.past, cutter.horizon
    assert read.shape == (size + horizon, tasks.input_spec.num_features)
    # The target and its change, 5 levels, the price, the weekday's sine and cosine, the mark.
    _, centred, price, weekday, mark = np.split(read, [2, 7, 8, 10], axis=1)
    own = frame[frame.shop == test].reset_index(drop=True)
    columns = {"offer": ("down", "same", "up"), "town": ("north", "south")}
    is_level = [own[name] == level for name, levels in columns.items() for level in levels]
    one_hot = np.stack(is_level, axis=1)[cut - size : cut]
    np.testing.assert_allclose(centred[:size], one_hot - tasks.facts["shares"], atol=1e-6)
    np.testing.assert_array_equal(centred[size:], 0)
    past = own.price[cut - size : cut]
    wanted = (own.price[cut - size : cut + horizon] - past.mean()) / past.std(ddof=0)
    np.testing.assert_allclose(price[:, 0], wanted, rtol=1e-4, atol=1e-5)
    weekdays = pd.DatetimeIndex(own.day).day_of_week[cut - size : cut + horizon]
    turn = 2 * np.pi * weekdays.to_numpy() / 7
    np.testing.assert_allclose(weekday, np.stack([np.sin(turn), np.cos(turn)], 1), atol=1e-6)
    np.testing.assert_array_equal(mark[:, 0], [0] * size + [1] * horizon)
    series = tasks.sample_episode.x["test"][0]  # type: ignore[attr-defined]
    asked = cutter.question(series[cut - size : cut], series[cut : cut + horizon, -3:])
    np.testing.assert_array_equal(asked.query_x[0], read)
