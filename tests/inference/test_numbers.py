"""Networks of standardised numbers in use: inputs and answers are in the data's own units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import raymeta
from raymeta.errors import DataError
from raymeta.evaluation.calibration import Calibration, interval_coverage
from raymeta.evaluation.controls.contract import Network
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import Cli, make_run
from tests.tasks.test_regression import DOSES, LIVES, doses, pumps


def numbers_run(folder: Path, text: str, table: pd.DataFrame, *overrides: str) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "data").mkdir()
    table.to_csv(folder / "data" / "rows.csv", index=False)
    (folder / "own.yaml").write_text(text.format(folder=folder / "data"))
    return make_run(folder, str(folder / "own.yaml"), *overrides)


@pytest.fixture(scope="module", params=["ridge", "maml", "alpaca"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("numbers") / "run"
    return numbers_run(folder, DOSES, doses(), f"learner={request.param}")


@pytest.fixture
def model(run: Run) -> Model:
    return raymeta.load(str(run.path))


def of_patient(number: int) -> pd.DataFrame:
    table = doses()
    return table[table["patient"] == f"patient {number}"]


@pytest.fixture
def adapted(model: Model) -> Adapted:
    table = of_patient(0)
    return model.adapt(table[table["visit"] < "p0v3"])


def queries() -> pd.DataFrame:
    table = of_patient(0)
    return table[table["visit"] >= "p0v3"].drop(columns="dose")


@pytest.mark.slow
def test_answers_are_those_of_the_meta_test_in_own_units(run: Run, model: Model) -> None:
    tasks = load_tasks(run.experiment())
    scale, recipe = tasks.target_scale, model.trained.recipe
    assert scale is not None
    table = doses()
    inputs = model.trained.inputs
    known = {}
    for visit, own in table.groupby("visit"):
        (x,) = inputs.prepare([own[["pulse"]].to_numpy()], [str(visit)])
        known[x.tobytes()] = own
    for index in range(5):
        episode = tasks.episode("test", index)
        sides = []
        for x, lengths in (
            (episode.support_x, episode.support_lengths),
            (episode.query_x, episode.query_lengths),
        ):
            assert lengths is not None
            sides.append([known[one[:n].tobytes()] for one, n in zip(x, lengths, strict=True)])
        support, query = sides
        adapted = model.adapt(
            [own[["pulse"]].to_numpy() for own in support],
            [own["dose"].iloc[-1] for own in support],
        )
        batch = tasks.episodes("test", [index]).to(torch.device("cpu"), recipe.dtype)
        *_, last = recipe.learner.query_outputs(
            recipe.spec,
            recipe.problem,
            model.networks[0],
            batch.support,
            batch.query,
            recipe.num_steps,
        )
        wanted = scale.mean + scale.deviation * last[0, :, 0].numpy()
        arrays = [own[["pulse"]].to_numpy() for own in query]
        np.testing.assert_allclose(adapted.predict(arrays), wanted, rtol=1e-5)
        truth = [own["dose"].iloc[-1] for own in query]
        assert adapted.score(arrays, truth) == pytest.approx(
            np.square(adapted.predict(arrays) - truth).mean()
        )


def test_a_table_says_the_same_as_arrays(adapted: Adapted, model: Model, run_cli: Cli) -> None:
    table = queries()
    arrays = [own[["pulse"]].to_numpy() for _, own in table.groupby("visit")]
    np.testing.assert_allclose(adapted.predict(table), adapted.predict(arrays))
    of_patient(0).query("visit < 'p0v3'").to_csv("five.csv", index=False)
    table.to_csv("new.csv", index=False)
    adapted.save("direct")
    assert run_cli("predict", "direct", "new.csv", "-o", "out.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv("out.csv")["prediction"], adapted.predict(table))


def in_grams(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(dose=1000 * table["dose"] + 7)


@pytest.mark.slow
def test_every_output_is_in_the_units_of_the_target(run: Run, model: Model, tmp_path: Path) -> None:
    """Other units of the target give the same answers in those units."""
    learner = f"learner={run.experiment().learner}"
    other = numbers_run(tmp_path / "run", DOSES, in_grams(doses()), learner)
    grams = raymeta.load(str(other.path))
    support, x = of_patient(0).query("visit < 'p0v3'"), queries()
    ours, theirs = model.adapt(support), grams.adapt(in_grams(support))
    np.testing.assert_allclose(theirs.predict(x), 1000 * ours.predict(x) + 7, rtol=1e-4)
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-2}
    first, second = ours.attribute(x), theirs.attribute(x)
    np.testing.assert_allclose(second.values, 1000 * first.values, **near)  # noqa: PD011
    np.testing.assert_allclose(first.outputs, ours.predict(x), rtol=1e-4)
    assert np.abs(first.residuals).max() < 1e-4
    one, another = model.influence(support, x=x), grams.influence(in_grams(support), x=x)
    np.testing.assert_allclose(one.outputs, ours.predict(x), rtol=1e-4)
    np.testing.assert_allclose(another.changes, 1000 * one.changes, **near)


def test_intervals_are_in_own_units(run: Run, adapted: Adapted) -> None:
    residuals = (((0.5,) * 4,) * 20,)  # deviations of meta-training
    calibrated = replace(adapted, calibration=Calibration(residuals=residuals))
    lower, upper = calibrated.predict_interval(queries(), coverage=0.8)
    scale = load_tasks(run.experiment()).target_scale
    assert scale is not None
    if run.experiment().learner == "alpaca":  # whose own deviations it is in
        assert (upper > lower).all()
    else:
        np.testing.assert_allclose(upper - lower, scale.deviation, rtol=1e-9)
        tasks, params = load_tasks(run.experiment()), raymeta.load(str(run.path)).networks[0]
        network = Network(tasks, calibrated.trained.recipe, params)
        judged = interval_coverage([network], calibrated.calibration, 5, 0.8)
        assert judged is not None
        assert judged.half_width == pytest.approx(scale.deviation / 2)
        assert judged.unit == f"the unit of {scale.name}"
    np.testing.assert_allclose((lower + upper) / 2, calibrated.predict(queries()), rtol=1e-9)


def test_a_stream_answers_in_own_units(adapted: Adapted) -> None:
    x = next(own[["pulse"]].to_numpy() for _, own in queries().groupby("visit"))
    stream = adapted.stream()
    for step in x:
        last = stream.step(step)
    np.testing.assert_allclose(last[0], adapted.predict([x]), rtol=1e-5)


def test_graphs_take_and_give_numbers_in_own_units(
    adapted: Adapted, model: Model, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")

    def answers(file: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        session = onnxruntime.InferenceSession(
            str(tmp_path / file), providers=["CPUExecutionProvider"]
        )
        return session.run(["prediction"], inputs)[0]

    def padded(table: pd.DataFrame, prefix: str = "") -> dict[str, np.ndarray]:
        xs = [own[["pulse"]].to_numpy(dtype=float) for _, own in table.groupby("visit")]
        full = np.zeros((len(xs), max(map(len, xs)), 1))
        for row, x in zip(full, xs, strict=True):
            row[: len(x)] = x
        return {f"{prefix}x": full, f"{prefix}lengths": np.array([len(x) for x in xs])}

    wanted = adapted.predict(queries())[:, None]
    adapted.export(tmp_path / "a.onnx")
    np.testing.assert_allclose(answers("a.onnx", padded(queries())), wanted, rtol=1e-5)
    model.export(tmp_path / "m.onnx")
    known = of_patient(0)
    known = known[known["visit"] < "p0v3"]
    doses_of = known.groupby("visit")["dose"].last().to_numpy(dtype=np.float32)[:, None]
    inputs = {**padded(known, "support_"), **padded(queries()), "support_y": doses_of}
    np.testing.assert_allclose(answers("m.onnx", inputs), wanted, rtol=1e-4)
    stream = adapted.stream(1)
    adapted.export(tmp_path / "s.onnx", stream=True)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]
    )
    state = {
        one.name: np.zeros([1 if isinstance(n, str) else n for n in one.shape], np.float32)
        for one in session.get_inputs()[1:]
    }
    x = padded(queries())["x"][:1, 0]
    found = session.run(["prediction"], {"x": x, **state})[0]
    np.testing.assert_allclose(found, stream.step(x), rtol=1e-5)


def test_remaining_lives_are_given_beside_the_examples(tmp_path: Path, run_cli: Cli) -> None:
    run = numbers_run(tmp_path / "run", LIVES, pumps(), "learner=ridge")
    model = raymeta.load(str(run.path))
    with pytest.raises(DataError, match=r"give them beside the examples, as model\.adapt"):
        model.adapt(pumps())
    file = tmp_path / "five.csv"
    pumps().to_csv(file, index=False)
    code, _, error = run_cli("adapt", str(run.path), "--support", str(file), "-o", "a.raymeta")
    assert code == 1
    assert "give them beside the examples, as model.adapt(x, y)" in error.replace("\n", " ")
    x: list[Any] = [
        own[["heat", "noise"]].to_numpy()[-5 - left :][:5]
        for left, (_, own) in enumerate(pumps().groupby("pump"))
        if left < 8
    ]
    adapted = model.adapt(x, np.arange(8) * 2.0)
    found = adapted.predict(x)
    assert found.shape == (8,)
    assert np.isfinite(found).all()
    with pytest.raises(DataError, match=r"has 6 time steps, but the network was trained on 5"):
        adapted.predict([np.ones((6, 2))])
