"""Networks in use on tables with missing numbers and irregular times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError, DataWarning, RunError
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import (
    TABLE,
    Cli,
    RunOf,
    make_run,
    probabilities_by_cli,
    write_signals,
)

WAYS = (
    pytest.param("interpolate", False, id="interpolate"),
    pytest.param("mask", False, id="mask"),
    pytest.param("refuse", True, id="times"),
    pytest.param("mask", True, id="mask and times"),
)
GapsRun = Callable[..., Run]


def gaps_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Removes the volts of every third row, except in the first two rows of a recording."""
    is_gap = (np.arange(len(frame)) % 3 == 0) & (frame["second"] > 1)
    return frame.assign(volt=frame["volt"].where(~is_gap))


def frame_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "data" / "signals.csv").sort_values(["recording", "second"])


@pytest.fixture(scope="module")
def gaps_run(tmp_path_factory: pytest.TempPathFactory) -> GapsRun:
    made: dict[tuple[str, bool, bool], Run] = {}

    def make(missing: str, differences: bool, *, timed: bool = True) -> Run:
        key = (missing, differences, timed)
        if key not in made:
            folder = tmp_path_factory.mktemp("gaps")
            write_signals(folder / "data", ("volt", "ampere"))
            file = folder / "data" / "signals.csv"
            frame = frame_of(folder)
            if missing != "refuse":
                frame = gaps_of(frame)
            # Irregular times.
            frame["second"] = frame["second"] ** 2
            frame.to_csv(file, index=False)
            text = TABLE.format(folder=folder / "data", features="volt, ampere")
            text += f"  missing: {missing}\n  time_differences: {str(differences).lower()}\n"
            if not timed:
                text = text.replace("  time: second\n", "")
            (folder / "gaps.yaml").write_text(text)
            made[key] = make_run(folder, str(folder / "gaps.yaml"), "learner=prototypes")
        return made[key]

    return make


def data_of(run: Run) -> pd.DataFrame:
    return frame_of(Path(str(run.path)).parent.parent)


def test_examples_are_prepared_as_in_training(gaps_run: GapsRun) -> None:
    for way in WAYS:
        missing, differences = way.values  # noqa: PD011
        run = gaps_run(missing, differences)
        inputs = raymeta.load(str(run.path)).trained.inputs
        from raymeta.inference.examples import read_examples  # noqa: PLC0415

        raw = read_examples(data_of(run), inputs)
        prepared = {x.tobytes() for x in inputs.prepare(raw.x, raw.names)}
        assert len(prepared) == len(raw)
        tasks = load_tasks(run.experiment())
        for index in range(5):
            episode = tasks.episode("test", index)
            assert episode.query_lengths is not None
            for x, length in zip(episode.query_x, episode.query_lengths, strict=True):
                assert x[:length].tobytes() in prepared, way.id
        assert len(inputs.features) == episode.query_x.shape[2]


def support(run: Run) -> pd.DataFrame:
    frame = data_of(run)
    kinds = sorted(frame["kind"].unique())[:3]
    return frame[frame["kind"].isin(kinds)]


def adapted_of(run: Run) -> Adapted:
    return raymeta.load(str(run.path)).adapt(support(run))


@pytest.mark.parametrize(("missing", "differences"), WAYS)
def test_a_table_with_gaps_is_adapted_to_and_predicted(
    gaps_run: GapsRun, run_cli: Cli, missing: str, differences: bool
) -> None:
    run = gaps_run(missing, differences)
    adapted = adapted_of(run)
    frame = support(run)
    wanted = adapted.predict_proba(frame.drop(columns="kind"))
    found = probabilities_by_cli(run_cli, run, frame)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    explained = adapted.attribute(frame.drop(columns="kind"))
    assert len(explained.channels) == len(adapted.trained.inputs.features)


def test_times_change_the_answers(gaps_run: GapsRun) -> None:
    run = gaps_run("refuse", True)
    adapted, frame = adapted_of(run), support(run).drop(columns="kind")
    moved = adapted.predict_proba(frame.assign(second=frame["second"] + 1000))
    np.testing.assert_allclose(moved, adapted.predict_proba(frame), rtol=1e-9)
    slower = adapted.predict_proba(frame.assign(second=frame["second"] * 3))
    assert not np.allclose(slower, moved)


@pytest.mark.parametrize("of_dates", [False, True])
def test_dates_and_numbers_are_not_taken_for_one_another(tmp_path: Path, of_dates: bool) -> None:
    write_signals(tmp_path / "data", ("volt", "ampere"))
    file = tmp_path / "data" / "signals.csv"
    frame = frame_of(tmp_path)
    dated = frame.assign(second=pd.Timestamp("2026-01-31") + pd.to_timedelta(frame["second"], "s"))
    (dated if of_dates else frame).to_csv(file, index=False)
    text = TABLE.format(folder=tmp_path / "data", features="volt, ampere")
    (tmp_path / "own.yaml").write_text(text + "  time_differences: true\n")
    run = make_run(tmp_path, str(tmp_path / "own.yaml"), "learner=prototypes")
    model = raymeta.load(str(run.path))
    kinds = sorted(frame["kind"].unique())[:3]
    dated, frame = (own[own["kind"].isin(kinds)] for own in (dated, frame))
    same, other = (dated, frame) if of_dates else (frame, dated)
    adapted = model.adapt(same)
    wanted = "holds numbers, but .* trained on dates; give dates such as"
    if not of_dates:
        wanted = "holds dates, but .* trained on numbers; give numbers in the unit"
    for ask in (model.adapt, adapted.predict):
        with pytest.raises(DataError, match=f"column second: {wanted}"):
            ask(other)
    # Networks of runs that did not keep it go on as they did.
    known = dict(model.trained.identity.facts)
    assert known.pop("times_are_dates") is of_dates
    identity = replace(model.trained.identity, facts=known)
    older = replace(model, trained=replace(model.trained, identity=identity))
    assert len(older.adapt(same).predict(other.drop(columns="kind"))) == 18


def with_time_steps(model: Model, steps: list[float] | None) -> Model:
    """The model as of a run that kept these time steps, or none."""
    known = {k: v for k, v in model.trained.identity.facts.items() if k != "time_steps"}
    known |= {} if steps is None else {"time_steps": steps}
    identity = replace(model.trained.identity, facts=known)
    return replace(model, trained=replace(model.trained, identity=identity))


@pytest.mark.parametrize("steps", [[8, 3], [-1, 3], [3], [1, float("inf")], ["x", 3]])
def test_damaged_time_steps_are_refused(gaps_run: GapsRun, steps: list[float]) -> None:
    model = raymeta.load(str(gaps_run("refuse", True).path))
    with pytest.raises(RunError, match="facts of the data do not fit"):
        _ = with_time_steps(model, steps).trained.inputs
    # Steps too small for float64 come out as zero.
    assert with_time_steps(model, [0, 3]).trained.inputs.time_steps == (0, 3)


@pytest.mark.parametrize(("missing", "differences"), [("refuse", True), ("mask", False)])
def test_times_in_another_unit_are_warned_of(
    gaps_run: GapsRun, missing: str, differences: bool, tmp_path: Path
) -> None:
    run = gaps_run(missing, differences)
    model, seconds = raymeta.load(str(run.path)), support(run)
    # Recordings have 4 to 9 steps, at the squares of 0, 1, 2 and so on.
    assert model.trained.inputs.time_steps == pytest.approx((3, 8))
    said = (
        r"the DataFrame, column second: the typical time between two rows is {seen}, but in "
        r"meta-training it was 3 to 8, .*; give the times in the unit of the training data"
    )
    model.adapt(seconds).save(tmp_path / "adapted")
    adapted = raymeta.load_adapted(tmp_path / "adapted")
    for factor in (1000, 1 / 60):
        other = seconds.assign(second=seconds["second"] * factor)
        seen = "[5-7]000" if factor > 1 else r"0\.[01]\d*"
        for ask in (model.adapt, adapted.predict, adapted.predict_proba):
            with pytest.warns(DataWarning, match=said.format(seen=seen)):
                ask(other)
        # Networks of runs that did not keep it go on as they did.
        with_time_steps(model, None).adapt(other).predict(other)
    # Recordings may be a few times as slow as those of training, and one row has no steps.
    slower = seconds.assign(second=seconds["second"] * 10)
    adapted.predict(slower)
    adapted.predict(seconds.drop_duplicates("recording"))


def test_the_command_line_warns_of_times_in_another_unit(gaps_run: GapsRun, run_cli: Cli) -> None:
    run = gaps_run("refuse", True)
    seconds = support(run)
    seconds.to_csv("s.csv", index=False)
    for name in ("support-ms.csv", "query-ms.csv"):  # Python tells a warning once
        seconds.assign(second=seconds["second"] * 1000).to_csv(name, index=False)
    adapt = ("adapt", str(run.path), "-o", "a.raymeta", "--support")
    for ask in ((*adapt, "support-ms.csv"), (*adapt, "s.csv"), ("predict", "a.raymeta", "s.csv")):
        code, _, error = run_cli(*ask)
        assert code == 0
        warned = "warning: support-ms.csv, column second: the typical time" in error
        assert warned == ("support-ms.csv" in ask), error
        assert not warned or "give the times in the unit of the training data" in error
    code, _, error = run_cli("predict", "a.raymeta", "query-ms.csv")
    assert code == 0
    assert "warning: query-ms.csv, column second: the typical time between two rows is" in error


def test_times_that_are_not_read_may_be_of_any_kind(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    frame = pd.DataFrame(
        {
            "recording": [1, 1, 2, 2],
            "second": pd.to_datetime(["2026-01-31", "2026-02-01"] * 2),
            "volt": [1.0, 2.0, 30.0, 40.0],
            "ampere": 0.5,
        }
    )
    found = model.adapt(frame, ["low", "high"]).predict(frame)
    assert found.tolist() == ["low", "high"]


def test_arrays_have_no_times(gaps_run: GapsRun) -> None:
    adapted = adapted_of(gaps_run("mask", False))
    with pytest.raises(DataError, match="a table with the column 'second'"):
        adapted.predict([np.ones((4, 2))])
    with pytest.raises(DataError, match="stream"):
        adapted.stream()


def test_arrays_may_have_gaps_where_steps_are_even(gaps_run: GapsRun) -> None:
    run = gaps_run("mask", False, timed=False)
    adapted, frame = adapted_of(run), support(run)
    arrays = [own[["volt", "ampere"]].to_numpy() for _, own in frame.groupby("recording")]
    assert any(np.isnan(array).any() for array in arrays)
    np.testing.assert_allclose(
        adapted.predict_proba(arrays), adapted.predict_proba(frame.drop(columns="kind"))
    )
    arrays[0][0, 1] = np.inf
    with pytest.raises(DataError, match="inf is not a finite number"):
        adapted.predict(arrays)


def test_what_training_refuses_is_refused_in_use(gaps_run: GapsRun) -> None:
    run = gaps_run("interpolate", False)
    frame = support(run).assign(volt=np.nan)
    with pytest.raises(DataError, match="column volt has no number in this sequence"):
        raymeta.load(str(run.path)).adapt(frame)
    plain = gaps_run("refuse", True)
    with pytest.raises(DataError, match="the value is missing"):
        adapted_of(plain).predict(gaps_of(support(plain)).drop(columns="kind"))
