"""Every learner: the influence of each support example, by adapting again without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import raymeta
from raymeta.errors import DataError, DataWarning
from raymeta.inference import influence
from raymeta.inference.model import Model
from raymeta.meta.learners import LEARNERS
from tests.inference.conftest import RunOf
from tests.inference.test_attribution import answers, task_of

SERVED = [
    *[
        ("table", learner)
        for learner, kind in LEARNERS.items()
        if "classification" not in kind.refuses
    ],
    *[
        ("sinusoid", learner)
        for learner, kind in LEARNERS.items()
        if "regression" not in kind.refuses
    ],
    ("sentiment", "maml"),
    ("pen", "prototypes"),
]


def without(x: list[Any], row: int) -> list[Any]:
    return [one for number, one in enumerate(x) if number != row]


def assert_is_what_one_adaptation_after_another_gives(
    model: Model, source: str, num_support: int
) -> None:
    support_x, support_y = task_of(source, num_support)
    x, _ = task_of(source, 3, seed=1)
    found = model.influence(support_x, support_y, x)
    whole = model.adapt(support_x, support_y)
    every = answers(whole, x)
    if whole.labels is None:
        columns = np.zeros(3, dtype=int)
        assert found.targets.tolist() == [0, 0, 0]
    else:
        columns = every.argmax(axis=1)
        assert found.targets.tolist() == whole.labels[columns].tolist()
    np.testing.assert_allclose(found.outputs, every[range(3), columns], rtol=1e-9)
    assert found.changes.shape == (3, num_support)
    assert found.changes.any(axis=0).all()
    for row in range(num_support):
        again = model.adapt(without(support_x, row), without(support_y, row))
        wanted = every[range(3), columns] - answers(again, x)[range(3), columns]
        np.testing.assert_allclose(found.changes[:, row], wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
@pytest.mark.parametrize(("source", "learner"), SERVED)
def test_influence_is_what_one_adaptation_after_another_gives(
    run_of: RunOf, source: str, learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = raymeta.load(str(run_of(source, f"learner={learner}").path))
    num_support = {"table": 7, "pen": 10}.get(source, 6)
    assert_is_what_one_adaptation_after_another_gives(model, source, num_support)
    monkeypatch.setattr(influence, "_AT_ONCE", 1)  # one support set after another
    assert_is_what_one_adaptation_after_another_gives(model, source, num_support)


def test_several_networks_are_averaged(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes", seeds=2).path))
    support_x, y = task_of("table", 6)
    x, _ = task_of("table", 2, seed=1)
    both = model.influence(support_x, y, x, target="kind 1")
    each = [
        replace(model, networks=(own,)).influence(support_x, y, x, target="kind 1")
        for own in model.networks
    ]
    wanted = np.mean([one.changes for one in each], axis=0)
    np.testing.assert_allclose(both.changes, wanted, atol=1e-12)


@pytest.mark.parametrize("learner", ["prototypes", "matching", "proto_maml"])
def test_leaving_out_the_only_example_of_a_class_removes_the_class(
    run_of: RunOf, learner: str
) -> None:
    model = raymeta.load(str(run_of("table", f"learner={learner}").path))
    support_x, _ = task_of("table", 3)
    x, _ = task_of("table", 2, seed=1)
    with pytest.warns(DataWarning, match="has 1 support examples"):
        found = model.influence(support_x, ["c", "a", "b"], x)
    for row, target in enumerate(found.targets):
        alone = ["c", "a", "b"].index(target)
        assert found.changes[row, alone] == pytest.approx(found.outputs[row])
        if learner == "prototypes":  # the others are rivals, and nothing else
            assert (np.delete(found.changes[row], alone) <= 1e-12).all()


def test_examples_of_a_frame_are_called_by_their_ids_and_mistakes_get_one_message(
    run_of: RunOf,
) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    support_x, y = task_of("table", 6)
    x, _ = task_of("table", 2, seed=1)
    found = model.influence(support_x, y, x)
    assert found.support_names[2] == "example 3"
    with pytest.raises(DataError, match="must be a class"):
        model.influence(support_x, y, x, target="kind 7")
    with pytest.raises(DataError, match="y is missing"):
        model.influence(support_x, x=x)
    points = raymeta.load(str(run_of("sinusoid", "learner=ridge").path))
    at, values = task_of("sinusoid", 1)
    with (
        pytest.warns(DataWarning, match="there are 1 support examples"),
        pytest.raises(DataError, match="two support examples at least"),
    ):
        points.influence(at, values, at)
