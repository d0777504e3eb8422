"""Controls for forecasts from statsmodels: exponential smoothing (ETS) and the Theta method.

Each is fitted to the past of every query anew (Hyndman et al. 2008, "Forecasting with Exponential
Smoothing"; Assimakopoulos & Nikolopoulos 2000, "The theta model").  Its form is chosen on
meta-validation: on pasts of two seasons the corrected information criterion, by which AutoETS
chooses, often leaves the season out.  Where quantiles are asked for, they are those of the normal
prediction intervals of each method.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from contextlib import suppress
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from raymeta.episodes import TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.evaluation.controls.naive import (
    Forecast,
    judge_forecast,
    last_value,
    network_units,
)

_OUTSIDE = 2 * NormalDist().cdf(-1)  # of the interval of one standard deviation


class _Fitted(Control):
    """A method that is fitted to each past by itself."""

    problems = frozenset({"forecast", "quantiles"})

    def lacks(self) -> str | None:
        """Names statsmodels if it is missing."""
        try:
            import statsmodels  # noqa: F401, PLC0415  (an extra)
        except ImportError:
            return "statsmodels is not installed: pip install 'raymeta[forecast]'"
        return None

    @abstractmethod
    def forms(self, steps: int, season: int) -> list[str]:
        """The forms that can be fitted to a past of this length."""

    @abstractmethod
    def fitted(
        self, past: np.ndarray, season: int, horizon: int, form: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fits one past `[P]`; the forecast and its standard deviation, `[H]` each."""

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the form on meta-validation; scores the meta-test with it."""
        tasks, problem = contest.own.tasks, contest.own.recipe.problem
        count = contract.NUM_CHOICE_EPISODES
        targets = tasks.episodes("val", range(count)).query.y.double()
        form = min(
            self.forms(*_steps_and_season(tasks)),
            key=lambda form: float(
                problem.query_scores(
                    network_units(tasks, problem, "val", count, self._forecast(form)), targets
                ).mean()
            ),
        )
        without_fit: list[np.ndarray] = []
        found = judge_forecast(contest, self._forecast(form, without_fit), form)
        if without_fit:
            told = f"{form}; the last value for {len(without_fit)} pasts without a fit"
            found = replace(found, detail=told)
        return found

    def _forecast(self, form: str, without_fit: list[np.ndarray] | None = None) -> Forecast:
        """Forecasts with a form; pasts that it cannot be fitted to join `without_fit`."""

        def sound(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
            found = self._tried(past, season, horizon, form)
            if np.isfinite(found).all():
                return found
            if without_fit is not None:
                without_fit.append(past)
            return np.stack(last_value(past, season, horizon))

        def forecast(pasts: np.ndarray, season: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
            found = np.apply_along_axis(sound, -1, pasts, season, horizon)  # [..., 2, H]
            return found[..., 0, :], found[..., 1, :]

        return forecast

    def _tried(self, past: np.ndarray, season: int, horizon: int, form: str) -> np.ndarray:
        """Tries a forecast, with its deviation `[2, H]`; NaN if the fit fails."""
        # For one, a past that changes in one season only has no fit.
        no_fit = suppress(ValueError, ArithmeticError, np.linalg.LinAlgError)
        with warnings.catch_warnings(), np.errstate(all="ignore"), no_fit:
            warnings.simplefilter("ignore")  # about fits that end at a bound
            return np.stack(self.fitted(past, season, horizon, form)).astype(np.float64)
        return np.full((2, horizon), np.nan)


def _steps_and_season(tasks: TaskDistribution) -> tuple[int, int]:
    assert tasks.season is not None, "forecasts have a season"
    return tasks.query_past("val", 1).values.shape[-1], tasks.season


class ExponentialSmoothing(_Fitted):
    """ETS with additive parts: level, with or without a trend, damped or not, and a season."""

    name = "ets"
    label = "exponential smoothing (ETS)"

    _TRENDS = ("no trend", "damped trend", "trend")
    _SEASONAL = "additive season"

    def forms(self, steps: int, season: int) -> list[str]:
        """Lists all trends, and with each a season if the past holds at least two seasons."""
        seasons = ["no season", *([self._SEASONAL] if 1 < season <= steps // 2 else [])]
        return [f"{trend}, {own}" for own in seasons for trend in self._TRENDS]

    def fitted(
        self, past: np.ndarray, season: int, horizon: int, form: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fits the parameters and the initial states by maximum likelihood."""
        from statsmodels.tsa import holtwinters  # noqa: PLC0415  (an extra)

        trend, own = form.split(", ")
        is_seasonal = own == self._SEASONAL
        model = holtwinters.ExponentialSmoothing(
            past,
            trend=None if trend == "no trend" else "add",
            damped_trend=trend == "damped trend",
            seasonal="add" if is_seasonal else None,
            seasonal_periods=season if is_seasonal else None,
            initialization_method="estimated",
        )
        fit = model.fit()
        return np.asarray(fit.forecast(horizon)), _deviation(fit, season, horizon)


def _deviation(fit: Any, season: int, horizon: int) -> np.ndarray:
    """The standard deviation of an additive fit's errors h = 1 … H steps ahead.

    It is σ² (1 + Σ_{j < h} c_j²) with c_j = α + β (φ + … + φ^j) + γ [m divides j] (Hyndman et al.
    2008, table 6.2), statsmodels' β; σ² is the sum of squares over steps less parameters.
    """
    alpha, beta, gamma, damping = (
        np.nan_to_num(float(fit.params[name] or 0.0))
        for name in ("smoothing_level", "smoothing_trend", "smoothing_seasonal", "damping_trend")
    )
    ahead = np.arange(1, horizon)
    weights = alpha + beta * np.cumsum((damping or 1.0) ** ahead) + gamma * (ahead % season == 0)
    degrees = max(1, len(fit.resid) - len(fit.params_formatted))
    growth = np.concatenate([[1.0], 1 + np.cumsum(np.square(weights))])
    deviation: np.ndarray = np.sqrt(fit.sse / degrees * growth)
    return deviation


class Theta(_Fitted):
    """Theta, after the season was taken out: always, never, or where a test finds one."""

    name = "theta"
    label = "Theta method"

    _NONE, _TESTED, _ALWAYS = "no season", "a season where a test finds it", "a season"

    def forms(self, steps: int, season: int) -> list[str]:
        """A season needs two of them to be seen."""
        is_seen = 1 < season <= steps // 2
        return [self._NONE, *([self._TESTED, self._ALWAYS] if is_seen else [])]

    def fitted(
        self, past: np.ndarray, season: int, horizon: int, form: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the line and the smoothed series; its interval is statsmodels' own."""
        from statsmodels.tsa.forecasting.theta import ThetaModel  # noqa: PLC0415  (an extra)

        model = ThetaModel(
            past,
            period=season if form != self._NONE else 1,
            deseasonalize=form != self._NONE,
            use_test=form == self._TESTED,
        )
        fit = model.fit()
        ends = fit.prediction_intervals(horizon, alpha=_OUTSIDE).to_numpy()
        return np.asarray(fit.forecast(horizon)), (ends[:, 1] - ends[:, 0]) / 2
