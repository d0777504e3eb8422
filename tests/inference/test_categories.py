"""Networks in use on tables with categories: known, unknown and missing levels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import raymeta
from raymeta.errors import DataError, DataWarning
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import read_examples
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import TABLE, Cli, make_run, probabilities_by_cli, write_signals
from tests.tasks.test_levels import forecast_on, sales


def write_modes(folder: Path) -> pd.DataFrame:
    """Adds a mode (text with gaps) and a switch (truth values) to signals."""
    write_signals(folder / "data", ("volt", "ampere"))
    frame = pd.read_csv(folder / "data" / "signals.csv").sort_values(["recording", "second"])
    rng = np.random.default_rng(1)
    frame["mode"] = rng.choice(np.array(["low", "high", None], dtype=object), len(frame))
    frame["switch"] = rng.random(len(frame)) < 0.3
    frame.to_csv(folder / "data" / "signals.csv", index=False)
    return frame


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("modes")
    write_modes(folder)
    text = TABLE.format(folder=folder / "data", features="volt, ampere")
    (folder / "modes.yaml").write_text(text + "  categories: [switch, mode]\n")
    return make_run(folder, str(folder / "modes.yaml"), "learner=maml")


@pytest.fixture(scope="module")
def frame(run: Run) -> pd.DataFrame:
    return pd.read_csv(Path(str(run.path)).parent.parent / "data" / "signals.csv")


@pytest.fixture(scope="module")
def support(frame: pd.DataFrame) -> pd.DataFrame:
    kinds = sorted(frame["kind"].unique())[:3]
    return frame[frame["kind"].isin(kinds)]


@pytest.fixture(scope="module")
def adapted(run: Run, support: pd.DataFrame) -> Adapted:
    return raymeta.load(str(run.path)).adapt(support)


def test_examples_are_prepared_as_in_training(run: Run, frame: pd.DataFrame) -> None:
    inputs = raymeta.load(str(run.path)).trained.inputs
    assert inputs.levels == {"mode": ["high", "low", None], "switch": ["false", "true"]}
    assert inputs.channels == ("volt", "ampere", "switch", "mode")
    raw = read_examples(frame, inputs)
    prepared = {x.tobytes() for x in inputs.prepare(raw.x, raw.names)}
    tasks = load_tasks(run.experiment())
    for index in range(5):
        episode = tasks.episode("test", index)
        assert episode.query_lengths is not None
        for x, length in zip(episode.query_x, episode.query_lengths, strict=True):
            assert x[:length].tobytes() in prepared


def test_a_table_is_adapted_to_and_predicted_by_the_command_line(
    run: Run, support: pd.DataFrame, adapted: Adapted, run_cli: Cli
) -> None:
    wanted = adapted.predict_proba(support.drop(columns="kind"))
    found = probabilities_by_cli(run_cli, run, support)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    support.assign(mode="odd").to_csv("odd.csv", index=False)
    code, _, err = run_cli("predict", "a.raymeta", "odd.csv")
    assert code == 0
    assert "column mode: 'odd' did not occur in meta-training" in " ".join(err.split())


def test_a_category_changes_the_answers_in_every_form_alike(
    support: pd.DataFrame, adapted: Adapted
) -> None:
    x = support.drop(columns="kind")
    wanted = adapted.predict_proba(x)
    for form in (
        x.astype({"mode": "category"}),
        x.assign(switch=x["switch"].astype(str)),
        x.assign(mode=x["mode"].fillna("")),
    ):
        np.testing.assert_array_equal(adapted.predict_proba(form), wanted)
    assert np.abs(adapted.predict_proba(x.assign(mode="low")) - wanted).max() > 1e-6


def test_an_unknown_level_is_said_and_reads_as_the_mean(
    run: Run, support: pd.DataFrame, adapted: Adapted
) -> None:
    x = support.drop(columns="kind")
    with pytest.warns(DataWarning, match="column mode: 'odd' did not occur in meta-training"):
        odd = adapted.predict_proba(x.assign(mode="odd"))
    with pytest.warns(DataWarning, match="column mode: 'even', 'odd' did not"):
        other = adapted.predict_proba(x.assign(mode=np.where(np.arange(len(x)) % 2, "odd", "even")))
    np.testing.assert_array_equal(odd, other)
    with pytest.warns(DataWarning, match="column switch: a missing value did not occur"):
        adapted.predict_proba(x.assign(switch=None))
    inputs = adapted.trained.inputs
    with pytest.warns(DataWarning, match="odd"):
        raw = read_examples(x.assign(mode="odd"), inputs)
    for one in inputs.prepare(raw.x, raw.names):
        np.testing.assert_array_equal(one[:, 4:7], 0)
    with pytest.warns(DataWarning, match="odd"):
        raymeta.load(str(run.path)).adapt(support.assign(mode="odd"))


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_category_has_one_attribution(
    support: pd.DataFrame, adapted: Adapted, method: str
) -> None:
    x = support.drop(columns="kind")
    found = adapted.attribute(x, method=method)  # type: ignore[arg-type]
    assert found.channels == ("volt", "ampere", "switch", "mode")
    values = found.values  # noqa: PD011
    assert values.shape[2] == 4
    assert found.x is not None
    own = x[x["recording"] == x["recording"].iloc[0]].sort_values("second")
    numbers = own["mode"].map({"high": 0, "low": 1}).fillna(2)
    np.testing.assert_array_equal(found.x[0, : len(own), 3], numbers)
    np.testing.assert_array_equal(found.x[0, : len(own), 2], own["switch"].astype(int))
    if method == "integrated_gradients":
        assert np.abs(found.residuals).max() < 1e-6
    else:
        # A column whose level is its baseline's at every step loses nothing.
        with pytest.warns(DataWarning, match="odd"):
            zeros = adapted.attribute(x.assign(mode="odd"), method="occlusion", baseline="zeros")
        lost = zeros.values  # noqa: PD011
        np.testing.assert_array_equal(lost[..., 3], 0)
        assert np.abs(lost[..., 2]).max() > 0


def test_arrays_and_streams_are_refused(adapted: Adapted) -> None:
    with pytest.raises(DataError, match="network reads categories \\(switch, mode\\)"):
        adapted.predict([np.ones((4, 4))])
    with pytest.raises(DataError, match="stream"):
        adapted.stream()


def test_a_number_beside_categories_is_read_from_its_own_column(tmp_path: Path) -> None:
    frame = write_modes(tmp_path)
    frame["dose"] = frame.groupby("recording")["volt"].transform("mean")
    frame.to_csv(tmp_path / "data" / "signals.csv", index=False)
    text = TABLE.format(folder=tmp_path / "data", features="ampere")
    for old, new in (
        ("target: kind", "target: {number: dose}"),
        ("num_ways: 3", "kind: groups"),
        (
            "  val_classes: 3\n  test_classes: 3\n",
            "  categories: [mode]\n  val_groups: 9\n  test_groups: 9\n",
        ),
    ):
        text = text.replace(old, new)
    (tmp_path / "doses.yaml").write_text(text)
    run = make_run(tmp_path, str(tmp_path / "doses.yaml"), "learner=ridge")
    model = raymeta.load(str(run.path))
    some = frame[frame["recording"].isin(sorted(frame["recording"].unique())[:6])]
    y = some.groupby("recording", sort=False)["dose"].first().to_numpy(copy=True)
    from_table, beside = model.adapt(some), model.adapt(some.drop(columns="dose"), y)
    x = some.drop(columns="dose")
    np.testing.assert_allclose(from_table.predict(x), beside.predict(x))
    assert torch.isfinite(torch.from_numpy(from_table.predict(x))).all()


def test_series_with_categories_are_forecast_as_in_training(tmp_path: Path, run_cli: Cli) -> None:
    frame = sales()
    experiment = forecast_on(tmp_path, frame)
    run = make_run(tmp_path, str(tmp_path / "sales.yaml"))
    model = raymeta.load_forecaster(str(run.path))
    assert list(model.columns) == ["shop", "sold", "price", "offer", "town"]
    found = model.forecast(frame)
    # By hand: the episode that the loader draws of the same past.
    tasks = load_tasks(experiment)
    sampler = tasks.sample_episode
    tested = [unit for unit, split in tasks.deal["shop"].items() if split == "test"]
    (shop,) = tested
    x = sampler.x["test"][0]  # type: ignore[attr-defined]
    cutter = sampler.cutter  # type: ignore[attr-defined]
    wanted = model._answers([cutter.question(x[-cutter.past :])])
    past = cutter.question(x[-cutter.past :]).query_past
    at = list(found.series).index(shop)
    np.testing.assert_allclose(found.point[at], (past.base + past.unit * wanted.numpy())[0])
    other = model.forecast(frame.assign(offer="up"))
    assert np.abs(other.point - found.point).max() > 1e-6
    with pytest.warns(DataWarning, match="column offer: 'gift' did not occur"):
        model.forecast(frame.assign(offer="gift"))
    with pytest.raises(DataError, match="network reads categories"):
        model.forecast([np.ones((20, 4))])
    frame.to_csv("sales.csv", index=False)
    code, out, err = run_cli("forecast", str(run.path), "sales.csv")
    assert (code, err) == (0, "")
    np.testing.assert_allclose(
        pd.read_csv(io.StringIO(out))["forecast"], found.point[:, 0], rtol=1e-6
    )
