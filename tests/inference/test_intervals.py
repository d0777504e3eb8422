"""Prediction intervals have their stated coverage over new tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import raymeta
from raymeta.errors import DataError
from raymeta.evaluation.calibration import (
    CALIBRATION_FILE,
    Calibration,
    interval_coverage,
    keep_calibrations,
)
from raymeta.evaluation.controls.contract import Network
from raymeta.inference.examples import RawExamples
from raymeta.inference.model import Model
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import Cli, RunOf, make_run

# Numbers are small; shares are over this many waves of the meta-test.
NUM_WAVES = 300


def calibrated(folder: Path, *overrides: str, seeds: int = 1) -> Run:
    """Makes a run of waves as the meta-test leaves it."""
    run = make_run(folder, "sinusoid", *overrides, seeds=seeds)
    keep_calibrations(run, networks_of(run))
    return run


def networks_of(run: Run) -> list[Network]:
    """Returns a run's networks with their tasks."""
    model, tasks = raymeta.load(str(run.path)), load_tasks(run.best_experiment())
    return [Network(tasks, model.trained.recipe, one) for one in model.networks]


def covered(model: Model, run: Run, coverage: float) -> tuple[float, np.ndarray]:
    """Returns the share of the meta-test's queries within their intervals, and the widths."""
    tasks, found, widths = load_tasks(run.best_experiment()), [], []
    episodes = [tasks.episode("test", number) for number in range(NUM_WAVES)]
    many = model.adapt_many([(e.support_x.astype(float), e.support_y) for e in episodes])
    for episode, adapted in zip(episodes, many, strict=True):
        lower, upper = adapted.predict_interval(episode.query_x.astype(float), coverage=coverage)
        y = episode.query_y[:, 0]
        found.append(((lower <= y) & (y <= upper)).mean())
        widths.append(upper - lower)
    return float(np.mean(found)), np.concatenate(widths)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["alpaca", "maml"])
def test_intervals_cover_new_waves_as_often_as_they_say(tmp_path: Path, learner: str) -> None:
    seeds = 2 if learner == "alpaca" else 1
    run = calibrated(tmp_path, f"learner={learner}", seeds=seeds)
    model = raymeta.load(str(run.path))
    assert len(model.calibration.residuals or ()) == 1
    shares = {}
    for coverage in (0.5, 0.9):
        shares[coverage], widths = covered(model, run, coverage)
        # Over waves and over the hundred waves that the quantile is of: about 0.03 each.
        assert shares[coverage] == pytest.approx(coverage, abs=0.1)
        assert (np.ptp(widths) > 1e-3) == (learner == "alpaca")  # what it expects to err differs
        judged = interval_coverage(networks_of(run), model.calibration, NUM_WAVES, coverage)
        assert judged is not None
        assert judged.found.mean == pytest.approx(shares[coverage])
        assert judged.num_tasks == 100
        of_them = [judged.half_width, judged.narrowest, judged.widest]
        seen = [widths.mean() / 2, widths.min() / 2, widths.max() / 2]
        np.testing.assert_allclose(of_them, seen, rtol=1e-4)
    assert shares[0.5] < shares[0.9]
    assert interval_coverage(networks_of(run), model.calibration, 10, 0.999) is None


def test_new_tasks_are_covered_though_some_are_noisy() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        residuals = np.abs(rng.normal(size=(2, 21, 8))) * rng.gamma(1, size=(2, 21, 1))
        rows = tuple(tuple(map(tuple, one[:20].tolist())) for one in residuals)
        radius = Calibration(residuals=rows).radius(0.9)
        assert radius.shape == (2,)
        found.append((residuals[:, 20] <= radius[:, None]).mean())
    error = 3 * np.std(found) / np.sqrt(len(found))
    assert 0.9 - error < np.mean(found) < 0.9 + 1 / 20 + error
    assert Calibration(residuals=rows).radius(0.99).tolist() == [np.inf, np.inf]


def test_residuals_are_in_units_of_what_the_learner_expects(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=alpaca", seeds=2).path))
    rows = ((tuple(float(n) for n in range(1, 100)),),)
    model = replace(model, calibration=Calibration(residuals=rows))
    x = np.linspace(-5, 5, 10)[:, None]
    adapted = model.adapt(x, np.sin(x[:, 0]))
    lower, upper = adapted.predict_interval(x, coverage=0.25)  # half the weight is at infinity
    raw = torch.from_numpy(x)[None, :, None]
    query = replace(adapted.trained.examples(_raw(x), torch.zeros(10)), x=raw)
    learner, spec = adapted.trained.recipe.learner, adapted.trained.recipe.spec
    means, variances = [], []
    for params in adapted.params:
        means.append(learner.adapted_outputs(spec, params, query)[0, :, 0].numpy())
        scale = learner.predictive_scale(spec, params, query)
        assert scale is not None
        variances.append(scale[0, :, 0].numpy() ** 2)
    deviation = np.sqrt(np.mean(variances, axis=0) + np.var(means, axis=0))
    np.testing.assert_allclose(upper - lower, 2 * 50 * deviation, rtol=1e-5)
    np.testing.assert_allclose((upper + lower) / 2, np.mean(means, axis=0), rtol=1e-6, atol=1e-6)
    assert np.isinf(adapted.predict_interval(x, coverage=0.9)[0]).all()


def _raw(x: np.ndarray) -> RawExamples:
    return RawExamples(list(x[:, None]), [""] * len(x))


def test_the_predict_command_writes_interval_ends(
    tmp_path: Path, run_cli: Cli, run_of: RunOf
) -> None:
    run = calibrated(tmp_path, "learner=ridge")
    x = np.linspace(-4, 4, 10)
    pd.DataFrame({"x": x, "y": np.sin(x)}).to_csv(tmp_path / "ten.csv", index=False)
    assert run_cli("adapt", str(run.path), "--support", "ten.csv", "-o", "wave.raymeta")[0] == 0
    code, out, _ = run_cli("predict", "wave.raymeta", "ten.csv", "--coverage", "0.8")
    assert code == 0
    (tmp_path / "out.csv").write_text(out)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table) == ["prediction", "lower", "upper"]
    adapted = raymeta.load_adapted(tmp_path / "wave.raymeta")
    lower, upper = adapted.predict_interval(x[:, None], coverage=0.8)
    np.testing.assert_allclose(table.lower, lower)
    np.testing.assert_allclose(table.upper, upper)
    code, _, error = run_cli("predict", "wave.raymeta", "ten.csv", "--coverage", "80")
    assert code != 0
    assert "coverage must be > 0 and < 1, but got 80" in " ".join(error.split())

    classes = raymeta.load(str(run_of("table", "learner=prototypes").path))
    known = replace(classes, calibration=Calibration(2.0, ((0.2, 0.4), (0.1, 0.6))))
    signals = [50 * np.random.default_rng(n).normal(size=(6, 2)) for n in range(6)]
    two = known.adapt(signals, list("aabbcc"))
    two.save(tmp_path / "classes.raymeta")
    rows = ["recording,second,volt,ampere"]
    rows += [f"{n},{t},{v},{a}" for n, one in enumerate(signals) for t, (v, a) in enumerate(one)]
    (tmp_path / "new.csv").write_text("\n".join(rows))
    code, out, _ = run_cli("predict", "classes.raymeta", "new.csv", "--coverage", "0.5")
    assert code == 0
    (tmp_path / "sets.csv").write_text(out)
    table = pd.read_csv(tmp_path / "sets.csv")
    for row, labels in zip(table.itertuples(), two.predict_set(signals, coverage=0.5), strict=True):
        assert [k for k in "abc" if getattr(row, f"in_set_{k}")] == labels.tolist()


def test_what_has_no_intervals_says_so(run_of: RunOf) -> None:
    x = np.linspace(-4, 4, 10)[:, None]
    waves = raymeta.load(str(run_of("sinusoid", "learner=ridge").path)).adapt(x, x[:, 0])
    with pytest.raises(DataError, match=r"no prediction intervals: .* `raymeta evaluate RUN`"):
        waves.predict_interval(x)
    with pytest.raises(DataError, match="a regression has no prediction sets; use predict_int"):
        waves.predict_set(x)
    signals = [np.full((3, 2), n) for n in range(6)]
    classes = raymeta.load(str(run_of("table", "learner=prototypes").path))
    with pytest.raises(DataError, match="classes have no prediction intervals; use predict_set"):
        classes.adapt(signals, list("aabbcc")).predict_interval(signals)


def test_calibrations_are_kept_and_read_with_residuals(tmp_path: Path) -> None:
    known = Calibration(residuals=(((0.5, np.inf), (2.0, 0.0)),))
    assert Calibration.from_json(known.to_json()) == known
    assert Calibration.from_json({"temperature": 1.0, "misfits": None}) == Calibration()
    run = calibrated(tmp_path, "learner=ridge")
    model = raymeta.load(str(run.path))
    assert (Path(str(run.path)) / CALIBRATION_FILE).is_file()
    x = np.linspace(-4, 4, 10)[:, None]
    model.adapt(x, x[:, 0]).save(tmp_path / "one")
    assert raymeta.load_adapted(tmp_path / "one").calibration == model.calibration
