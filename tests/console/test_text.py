from __future__ import annotations

import math

import pytest

from raymeta.console.text import clock_text, leaf, plus_minus, value_text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.5, 0.25, "0.500 ± 0.250"),
        (0.5, None, "0.500"),
        (0.5, math.nan, "0.500"),
        (math.nan, math.nan, "not finite"),
        (math.inf, 0.1, "not finite"),
        (-math.inf, None, "not finite"),
    ],
)
def test_a_number_that_is_not_finite_is_called_so(value, spread, text):
    assert plus_minus(value, spread) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3661, "1:01:01")]
)
def test_durations_have_hours_only_if_needed(seconds, text):
    assert clock_text(seconds) == text


def test_values_have_four_digits_and_keys_their_last_part():
    assert value_text(0.0123456) == "0.01235"
    assert value_text(True) == "True"
    assert leaf("maml.inner_lr") == "inner_lr"
