"""The metrics and steps that the search reads from a result."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from raymeta.search.observations import observe
from raymeta.search.settings import SearchSettings

SETTINGS = SearchSettings(objectives=(("loss", "min"),), step_metric="epoch")


@pytest.mark.parametrize(
    "value",
    [
        *[0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.array(0.5), np.array([0.5])],
        *[np.array([[0.5]]), torch.tensor(0.5), torch.tensor([0.5], requires_grad=True)],
    ],
    ids=repr,
)
def test_numbers_and_arrays_of_one_element_are_metrics(value: Any) -> None:
    result = {"loss": value, "loss_sem": value, "epoch": np.int64(2)}
    found = observe(result, SETTINGS)
    assert (found.step, found.values, found.problem) == (2, {"loss": (0.5, 0.5)}, None)


@pytest.mark.parametrize("value", [True, np.bool_(True), 1])
def test_a_truth_value_is_a_metric(value: Any) -> None:
    assert observe({"loss": value}, SETTINGS).values == {"loss": (1.0, None)}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, np.float64("nan"), 10**400, np.array([np.nan])]
)
def test_a_metric_that_is_not_finite_is_an_outcome_of_the_trial(value: Any) -> None:
    found = observe({"loss": value, "epoch": 1}, SETTINGS)
    assert found.problem in ("loss is nan", "loss is inf")
    assert not found.is_mistake


@pytest.mark.parametrize(
    "value",
    [
        [0.5],
        (0.5,),
        "0.5",
        {"mean": 0.5},
        np.array([0.5, 0.5]),
        np.array([]),
        1j,
        np.str_("0.5"),
        *[np.ma.masked, np.ma.array([0.5], mask=True)],
    ],
    ids=repr,
)
def test_a_metric_other_than_a_number_is_a_mistake_that_names_it(value: Any) -> None:
    found = observe({"loss": value, "epoch": 1}, SETTINGS)
    assert found.is_mistake
    assert found.problem is not None
    assert found.problem.startswith("loss is ")
    assert type(value).__name__ in found.problem


@pytest.mark.parametrize(
    ("result", "said"), [({}, "was not reported"), ({"loss": None}, "is None")]
)
def test_a_missing_metric_is_named(result: dict[str, Any], said: str) -> None:
    found = observe(result, SETTINGS)
    assert f"loss {said}" in (found.problem or "")
    assert not found.is_mistake


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(observe({"loss": "x" * 9999}, SETTINGS).problem or "") < 200


@pytest.mark.parametrize("step", [0.25, np.float64(1.5), Decimal("2.75")])
def test_fractions_of_an_epoch_are_steps(step: Any) -> None:
    assert observe({"loss": 0.5, "epoch": step}, SETTINGS).step == float(step)


@pytest.mark.parametrize("step", ["1", [1], math.nan, np.array([1, 2])], ids=repr)
def test_a_step_other_than_a_number_is_a_mistake(step: Any) -> None:
    found = observe({"loss": 0.5, "epoch": step}, SETTINGS)
    assert found.is_mistake
    assert "epoch (the step_metric) is " in (found.problem or "")


@pytest.mark.parametrize("sem", [-0.1, "0.1", [0.1]], ids=repr)
def test_an_invalid_standard_error_is_a_mistake(sem: Any) -> None:
    found = observe({"loss": 0.5, "loss_sem": sem, "epoch": 1}, SETTINGS)
    assert found.is_mistake
    assert "loss_sem (a standard error, >= 0) is " in (found.problem or "")


def test_an_unknown_standard_error_is_none() -> None:
    for sem in (None, math.nan):
        found = observe({"loss": 0.5, "loss_sem": sem, "epoch": 1}, SETTINGS)
        assert found.values == {"loss": (0.5, None)}
