"""Missing numbers and times as features, against definitions written out step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymeta.data.missing import (
    carried,
    interpolated,
    observed,
    since_observed,
    time_differences,
)

NAN = float("nan")


def test_gaps_are_filled_by_lines_in_time_not_in_steps() -> None:
    x = np.array([[NAN, 1.0], [0.0, NAN], [NAN, NAN], [10.0, NAN], [NAN, 3.0]])
    found = interpolated(x, np.array([0.0, 1.0, 2.0, 11.0, 12.0]))
    np.testing.assert_allclose(found[:, 0], [0, 0, 1, 10, 10])
    np.testing.assert_allclose(found[:, 1], [1, 1 + 2 / 12, 1 + 4 / 12, 1 + 22 / 12, 3])


def test_a_column_without_numbers_stays_missing() -> None:
    assert np.isnan(interpolated(np.full((3, 1), NAN), np.arange(3.0))).all()


def test_time_differences_start_with_zero() -> None:
    assert time_differences(np.array([5.0, 6.0, 9.0])).tolist() == [[0.0], [1.0], [3.0]]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=12),
)
def test_masks_follow_the_recurrence_of_che_et_al(steps: list[tuple[bool, int]]) -> None:
    times = np.cumsum([step for _, step in steps]).astype(float)
    x = np.array([[float(n) if known else NAN] for n, (known, _) in enumerate(steps)])
    delta, last = [0.0], [x[0, 0]]
    for t in range(1, len(steps)):
        since = times[t] - times[t - 1]
        delta.append(since if steps[t - 1][0] else since + delta[t - 1])
        last.append(x[t, 0] if steps[t][0] else last[t - 1])
    assert since_observed(x, times)[:, 0].tolist() == pytest.approx(delta)
    np.testing.assert_array_equal(carried(x)[:, 0], last)
    assert observed(x)[:, 0].tolist() == [float(known) for known, _ in steps]
