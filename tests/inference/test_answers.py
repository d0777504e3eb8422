"""Tasks that are answered together get the answers that each gets alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import raymeta
from raymeta.errors import DataError
from raymeta.inference.answers import answers_of
from raymeta.inference.examples import read_examples
from raymeta.meta.learner import Learner
from raymeta.meta.learners import LEARNERS
from tests.inference.conftest import RunOf
from tests.inference.test_adapt_many import signals


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of tasks in each network call."""
    found = list[int]()
    joint = Learner.joint_params

    def counted(self: Learner, tasks: Any) -> Mapping[str, Tensor]:
        found.append(len(tasks))
        return joint(self, tasks)

    monkeypatch.setattr(Learner, "joint_params", counted)
    return found


@pytest.mark.parametrize("learner", sorted(set(LEARNERS) - {"alpaca"}))
def test_every_task_is_answered_as_alone(run_of: RunOf, learner: str, calls: list[int]) -> None:
    model = raymeta.load(str(run_of("table", f"learner={learner}").path))
    supports = [(signals(task, 6), list("aabbcc")) for task in range(4)]
    supports.insert(2, (signals(7, 4), ["x", "x", "y", "y"]))
    tasks = model.adapt_many(supports)
    queries = [signals(20 + place, 3 + (place == 1)) for place in range(5)]
    questions = [
        task.question(read_examples(x, model.trained.inputs))
        for task, x in zip(tasks, queries, strict=True)
    ]
    together = answers_of(questions)
    assert sum(calls) == 5
    assert max(calls) >= 3  # a task of as many examples and classes as others is not alone
    assert len(calls) <= 3
    for task, x, found in zip(tasks, queries, together, strict=True):
        np.testing.assert_allclose(found.outputs, task.predict_proba(x), rtol=1e-9, atol=1e-9)
        assert found.predicted.tolist() == task.predict(x).tolist()


def test_ensembles_of_regressions_keep_their_own_scales(run_of: RunOf, calls: list[int]) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=alpaca", seeds=2).path))
    grid = np.linspace(-5, 5, 10)[:, None]
    tasks = model.adapt_many([(grid, np.sin(grid[:, 0] + phase)) for phase in range(3)])
    raw = read_examples(grid, model.trained.inputs)
    together = answers_of([task.question(raw) for task in tasks], with_scales=True)
    assert calls == [3, 3]  # one a network
    alone = [answers_of([task.question(raw)], with_scales=True)[0] for task in tasks]
    for found, wanted in zip(together, alone, strict=True):
        np.testing.assert_allclose(found.outputs, wanted.outputs, rtol=1e-9)
        np.testing.assert_allclose(found.scales, wanted.scales, rtol=1e-9)


def test_examples_beyond_one_chunk_keep_their_order(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    model = raymeta.load(str(run_of("table", "learner=prototypes").path))
    tasks = model.adapt_many([(signals(task, 6), list("aabbcc")) for task in range(3)])
    raw = read_examples(signals(30, 10), model.trained.inputs)
    wanted = [answer.outputs for answer in answers_of([task.question(raw) for task in tasks])]
    calls.clear()
    monkeypatch.setattr("raymeta.inference.answers._CHUNK", 4)
    found = answers_of([task.question(raw) for task in tasks])
    assert sorted(calls) == [1, 1, 1, 1, 1, 1, 1, 2]  # 4 examples fill a chunk, and twice 2 do
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.outputs, other)


def test_networks_of_different_trainings_are_never_mixed(run_of: RunOf, calls: list[int]) -> None:
    models = [
        raymeta.load(str(run_of("table", "learner=prototypes", f"seed={seed}").path))
        for seed in (0, 1)
    ]
    x = signals(30, 3)
    tasks = [model.adapt(signals(0, 6), list("aabbcc")) for model in models for _ in range(2)]
    raw = read_examples(x, models[0].trained.inputs)
    found = answers_of([task.question(raw) for task in tasks])
    assert calls == [2, 2]
    for own, task in zip(found, tasks, strict=True):
        np.testing.assert_allclose(own.outputs, task.predict_proba(x), rtol=1e-9)
    assert not found[0].outputs.allclose(found[2].outputs)


def test_the_question_that_has_no_answer_is_named(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=maml").path))
    task = model.adapt(signals(0, 6), list("aabbcc"))

    endless = replace(
        task, params=tuple({k: v * torch.inf for k, v in own.items()} for own in task.params)
    )
    raw = read_examples(signals(1, 2), model.trained.inputs)
    with pytest.raises(DataError, match=r"task b: example 1: the network's answer is not finite"):
        answers_of([task.question(raw, "task a: "), endless.question(raw, "task b: ")])
    huge = read_examples([np.full((4, 2), 1e300)], model.trained.inputs)
    with pytest.raises(DataError, match=r"task b: example 1: holds numbers too large"):
        answers_of([task.question(raw, "task a: "), task.question(huge, "task b: ")])
    assert answers_of([]) == []
