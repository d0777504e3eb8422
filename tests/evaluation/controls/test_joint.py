from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raymeta.evaluation.controls import joint
from raymeta.evaluation.controls.joint import JointTraining, choose_fine_tuning
from raymeta.meta.learners.maml import Maml
from raymeta.training import joint as training
from raymeta.training.curves import adaptation_curves

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["pen-maml", "sinusoid"])
def test_fine_tuning_is_the_best_choice_on_meta_validation(name, untrained):
    own = untrained(name)
    tasks, recipe = own.tasks, own.recipe
    params = JointTraining().train(tasks, recipe, CPU)
    chosen = choose_fine_tuning(tasks, recipe, params, max_steps=3)
    better = min if name == "sinusoid" else max
    for rate in (0.1, 1.0):
        tried = replace(recipe, learner=Maml(adaptation_steps=3, inner_lr=rate))
        curve = adaptation_curves(
            tasks, tried, chosen.params, "val", num_episodes=10, num_steps=3
        ).mean(dim=(0, 1))
        best = better(curve[curve.isfinite()].tolist())
        assert better(chosen.value, best) == pytest.approx(chosen.value)


def test_joint_training_takes_as_many_steps_as_pretraining_and_meta_training(
    monkeypatch, untrained
):
    own = untrained("pen-maml", "training.pretrain_steps=4")
    taken: list[int] = []
    original = training.train_joint

    def spy(*args: object, num_steps: int, **kwargs: object) -> object:
        taken.append(num_steps)
        return original(*args, num_steps=num_steps, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(joint, "train_joint", spy)
    JointTraining().train(own.tasks, own.recipe, CPU)
    assert set(taken) == {7}
