"""Intervals over units: closed forms, and their coverage where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from raymeta.uncertainty import Estimate, Units

NUM_EPISODES, NUM_WAYS, NUM_QUERIES = 60, 5, 3


def crossed(repeats: int = 1) -> dict[str, np.ndarray]:
    """Makes four writers by six shapes, every pair `repeats` times, one episode a repeat."""
    writer, shape = np.divmod(np.arange(24), 6)
    return {name: np.tile(ids, (repeats, 1)) for name, ids in (("w", writer), ("s", shape))}


def test_one_axis_gives_the_standard_error_of_the_means_of_equal_units() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 5)) + rng.normal(size=(8, 1))
    ids = np.arange(8)[:, None].repeat(5, axis=1)
    found = Units({"wave": ids}, 8, 5).estimate(values)
    means = values.mean(axis=1)
    assert found.mean == pytest.approx(means.mean())
    assert found.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(8))
    assert found.degrees_of_freedom == pytest.approx(7)
    expected = stats.t.ppf(0.975, 7) * found.standard_error
    assert found.half_width == pytest.approx(expected)


def test_unknown_units_are_episodes() -> None:
    values = np.random.default_rng(1).normal(size=(8, 5))
    ids = np.arange(8)[:, None].repeat(5, axis=1)
    assert Units({}, 8, 5).estimate(values) == Units({"wave": ids}, 8, 5).estimate(values)


def test_two_crossed_axes_give_the_variance_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    grid = rng.normal(size=(4, 1)) + rng.normal(size=(1, 6)) + 0.3 * rng.normal(size=(4, 6))
    # Two episodes of the same answers: the axis of episodes has no variance.
    values = np.tile(grid.reshape(1, 24), (2, 1))
    rows, columns = grid.mean(axis=1), grid.mean(axis=0)
    residuals = grid - rows[:, None] - columns + grid.mean()
    # Searle, Casella and McCulloch 1992, chapter 4: mean squares of a crossed layout.
    of_writers, of_shapes = rows.var(ddof=1) / 4, columns.var(ddof=1) / 6
    overlap = np.square(residuals).sum() * 2 / (48 - 1 - 3 - 5 - 1) / 48
    expected = of_writers + of_shapes - 2 * overlap
    found = Units(crossed(2), 2, 24).estimate(values)
    assert found.standard_error**2 == pytest.approx(expected)
    freedom = expected**2 / (of_writers**2 / 3 + of_shapes**2 / 5)
    assert found.degrees_of_freedom == pytest.approx(max(1, freedom))


def test_an_axis_within_another_one_is_covered_by_it() -> None:
    rng = np.random.default_rng(3)
    domain = rng.integers(3, size=(40, 1)).repeat(6, axis=1)
    sentence = domain * 100 + rng.integers(20, size=(40, 6))
    values = rng.normal(size=(40, 6)) + np.array([-1.0, 0.0, 1.0])[domain]
    both = Units({"domain": domain, "sentence": sentence}, 40, 6).estimate(values)
    one = Units({"domain": domain}, 40, 6).estimate(values)
    assert both == one


def test_the_variance_is_never_below_that_of_a_single_axis() -> None:
    rng = np.random.default_rng(4)
    writer = rng.integers(2, size=(30, 8))
    episodes = np.arange(30)[:, None].repeat(8, axis=1)
    for _ in range(50):
        values = (rng.random((30, 8)) < 0.7).astype(float)
        found = Units({"writer": writer}, 30, 8).estimate(values).standard_error
        assert found >= Units({"wave": episodes}, 30, 8).estimate(values).standard_error - 1e-12
        totals = [(values[writer == w] - values.mean()).sum() for w in (0, 1)]
        assert found**2 >= 2 * np.square(totals).sum() / 240**2 - 1e-12


def test_an_axis_of_one_unit_has_no_part_in_the_variance() -> None:
    rng = np.random.default_rng(5)
    values, sentence = rng.normal(size=(30, 8)), rng.integers(50, size=(30, 8))
    alone = Units({"sentence": sentence}, 30, 8)
    units = Units({"sentence": sentence, "domain": np.zeros((30, 8), dtype=np.int64)}, 30, 8)
    assert units.estimate(values) == alone.estimate(values)
    assert units.counts == {"sentence": len(np.unique(sentence)), "domain": 1}


def test_halves_are_those_of_the_axis_with_the_fewest_units() -> None:
    writer, shape = (np.tile(ids, (2, 1)) for ids in (np.repeat([0, 1], 12), np.arange(24) % 6))
    values = np.where(writer == 0, 0.9, 0.5)
    found = Units({"shape": shape, "writer": writer}, 2, 24).halves(values)
    assert found == pytest.approx((0.9, 0.5))


def test_episodes_are_halved_where_no_axis_has_two_units() -> None:
    values = np.array([[1.0, 1.0], [0.0, 0.5], [1.0, 1.0]])
    one = {"domain": np.zeros((3, 2), dtype=np.int64)}
    assert Units(one, 3, 2).halves(values) == Units({}, 3, 2).halves(values) == (1.0, 0.25)


def test_equal_scores_have_no_width_and_scores_that_are_not_numbers_no_finite_one() -> None:
    units = Units(crossed(2), 2, 24)
    assert units.estimate(np.full((2, 24), 0.5)).half_width == 0
    assert math.isnan(units.estimate(np.full((2, 24), np.nan)).half_width)


def episodes_of_pen(rng: np.random.Generator, writers: int, shapes: int) -> dict[str, np.ndarray]:
    """Makes episodes of five shapes, with three queries each by any writer."""
    drawn = np.stack([rng.permutation(shapes)[:NUM_WAYS] for _ in range(NUM_EPISODES)])
    shape = drawn.repeat(NUM_QUERIES, axis=1)
    return {"shape": shape, "writer": rng.integers(writers, size=shape.shape)}


def simulated(
    rng: np.random.Generator, ids: Mapping[str, np.ndarray], sizes: Mapping[str, float]
) -> np.ndarray:
    """Simulates queries of mean 0: normal effects of units, pairs and episodes, and noise."""
    shape, writer = ids["shape"], ids["writer"]
    axes = {
        "shape": shape,
        "writer": writer,
        "pair": shape * 100 + writer,
        "episode": np.arange(NUM_EPISODES)[:, None],
    }
    values = 0.2 * rng.normal(size=shape.shape)
    for name, size in sizes.items():
        values = values + size * rng.normal(size=int(axes[name].max()) + 1)[axes[name]]
    return values


def coverage(
    writers: int, shapes: int, sizes: Mapping[str, float], num_samples: int
) -> tuple[float, float]:
    """Returns how often intervals over units, and over episodes alone, hold the true mean."""
    rng = np.random.default_rng(writers * 100 + shapes)
    over_units = over_episodes = 0
    for _ in range(num_samples):
        ids = episodes_of_pen(rng, writers, shapes)
        values = simulated(rng, ids, sizes)
        estimate = Units(ids, *values.shape).estimate(values)
        over_units += abs(estimate.mean) <= estimate.half_width
        plain = Units({}, *values.shape).estimate(values)
        over_episodes += abs(plain.mean) <= plain.half_width
    return over_units / num_samples, over_episodes / num_samples


EFFECTS: dict[str, dict[str, float]] = {
    "none": {},
    "shapes": {"shape": 0.1},
    "writers": {"writer": 0.1},
    "both": {"shape": 0.1, "writer": 0.1},
    "shapes, few writers' effects": {"shape": 0.1, "writer": 0.03},
    "pairs": {"shape": 0.05, "writer": 0.05, "pair": 0.1},
    "episodes": {"shape": 0.05, "writer": 0.05, "episode": 0.1},
}


@pytest.mark.parametrize("sizes", EFFECTS.values(), ids=EFFECTS)
@pytest.mark.parametrize(("writers", "shapes"), [(3, 10), (5, 8), (10, 10)])
def test_intervals_over_units_hold_the_true_mean_in_95_of_100_samples(
    writers: int, shapes: int, sizes: dict[str, float]
) -> None:
    # Of 400 samples with a coverage of 0.95, fewer than 0.92 come once in 300 times.
    assert coverage(writers, shapes, sizes, 400)[0] >= 0.92


@pytest.mark.parametrize("sizes", EFFECTS.values(), ids=EFFECTS)
def test_with_two_units_on_an_axis_at_least_87_of_100_intervals_hold_the_true_mean(
    sizes: dict[str, float],
) -> None:
    assert coverage(2, 10, sizes, 400)[0] >= 0.87


def test_intervals_over_episodes_only_miss_the_true_mean_of_other_units() -> None:
    assert coverage(3, 10, EFFECTS["both"], 200)[1] < 0.5


def test_an_estimate_without_error_has_no_width() -> None:
    assert Estimate(0.5, 0.0, 1.0).half_width == 0


def test_trainings_are_one_more_crossed_axis() -> None:
    rng = np.random.default_rng(6)
    grid = rng.normal(size=(3, 1)) + rng.normal(size=(1, 8)) + 0.3 * rng.normal(size=(3, 8))
    # Three trainings that answer the single query of each of eight episodes.
    values = grid.reshape(3, 8, 1)
    rows, columns = grid.mean(axis=1), grid.mean(axis=0)
    residuals = grid - rows[:, None] - columns + grid.mean()
    of_trainings, of_episodes = rows.var(ddof=1) / 3, columns.var(ddof=1) / 8
    expected = of_trainings + of_episodes - np.square(residuals).sum() / (2 * 7) / 24
    units = Units({}, 8, 1)
    found = units.of_trainings(3).estimate(values)
    assert found.mean == pytest.approx(grid.mean())
    assert found.standard_error**2 == pytest.approx(expected)
    assert units.of_trainings(1) is units
    assert units.estimate(columns[:, None]).standard_error < found.standard_error


def test_several_trainings_are_not_several_domains() -> None:
    zeros = np.zeros((8, 5), dtype=np.int64)
    units = Units({"domain": zeros}, 8, 5).of_trainings(4)
    assert units.single == ("domain",)
    assert not units.are_enough


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [3, 5])
def test_intervals_over_trainings_hold_the_true_mean_in_95_of_100_samples(trainings: int) -> None:
    rng, held = np.random.default_rng(trainings), 0
    for _ in range(300):
        ids = episodes_of_pen(rng, 6, 12)
        common = simulated(rng, ids, {"shape": 0.1, "writer": 0.1})
        effects = 0.1 * rng.normal(size=(trainings, 1, 1))
        values = common + effects + 0.2 * rng.normal(size=(trainings, *common.shape))
        found = Units(ids, *common.shape).of_trainings(trainings).estimate(values)
        held += abs(found.mean) <= found.half_width
    assert held >= 300 * 0.93
