"""Tasks adapted in one call equal tasks adapted alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError
from raymeta.meta.learners import LEARNERS
from raymeta.training.curves import EVALUATION_CHUNK
from tests.inference.conftest import RunOf


def signals(task: int, num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(task)
    return [50 * rng.normal(size=(4 + (n + task) % 3, 2)) for n in range(num)]


@pytest.mark.parametrize("learner", sorted(set(LEARNERS) - {"alpaca"}))
def test_every_task_is_adapted_as_alone(run_of: RunOf, learner: str) -> None:
    model = raymeta.load(str(run_of("table", f"learner={learner}").path))
    tasks = [(signals(task, 6), list("aabbcc")) for task in range(4)]
    tasks.insert(2, (signals(9, 5), list("aabbb")))  # with as many steps as none of the others
    tasks.insert(0, (signals(7, 4), ["x", "x", "y", "y"]))
    together = model.adapt_many(tasks)
    for (x, y), found in zip(tasks, together, strict=True):
        alone = model.adapt(x, y)
        assert found.labels is not None
        assert found.labels.tolist() == sorted(set(y))
        queries = signals(20, 7)
        np.testing.assert_allclose(
            found.predict_proba(queries), alone.predict_proba(queries), rtol=1e-9, atol=1e-9
        )
        assert {name: value.shape for name, value in found.params[0].items()} == {
            name: value.shape for name, value in alone.params[0].items()
        }


def test_more_tasks_than_are_adapted_at_once_keep_their_order(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=maml").path))
    num_tasks = 2 * EVALUATION_CHUNK + 2
    assert num_tasks == 130
    tasks = [(signals(task, 6), list("aabbcc")) for task in range(num_tasks)]
    tasks[100] = (signals(100, 4), list("xxyy"))  # alone among those of another form
    queries = signals(1000, 3)
    answers = [found.predict_proba(queries) for found in model.adapt_many(tasks)]
    assert len(answers) == num_tasks
    for (x, y), found in zip(tasks, answers, strict=True):
        wanted = model.adapt(x, y).predict_proba(queries)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    alike = np.stack([found for task, found in enumerate(answers) if task != 100])
    assert len(np.unique(alike.round(9), axis=0)) == num_tasks - 1  # none was answered for another


def test_regressions_tables_and_ensembles_are_adapted_together(
    run_of: RunOf, tmp_path: Path
) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=alpaca", seeds=2).path))
    x = np.linspace(-5, 5, 10)
    waves = [np.sin(x + phase) for phase in range(3)]
    together = model.adapt_many([(pd.DataFrame({"x": x, "y": y}), None) for y in waves])
    for y, found in zip(waves, together, strict=True):
        wanted = model.adapt(x[:, None], y).predict(x[:, None])
        np.testing.assert_allclose(found.predict(x[:, None]), wanted, rtol=1e-9, atol=1e-9)
    together[1].save(tmp_path / "one")
    again = raymeta.load_adapted(tmp_path / "one")
    np.testing.assert_array_equal(again.predict(x[:, None]), together[1].predict(x[:, None]))
    assert model.adapt_many([]) == []


def test_the_task_that_breaks_a_rule_is_named(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    good = (signals(0, 6), list("aabbcc"))
    with pytest.raises(DataError, match=r"task 2: example 1: must be numbers"):
        model.adapt_many([good, ([["x"]], ["a"])])
    with pytest.raises(DataError, match=r"task 3: y must have 2 classes"):
        model.adapt_many([good, good, (signals(0, 2), ["a", "a"])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(model.adapt_many([good] * 3)) == 3
