"""Final values of stopped trials, estimated from all curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raymeta.search.curves import final_values
from raymeta.search.records import Curve

STEPS = (10, 30, 90)


def estimates(curves: dict[str, Curve], finished: list[str]) -> dict[str, tuple[float, float]]:
    """Estimates all trials that have not finished."""
    return final_values(curves, finished, [trial for trial in curves if trial not in finished])


def curves_of(number: int, seed: int, noise: float = 0.01) -> dict[str, Curve]:
    """Draws curves that approach a level from below, at rates that depend a little on it."""
    rng = np.random.default_rng(seed)
    found: dict[str, Curve] = {}
    for trial, level in enumerate(rng.normal(0.6, 0.1, number)):
        values = level - 0.5 * np.exp(-np.array(STEPS) / 20) + rng.normal(0, noise, len(STEPS))
        found[f"t{trial}"] = [
            (step, float(value), noise) for step, value in zip(STEPS, values, strict=True)
        ]
    return found


def test_an_estimate_is_near_the_end_and_its_deviation_honest() -> None:
    scaled = []
    for seed in range(40):
        whole = curves_of(12, seed)
        seen = {t: c if int(t[1:]) < 5 else c[: 1 + int(t[1:]) % 2] for t, c in whole.items()}
        found = estimates(seen, [f"t{i}" for i in range(5)])
        assert found.keys() == {f"t{i}" for i in range(5, 12)}
        for trial, (mean, deviation) in found.items():
            scaled.append((mean - whole[trial][-1][1]) / deviation)
            assert abs(mean - whole[trial][-1][1]) < 0.15
            assert mean > seen[trial][-1][1] + 0.05  # more than what it was stopped at
    assert 0.5 < np.std(scaled) < 1.5
    assert abs(np.mean(scaled)) < 0.3


def test_a_trial_stopped_earlier_is_less_certain() -> None:
    whole = curves_of(8, 0)
    seen = {**whole, "early": whole["t0"][:1], "later": whole["t0"][:2]}
    found = estimates(seen, list(whole))
    assert found["early"][1] > found["later"][1]


def test_a_trial_stopped_earlier_goes_by_those_that_went_further_without_ending() -> None:
    whole = curves_of(9, 0)
    seen = {
        t: c if int(t[1:]) < 3 else c[:2] if int(t[1:]) < 7 else c[:1] for t, c in whole.items()
    }
    found = estimates(seen, ["t0", "t1", "t2"])
    assert set(found) == {f"t{i}" for i in range(3, 9)}
    for trial, (mean, _) in found.items():
        assert mean == pytest.approx(whole[trial][-1][1], abs=0.1)


@pytest.mark.parametrize("finished", [0, 1])
def test_nothing_is_estimated_while_too_few_have_finished(finished: int) -> None:
    whole = curves_of(6, 0)
    seen = {t: c if int(t[1:]) < finished else c[:1] for t, c in whole.items()}
    assert estimates(seen, [f"t{i}" for i in range(finished)]) == {}


def test_without_early_ends_or_observations_there_is_nothing_to_estimate() -> None:
    whole = curves_of(4, 0)
    assert estimates(whole, list(whole)) == {}
    assert estimates({**whole, "none": []}, list(whole)) == {}
    assert estimates({}, []) == {}


def test_the_noise_of_the_last_observation_counts() -> None:
    whole = curves_of(8, 0)
    step, mean, _ = whole["t0"][0]
    found = {
        sem: estimates({**whole, "stopped": [(step, mean, sem)]}, list(whole))["stopped"]
        for sem in (None, 0.05)
    }
    assert found[None][0] == found[0.05][0]
    gained = found[0.05][1] ** 2 - found[None][1] ** 2
    assert 0.2 * 0.05**2 < gained < 2 * 0.05**2


def test_equal_values_do_not_divide_by_zero() -> None:
    flat: dict[str, Curve] = {f"t{i}": [(10, 0.5, 0.0), (90, 0.5, 0.0)] for i in range(3)}
    ((mean, deviation),) = estimates({**flat, "s": [(10, 0.5, 0.0)]}, list(flat)).values()
    assert mean == pytest.approx(0.5)
    assert math.isfinite(deviation)


def test_a_running_trial_adds_no_rung_and_a_rung_without_pairs_is_passed_over() -> None:
    whole = curves_of(8, 0)
    seen = {**whole, "stopped": whole["t0"][:1]}
    finished = list(whole)
    alone = final_values(seen, finished, ["stopped"])
    odd: Curve = [(17, 0.3, 0.01)]
    assert final_values({**seen, "running": odd}, finished, ["stopped"]) == alone
    assert final_values({**seen, "odd": odd}, finished, ["stopped", "odd"]) == alone
