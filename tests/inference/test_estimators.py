"""The estimators keep scikit-learn's rules, except for those named here."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import raymeta
from raymeta.errors import DataError
from tests.inference.conftest import RunOf
from tests.inference.test_numbers import numbers_run
from tests.tasks.test_regression import DOSES, doses

# Check -> why it cannot hold.
FRAMES = "a DataFrame has one row a time step, not an example"
EXCEPTIONS = {"check_classifier_data_not_an_array": FRAMES}
REGRESSOR_EXCEPTIONS = {"check_regressor_data_not_an_array": FRAMES}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_scikit_learns_own_checks_hold(run_of: RunOf) -> None:
    run = str(run_of("table-1", "learner=prototypes").path)
    results = check_estimator(
        raymeta.FewShotClassifier(run), expected_failed_checks=EXCEPTIONS, on_fail=None
    )
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == EXCEPTIONS.keys()
    assert sum(r["status"] == "passed" for r in results) > 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_scikit_learns_own_checks_of_regressors_hold(tmp_path: Path) -> None:
    run = numbers_run(tmp_path / "run", DOSES, doses(), "learner=ridge")
    results = check_estimator(
        raymeta.FewShotRegressor(str(run.path)),
        expected_failed_checks=REGRESSOR_EXCEPTIONS,
        on_fail=None,
    )
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    found = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert found == REGRESSOR_EXCEPTIONS.keys()
    assert sum(r["status"] == "passed" for r in results) > 40


def test_the_estimators_promise_scikit_learn_no_score() -> None:
    classifier = get_tags(raymeta.FewShotClassifier("run"))
    regressor = get_tags(raymeta.FewShotRegressor("run"))
    assert classifier.classifier_tags is not None
    assert regressor.regressor_tags is not None
    assert classifier.classifier_tags.poor_score
    assert regressor.regressor_tags.poor_score
    assert classifier.input_tags.three_d_array
    assert regressor.target_tags.required


def signals(num: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Makes high and low signals of different lengths, and their classes."""
    rng = np.random.default_rng(0)
    y = np.arange(num) % 2
    x = [rng.normal(4000 * k - 2000, 100, (rng.integers(4, 9), 2)) for k in y]
    return x, np.where(y, "high", "low")


def test_an_estimator_adapts_as_the_model_does_and_survives_clone_and_pickle(run_of: RunOf) -> None:
    run = str(run_of("table", "learner=prototypes", seeds=2).path)
    x, y = signals(8)
    estimator = raymeta.FewShotClassifier(run).fit(x, y)
    adapted = raymeta.load(run).adapt(x, y)
    np.testing.assert_array_equal(estimator.predict_proba(x), adapted.predict_proba(x))
    np.testing.assert_array_equal(estimator.predict(x), adapted.predict(x))
    assert estimator.score(x, y) == adapted.score(x, y)
    assert estimator.classes_.tolist() == ["high", "low"]
    again = pickle.loads(pickle.dumps(estimator))  # noqa: S301  (our own)
    np.testing.assert_array_equal(again.predict_proba(x), adapted.predict_proba(x))
    assert clone(estimator).get_params() == {
        "run": run,
        "ensemble": True,
        "axes": None,
        "runs_dir": "runs",
    }
    swapped = [one.T for one in x]
    other = clone(estimator).set_params(axes="NCT").fit(swapped, y)
    np.testing.assert_array_equal(other.predict_proba(swapped), adapted.predict_proba(x))


def objects(x: list[np.ndarray]) -> np.ndarray:
    found = np.empty(len(x), dtype=object)
    found[:] = x
    return found


def test_ragged_signals_and_arrays_of_objects_are_taken_as_the_model_takes_them(
    run_of: RunOf,
) -> None:
    run = str(run_of("table-1", "learner=prototypes").path)
    x, y = signals(8)
    one = [signal[:, 0] for signal in x]
    assert len({len(signal) for signal in one}) > 1
    wanted = raymeta.load(run).adapt(one, y).predict_proba(one)
    columns = [signal[:, None] for signal in one]
    for form in (one, [s.tolist() for s in one], objects(one), columns, objects(columns)):
        estimator = raymeta.FewShotClassifier(run).fit(form, y)
        np.testing.assert_array_equal(estimator.predict_proba(form), wanted)
    estimator = raymeta.FewShotClassifier(run)
    assert cross_val_score(estimator, one, y, cv=2).shape == (2,)
    assert cross_val_score(estimator, objects(one), y, cv=2).shape == (2,)
    texts = raymeta.FewShotClassifier(
        str(run_of("sentiment", "learner=maml", "tasks.num_shots=1").path)
    )
    words = np.array(["good", "bad"], dtype=object)
    assert texts.fit(words, [1, 0]).predict(words).shape == (2,)


@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
def test_pipelines_cross_validation_and_searches_take_it(run_of: RunOf) -> None:
    run = str(run_of("table", "learner=prototypes", seeds=2).path)
    x, y = signals(12)
    classifier = raymeta.FewShotClassifier(run)
    pipeline = make_pipeline(FunctionTransformer(lambda x: [2 * one for one in x]), classifier)
    scores = cross_val_score(pipeline, x, y, cv=3)
    assert scores.mean() == 1.0  # these signals differ much
    search = GridSearchCV(classifier, {"ensemble": [True, False]}, cv=2).fit(x, y)
    assert search.best_score_ == 1.0


def test_a_frame_and_texts_are_taken_as_they_are(run_of: RunOf) -> None:
    frame = pd.DataFrame(
        {
            "recording": [1, 1, 2, 2, 3, 3, 4, 4],
            "second": [1, 2] * 4,
            "kind": [7, 7, 8, 8] * 2,
            "volt": np.arange(8.0) * 100,
            "ampere": 0.0,
        }
    )
    estimator = raymeta.FewShotClassifier(str(run_of("table", "learner=prototypes").path))
    assert estimator.fit(frame).classes_.tolist() == [7, 8]
    assert estimator.predict(frame).shape == (4,)
    texts = raymeta.FewShotClassifier(
        str(run_of("sentiment", "learner=maml", "tasks.num_shots=1").path)
    ).fit(["good", "bad"], [1.0, 0.0])
    assert texts.predict(["good", "bad"]).dtype == np.float64


def test_the_regressor_predicts_points_of_a_wave(run_of: RunOf) -> None:
    run = str(run_of("sinusoid", "learner=ridge").path)
    x = np.linspace(-5, 5, 20)[:, None]
    y = np.sin(x[:, 0])
    estimator = raymeta.FewShotRegressor(run).fit(x, y)
    found = raymeta.load(run).adapt(x, y).predict(x)
    np.testing.assert_array_equal(estimator.predict(x), found)
    share = np.square(found - y).sum() / np.square(y - y.mean()).sum()
    assert estimator.score(x, y) == pytest.approx(1 - share)
    assert cross_val_score(estimator, x, y, cv=4).shape == (4,)
    with pytest.raises(DataError, match="trained for regression, but this estimator is for class"):
        raymeta.FewShotClassifier(run).fit(x, np.arange(20) % 2)
    with pytest.raises(DataError, match="requires y"):
        raymeta.FewShotRegressor(run).fit(x)
