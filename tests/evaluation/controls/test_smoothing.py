"""ETS and Theta continue series of their kind, and report what they lack."""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np
import pytest

from raymeta.evaluation import controls
from raymeta.evaluation.controls.smoothing import ExponentialSmoothing, Theta, _deviation
from raymeta.evaluation.meta_test import meta_test

SEASON = np.tile([10.0, 4.0, 7.0, 1.0], 6)


def test_ets_continues_a_season_and_a_trend():
    ets = ExponentialSmoothing()
    noise = 1e-3 * np.random.default_rng(0).normal(size=24)
    past = SEASON + 0.5 * np.arange(24) + noise
    found, _ = ets.fitted(past, 4, 4, "trend, additive season")
    np.testing.assert_allclose(found, SEASON[:4] + 0.5 * np.arange(24, 28), atol=0.05)
    flat, _ = ets.fitted(noise + 3, 4, 4, "no trend, no season")
    np.testing.assert_allclose(flat, 3, atol=0.01)


def test_theta_halves_a_trend_and_keeps_the_season():
    """Hyndman & Billah 2003: exponential smoothing with half the slope of the line as drift."""
    theta = Theta()
    noise = 1e-2 * np.random.default_rng(0).normal(size=40)
    past = 5 + 2.0 * np.arange(40) + noise
    found, _ = theta.fitted(past, 1, 3, "no season")
    np.testing.assert_allclose(np.diff(found), 1.0, atol=0.01)
    seasonal, _ = theta.fitted(SEASON + 20 + noise[:24], 4, 4, "a season")
    np.testing.assert_allclose(seasonal, SEASON[:4] + 20, atol=0.1)


@pytest.mark.parametrize("trend", [None, "add", "damped"])
@pytest.mark.parametrize("seasonal", [None, "add"])
def test_the_deviation_of_ets_is_that_of_simulated_futures(trend, seasonal):
    """statsmodels simulates 20,000 futures of the model, with its own estimate of the noise."""
    from statsmodels.tsa import holtwinters  # noqa: PLC0415

    past = SEASON + np.random.default_rng(4).normal(size=24)
    settings = {"smoothing_level": 0.5}
    settings |= {"smoothing_trend": 0.2} if trend else {}
    settings |= {"damping_trend": 0.8} if trend == "damped" else {}
    settings |= {"smoothing_seasonal": 0.4} if seasonal else {}
    fit = holtwinters.ExponentialSmoothing(
        past,
        trend=trend and "add",
        damped_trend=trend == "damped",
        seasonal=seasonal,
        seasonal_periods=4 if seasonal else None,
        initialization_method="estimated",
    ).fit(**settings)
    deviation = _deviation(fit, 4, 9)
    futures = fit.simulate(9, repetitions=20_000, error="add", rng=np.random.RandomState(1))
    np.testing.assert_allclose(deviation, futures.std(axis=1), rtol=0.03)
    assert deviation[-1] > 1.5 * deviation[0]


def test_the_deviation_of_theta_is_half_the_interval_of_statsmodels():
    from statsmodels.tsa.forecasting.theta import ThetaModel  # noqa: PLC0415

    past = SEASON + np.random.default_rng(0).normal(size=24)
    found, deviation = Theta().fitted(past, 4, 5, "a season")
    ends = ThetaModel(past, period=4).fit().prediction_intervals(5, alpha=0.1).to_numpy()
    normal = NormalDist().inv_cdf(0.95)
    np.testing.assert_allclose(ends[:, 1], found + normal * deviation, rtol=1e-6)


def test_forms_with_a_season_need_two_of_them():
    for control in (ExponentialSmoothing(), Theta()):
        assert len(control.forms(24, 12)) > len(control.forms(23, 12)) == len(control.forms(24, 1))


def test_a_past_without_a_fit_gets_the_last_value_and_is_counted():
    pasts = np.array([[1.0, np.inf, 2.0, 3.0], [1.0, 2.0, 1.5, 2.5]])
    without_fit: list[np.ndarray] = []
    forecast = ExponentialSmoothing()._forecast("no trend, no season", without_fit)
    found, deviation = forecast(pasts, 1, 2)
    assert deviation.shape == found.shape
    assert found[0].tolist() == [3, 3]
    assert np.isfinite(found[1]).all()
    assert len(without_fit) == 1


def test_the_report_says_of_how_many_pasts_a_method_has_no_fit(monkeypatch, untrained):
    def none(*_):
        raise ValueError("no fit")

    monkeypatch.setattr(ExponentialSmoothing, "fitted", none)
    monkeypatch.setattr(controls, "CONTROLS", (ExponentialSmoothing(),))
    result = meta_test(untrained("employment"), {}, label="tuned", num_episodes=3)
    assert result.rows[1].detail.endswith("the last value for 3 pasts without a fit")


def test_without_statsmodels_they_are_left_out_and_the_extra_is_named(monkeypatch, untrained):
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    monkeypatch.setattr(controls, "CONTROLS", (ExponentialSmoothing(), Theta()))
    result = meta_test(untrained("employment"), {}, label="tuned", num_episodes=3)
    assert [row.name for row in result.rows] == ["tuned"]
    assert result.note.count("pip install 'raymeta[forecast]'") == 2


@pytest.mark.parametrize("control", [ExponentialSmoothing(), Theta()])
def test_with_statsmodels_nothing_is_lacking(control):
    assert control.lacks() is None
