"""The agreement of validation's halves tells whether it separates trials."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from scipy.stats import spearmanr

from raymeta.search.agreement import FEWEST_TRIALS, agreement
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import LoggedTrials


def trials(halves: Iterable[tuple[float, float]], status: str = "completed") -> LoggedTrials:
    found = LoggedTrials()
    for number, pair in enumerate(halves):
        found.records[str(number)] = TrialRecord({}, "sobol", status)  # type: ignore[arg-type]
        found.halves[str(number)] = pair
    return found


def test_halves_that_rank_alike_agree() -> None:
    found = agreement(trials((x, 0.1 + x**2) for x in np.linspace(0.5, 0.9, 6)))
    assert found is not None
    assert found.rho == pytest.approx(1)
    assert found.p_value == pytest.approx(1 / math.factorial(6))
    assert not found.is_chance


def test_the_correlation_is_spearmans() -> None:
    pairs = np.random.default_rng(1).integers(5, size=(9, 2)).astype(float)  # with ties
    found = agreement(trials(map(tuple, pairs)))
    assert found is not None
    assert found.rho == pytest.approx(float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic))


def test_trials_without_a_difference_seldom_seem_to_differ() -> None:
    rng = np.random.default_rng(2)
    found = [agreement(trials(map(tuple, rng.normal(size=(6, 2))))) for _ in range(200)]
    share = np.mean([not one.is_chance for one in found if one is not None])
    assert share <= 0.1  # 0.05 up to the noise of 200 samples


def test_the_fewest_trials_can_show_that_they_differ() -> None:
    found = agreement(trials((x, x) for x in range(FEWEST_TRIALS)))
    fewer = agreement(trials((x, x) for x in range(2)))
    assert found is not None
    assert fewer is not None
    assert not found.is_chance
    assert fewer.is_chance


@pytest.mark.parametrize("pair", [(0.2, 0.2), (0.2, 0.3)])
def test_equal_trials_are_not_distinguished(pair: tuple[float, float]) -> None:
    found = agreement(trials([pair] * 6))
    assert found is not None
    assert found.is_chance


def test_only_finished_trials_with_halves_count() -> None:
    assert agreement(LoggedTrials()) is None
    assert agreement(trials([(0.1, 0.2)] * 6, "early_stopped")) is None
    mixed = trials((x, x) for x in range(6))
    mixed.records["stopped"] = TrialRecord({}, "bo", "early_stopped")
    mixed.halves["stopped"] = (9.0, -9.0)
    mixed.records["old"] = TrialRecord({}, "bo", "completed")
    found = agreement(mixed)
    assert found is not None
    assert found.num_trials == 6
    assert found.rho == pytest.approx(1)
