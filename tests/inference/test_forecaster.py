"""Forecasts of new series: answers as in the meta-test, intervals, times, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import raymeta
from raymeta.errors import DataError, DataWarning, RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.forecast_errors import ERRORS_FILE, keep_errors
from raymeta.evaluation.own_units import forecasts_of
from raymeta.inference.forecaster import Forecaster
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import Cli, RunOf, make_run
from tests.tasks.test_forecast import SETTINGS, sales

TASKS = SETTINGS | {"num_queries": 1, "val_groups": 2, "test_groups": 2}
PAST = 11  # context 5, horizon 4, one stride of 2


def forecast_run(folder: Path, *overrides: str, seeds: int = 1) -> Run:
    folder.mkdir(exist_ok=True)
    sales().to_parquet(folder / "rows.parquet")
    tasks = TASKS | {"data_dir": str(folder)}
    return make_run(folder, "pen", f"tasks={tasks!r}", *overrides, seeds=seeds)


@pytest.fixture(scope="module", params=["maml", "ridge"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("forecast") / "run"
    return forecast_run(folder, f"learner={request.param}", seeds=2)


@pytest.fixture
def forecaster(run: Run) -> Forecaster:
    return raymeta.load_forecaster(str(run.path))


def history(days: int = 30, shops: int = 3, seed: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.concat(
        pd.DataFrame(
            {
                "shop": f"new {shop}",
                "day": pd.date_range("2026-03-01", periods=days),
                "sales": 50 + 10 * rng.normal(size=days).cumsum(),
                "price": rng.uniform(1, 2, days),
            }
        )
        for shop in range(shops)
    )


@pytest.mark.slow
def test_a_forecast_is_the_answer_of_the_meta_test(run: Run, forecaster: Forecaster) -> None:
    """Compares with the ensemble's answers to the past of each meta-test episode."""
    experiment = run.experiment()
    tasks = load_tasks(experiment)
    assert isinstance(experiment.tasks, raymeta.tasks.table_settings.TableTasks)
    networks = [Network(tasks, forecaster.trained.recipe, params) for params in forecaster.networks]
    assert len(networks) == 2
    steps = forecaster.trained.recipe.num_steps
    answers = forecasts_of(networks, 20, steps).mean(dim=0)[:, 0].numpy()
    sampler: Any = tasks.sample_episode
    for index in range(20):
        episode = tasks.episode("test", index)
        assert episode.query_past is not None
        assert episode.query_ids is not None
        past = episode.query_past.values  # noqa: PD011
        cut = int(episode.query_ids[0])
        series = next(
            x for x in sampler.x["test"] if np.array_equal(x[cut - PAST : cut, 0], past[0])
        )
        found = forecaster.forecast([series[:cut]])
        wanted = episode.query_past.base[0] + episode.query_past.unit[0] * answers[index]
        np.testing.assert_allclose(found.point[0], wanted, rtol=1e-9)


def test_series_are_forecast_each_by_itself_whatever_form_they_have(forecaster: Forecaster) -> None:
    frame = history()
    found = forecaster.forecast(frame)
    assert found.series == ("new 0", "new 1", "new 2")
    shuffled = frame.sample(frac=1, random_state=1)
    again = forecaster.forecast(shuffled)
    order = [again.series.index(name) for name in found.series]
    np.testing.assert_allclose(again.point[order], found.point, rtol=1e-9)
    arrays = [group[["sales", "price"]].to_numpy() for _, group in frame.groupby("shop")]
    np.testing.assert_allclose(forecaster.forecast(arrays).point, found.point, rtol=1e-9)
    one = forecaster.forecast([arrays[1][-PAST:]])  # what came before is not read
    np.testing.assert_allclose(one.point[0], found.point[1], rtol=1e-9)
    other = arrays[1].copy()
    other[-1, 0] += 5
    assert not np.allclose(forecaster.forecast([other]).point[0], found.point[1])


def test_a_forecast_moves_with_level_and_unit_of_its_series(forecaster: Forecaster) -> None:
    arrays = [history(shops=1)[["sales", "price"]].to_numpy()]
    plain = forecaster.forecast(arrays).point
    scaled = forecaster.forecast([arrays[0] * [1000, 1] + [5, 0]]).point
    np.testing.assert_allclose(scaled, plain * 1000 + 5, rtol=1e-5)
    vast = forecaster.forecast([arrays[0] * [1, 1e300]]).point
    np.testing.assert_allclose(vast, plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("days", "wanted"),
    [
        (pd.date_range("2026-03-01", periods=30), "2026-03-31 2026-04-01 2026-04-02 2026-04-03"),
        (
            pd.date_range("2024-01-31", periods=30, freq="ME"),
            "2026-07-31 2026-08-31 2026-09-30 2026-10-31",
        ),
        (pd.date_range("2026-03-01", periods=30).strftime("%Y-%m-%d"), "2026-03-31 2026-04-01"),
        (np.arange(100, 160, 2), "160 162 164 166"),
        (np.arange(30).astype(str), "30 31 32 33"),
        (
            pd.date_range("2026-03-01", periods=30, freq="h", tz="Europe/Berlin"),
            "2026-03-02 06:00:00+01:00 2026-03-02 07:00:00+01:00",
        ),
    ],
)
def test_the_times_to_come_go_on_as_those_of_the_past(
    forecaster: Forecaster, days: Any, wanted: str
) -> None:
    found = forecaster.forecast(history(shops=1).assign(day=days)).to_pandas()
    assert list(found.columns) == ["shop", "day", "step", "forecast"]
    assert found["step"].tolist() == [1, 2, 3, 4]
    assert " ".join(map(str, found["day"])).startswith(wanted)


def test_uneven_times_are_warned_of(forecaster: Forecaster) -> None:
    days = pd.DatetimeIndex([*pd.date_range("2026-03-01", periods=29), "2027-01-01"])
    with pytest.warns(DataWarning, match="day of series 'new 0' are uneven"):
        found = forecaster.forecast(history(shops=1).assign(day=days))
    assert found.to_table().column_names == ["shop", "step", "forecast"]


def constant(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(sales=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="price"), "has no column 'price'"),
        (lambda f: f.tail(PAST - 1), "has 10 steps, but the network reads the last 11"),
        (constant, "'new 0': its last 11 steps are the same in every season"),
        (lambda f: f.assign(sales=f["sales"].where(f.index > 25)), "the value is missing"),
        (lambda f: f.assign(sales=np.where(f.index % 2, 1.7e308, -1.7e308)), "too large"),
        (lambda f: f.iloc[:0], "has no rows"),
    ],
)
def test_unusable_histories_are_refused(forecaster: Forecaster, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        forecaster.forecast(change(history(shops=1)))


@pytest.mark.parametrize("x", [[np.ones((30, 3))], "text", [np.full((30, 2), np.nan)], []])
def test_unusable_arrays_are_refused(forecaster: Forecaster, x: Any) -> None:
    with pytest.raises(DataError):
        forecaster.forecast(x)


@pytest.mark.slow
def test_intervals_come_from_meta_validation(run: Run, forecaster: Forecaster) -> None:
    with pytest.raises(DataError, match="`raymeta evaluate RUN` does so"):
        forecaster.forecast(history(), coverage=0.7)
    networks = [
        Network(load_tasks(run.experiment()), forecaster.trained.recipe, params)
        for params in forecaster.networks
    ]
    errors = keep_errors(run, networks)
    try:
        measured = raymeta.load_forecaster(str(run.path))
        assert measured.errors == errors
        assert len(errors.errors) == 4  # two towns of two shops
        found = measured.forecast(history(), coverage=0.7)
        assert found.lower is not None
        assert found.upper is not None
        pasts = [group["sales"].to_numpy()[-PAST:] for _, group in history().groupby("shop")]
        unit = [np.abs(past[3:] - past[:-3]).mean() for past in pasts]
        half = np.array(unit)[:, None] * errors.half_widths(0.7)
        np.testing.assert_allclose(found.upper - found.point, half, rtol=1e-9)
        np.testing.assert_allclose(found.point - found.lower, half, rtol=1e-9)
        assert {"lower", "upper"} < set(found.to_table().column_names)
        alone = raymeta.load_forecaster(str(run.path), ensemble=False)
        assert alone.errors is not None
        assert alone.errors != errors
        Path(str(run.path), ERRORS_FILE).write_text('{"2": {"errors": [[[1, 2]]]}}')
        with pytest.raises(RunError, match=r"is damaged; `raymeta evaluate .*` makes it anew"):
            raymeta.load_forecaster(str(run.path))
    finally:
        Path(str(run.path), ERRORS_FILE).unlink()


@pytest.mark.slow
def test_the_command_writes_what_python_returns(
    run: Run, forecaster: Forecaster, run_cli: Cli
) -> None:
    text = history().to_csv(index=False)
    Path("history.csv").write_text(text)
    code, out, err = run_cli("forecast", str(run.path), "history.csv")
    assert (code, err) == (0, "")
    piped = run_cli("forecast", str(run.path), stdin=text.encode())
    assert piped == (0, out, "")
    rows = [line.replace('"', "").split(",") for line in out.splitlines()]
    assert rows[0] == ["shop", "day", "step", "forecast"]
    assert rows[1][:3] == ["new 0", "2026-03-31", "1"]
    found = [float(row[3]) for row in rows[1:]]
    np.testing.assert_allclose(found, forecaster.forecast(history()).point.ravel(), rtol=1e-9)
    code, _, err = run_cli("forecast", str(run.path), "history.csv", "--coverage", "1.5")
    assert (code, "Traceback" in err) == (1, False)


def test_networks_open_by_the_function_that_uses_them(run: Run, run_of: RunOf) -> None:
    with pytest.raises(RunError, match=r"raymeta\.load_forecaster"):
        raymeta.load(str(run.path))
    other = run_of("table", "learner=prototypes")
    with pytest.raises(RunError, match="makes no forecasts"):
        raymeta.load_forecaster(str(other.path))


@pytest.mark.slow
def test_quantiles_are_outputs_of_their_own(tmp_path: Path, run_cli: Cli) -> None:
    """Quantiles are the network's outputs, in the series' own units; intervals go on beside."""
    levels = [0.1, 0.5, 0.75]
    run = forecast_run(tmp_path / "run", f"tasks.quantiles={levels}", "learner=maml", seeds=2)
    forecaster = raymeta.load_forecaster(str(run.path))
    found = forecaster.forecast(history())
    assert list(found.quantiles) == levels
    stacked = np.stack(list(found.quantiles.values()), axis=-1)
    assert stacked.shape == (3, 4, 3)
    assert (np.diff(stacked, axis=-1) >= 0).all()
    assert (np.diff(stacked, axis=-1) > 0).any()
    np.testing.assert_array_equal(found.quantiles[0.5], found.point)
    tasks = load_tasks(run.experiment())
    networks = [Network(tasks, forecaster.trained.recipe, params) for params in forecaster.networks]
    episode = tasks.episode("test", 0)
    assert episode.query_past is not None
    assert episode.query_ids is not None
    sampler: Any = tasks.sample_episode
    cut, past = int(episode.query_ids[0]), episode.query_past.values[0]  # noqa: PD011
    series = next(x for x in sampler.x["test"] if np.array_equal(x[cut - PAST : cut, 0], past))
    outputs = forecasts_of(networks, 1, forecaster.trained.recipe.num_steps)[:, 0, 0].numpy()
    answers = np.sort(outputs.reshape(2, 4, 3), axis=-1).mean(axis=0)
    one = forecaster.forecast([series[:cut]])
    for place, level in enumerate(levels):
        wanted = episode.query_past.base[0] + episode.query_past.unit[0] * answers[:, place]
        np.testing.assert_allclose(one.quantiles[level][0], wanted, rtol=1e-9)
    history().to_csv("history.csv", index=False)
    code, out, err = run_cli("forecast", str(run.path), "history.csv")
    assert (code, err) == (0, "")
    names = "shop,day,step,forecast,quantile 0.1,quantile 0.5,quantile 0.75"
    assert out.splitlines()[0].replace('"', "") == names
    errors = keep_errors(run, networks)
    measured = raymeta.load_forecaster(str(run.path)).forecast(history(), coverage=0.7)
    assert measured.lower is not None
    assert errors.half_widths(0.7).shape == (4,)
    assert (measured.lower < measured.point).all()


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("known") / "run"
    tasks = ["tasks.features=[]", "tasks.known=[price]", "tasks.calendar=[weekday]"]
    return forecast_run(folder, "learner=maml", *tasks)


def coming(days: int = 4, shops: int = 3) -> pd.DataFrame:
    """The known columns of the days after `history`, and of further days."""
    frame = history(days=30 + days + 2, shops=shops, seed=8).drop(columns="sales")
    return frame[frame["day"] >= "2026-03-25"]


def test_what_is_known_of_the_steps_to_come_is_read(knowing: Run, run_cli: Cli) -> None:
    """A forecast is the answer to the episode that holds these values, of any order and surplus."""
    forecaster = raymeta.load_forecaster(str(knowing.path))
    found = forecaster.forecast(history(), known=coming())
    again = forecaster.forecast(history(), known=coming().sample(frac=1, random_state=0))
    np.testing.assert_array_equal(again.point, found.point)
    changed = coming()
    on = (changed["shop"] == "new 1") & (changed["day"] == "2026-04-02")
    changed.loc[on, "price"] += 1
    other = forecaster.forecast(history(), known=changed).point
    assert not np.allclose(other[1], found.point[1])
    np.testing.assert_array_equal(other[[0, 2]], found.point[[0, 2]])
    after = coming()
    after.loc[after["day"] > "2026-04-03", "price"] = 1e3  # behind the horizon
    after.loc[after["day"] < "2026-03-31", "price"] = 1e3  # of the past, which the history tells
    np.testing.assert_array_equal(forecaster.forecast(history(), known=after).point, found.point)
    history().to_csv("history.csv", index=False)
    coming().to_csv("known.csv", index=False)
    code, out, err = run_cli("forecast", str(knowing.path), "history.csv", "--known", "known.csv")
    assert (code, err) == (0, "")
    values = [float(line.split(",")[3]) for line in out.splitlines()[1:]]
    np.testing.assert_allclose(values, found.point.ravel(), rtol=1e-9)


def test_known_values_are_in_a_question_as_in_an_episode(knowing: Run) -> None:
    forecaster = raymeta.load_forecaster(str(knowing.path))
    tasks = load_tasks(knowing.experiment())
    sampler: Any = tasks.sample_episode
    series = sampler.x["test"][0]
    cut = int(sampler.cuts["test"][0][3])
    episode = sampler.cutter.episode(series, cut)
    asked = sampler.cutter.question(series[cut - PAST : cut], series[cut : cut + 4, 1:])
    for name in ("support_x", "support_y", "query_x", "query_lengths"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(episode, name))
    frame = pd.DataFrame(series[:, :2], columns=["sales", "price"]).assign(shop="test")
    frame["day"] = pd.date_range("2026-01-01", periods=len(series))
    found = forecaster.forecast(frame[:cut], known=frame[cut:])
    answers = forecaster._answers([episode])[0].numpy()
    assert episode.query_past is not None
    wanted = episode.query_past.base[0] + episode.query_past.unit[0] * answers
    np.testing.assert_allclose(found.point[0], wanted, rtol=1e-9)


def without_step(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["shop"] != "new 1") | (frame["day"] != "2026-04-02")]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (None, r"reads price of the 4 steps to come \(tasks\.known\): give them as `known`"),
        (
            without_step(coming()),
            r"known, column price, series 'new 1', step 3 of 4 \(2026-04-02.*there is no row",
        ),
        (
            coming().assign(price=lambda f: f["price"].where(f["day"] != "2026-04-01")),
            r"known, column price, series 'new 0', step 2 of 4 \(2026-04-01.*value is missing",
        ),
        (
            pd.concat([coming(), coming().tail(1)]),
            r"known, column day, series 'new 2': has the time 2026-04-05.* twice",
        ),
        (coming(shops=2), r"series 'new 2', step 1 of 4.*there is no row"),
        (coming(days=1), r"series 'new 0', step 4 of 4.*there is no row"),
        (coming().drop(columns="price"), "has no column 'price'"),
        ([np.ones((4, 1))], "known must be a DataFrame"),
    ],
)
def test_unknown_values_to_come_are_refused(knowing: Run, known: Any, message: str) -> None:
    forecaster = raymeta.load_forecaster(str(knowing.path))
    with pytest.raises(DataError, match=message):
        forecaster.forecast(history(), known=known)


def test_arrays_have_known_values_but_no_calendar(knowing: Run, tmp_path: Path) -> None:
    arrays = [group[["sales", "price"]].to_numpy() for _, group in history().groupby("shop")]
    with pytest.raises(DataError, match=r"arrays have no dates.*\(tasks\.calendar\)"):
        raymeta.load_forecaster(str(knowing.path)).forecast(arrays, known=arrays)
    run = forecast_run(tmp_path / "run", "learner=maml", "tasks.features=[]", "tasks.known=[price]")
    forecaster = raymeta.load_forecaster(str(run.path))
    inside = coming()[lambda f: f["day"].between("2026-03-31", "2026-04-03")]
    ahead = [group[["price"]].to_numpy() for _, group in inside.groupby("shop")]
    found = forecaster.forecast(arrays, known=ahead).point
    by_frame = forecaster.forecast(history(), known=coming()).point
    np.testing.assert_allclose(found, by_frame, rtol=1e-9)
    for known, message in (
        (None, "give them as `known`"),
        (ahead[:2], "an array for each of the 3 series, but has 2"),
        ([one[:3] for one in ahead], "series 1: must have the 4 steps to come"),
        ([one * np.nan for one in ahead], "known|finite|missing"),
    ):
        with pytest.raises(DataError, match=message):
            forecaster.forecast(arrays, known=known)


def test_uneven_times_have_no_calendar_but_known_values_in_their_order(
    knowing: Run, tmp_path: Path
) -> None:
    days = pd.DatetimeIndex([*pd.date_range("2026-03-01", periods=29), "2026-04-20"])
    uneven = history(shops=1).assign(day=days)
    later = coming(shops=1)[:4].assign(day=pd.date_range("2026-05-01", periods=4))
    with pytest.raises(DataError, match="calendar of its steps to come is not known"):
        raymeta.load_forecaster(str(knowing.path)).forecast(uneven, known=later)
    run = forecast_run(tmp_path / "run", "learner=maml", "tasks.features=[]", "tasks.known=[price]")
    forecaster = raymeta.load_forecaster(str(run.path))
    with pytest.warns(DataWarning, match="uneven"):
        found = forecaster.forecast(uneven, known=later[::-1]).point
    even = history(shops=1)
    wanted = forecaster.forecast(
        even, known=later.assign(day=pd.date_range("2026-03-31", periods=4))
    )
    np.testing.assert_allclose(found, wanted.point, rtol=1e-9)


def test_without_times_the_known_rows_are_those_of_the_horizon(tmp_path: Path) -> None:
    tasks = ["tasks.features=[]", "tasks.known=[price]", "tasks.time=null"]
    run = forecast_run(tmp_path / "run", "learner=maml", *tasks)
    forecaster = raymeta.load_forecaster(str(run.path))
    inside = coming()[lambda f: f["day"].between("2026-03-31", "2026-04-03")]
    found = forecaster.forecast(history(), known=inside).point
    arrays = [group[["sales", "price"]].to_numpy() for _, group in history().groupby("shop")]
    ahead = [group[["price"]].to_numpy() for _, group in inside.groupby("shop")]
    np.testing.assert_allclose(found, forecaster.forecast(arrays, known=ahead).point, rtol=1e-9)
    with pytest.raises(DataError, match=r"series 'new 0': has 12 rows.*give the 4 steps to come"):
        forecaster.forecast(history(), known=coming())


def test_a_network_without_known_columns_takes_none(forecaster: Forecaster) -> None:
    with pytest.raises(DataError, match="reads nothing that is known in advance"):
        forecaster.forecast(history(), known=coming())


def test_answers_in_use_are_without_dropout(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "run", "learner=maml", "model.dropout=0.5")
    forecaster = raymeta.load_forecaster(str(run.path))
    first = forecaster.forecast(history()).point
    torch.manual_seed(5)
    np.testing.assert_array_equal(forecaster.forecast(history()).point, first)
