"""Control: ordinary training on all meta-training tasks at once, then fine-tuning.

Chen et al. 2019, "A Closer Look at Few-shot Classification", found it as good as many
meta-learners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from raymeta.episodes import TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Judgement, TrainedControl
from raymeta.meta.joint import joint_spec, with_fresh_head
from raymeta.meta.learners.maml import Maml
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.training.curves import adaptation_curves
from raymeta.training.joint import train_joint
from raymeta.training.recipe import Recipe

JOINT_RATES = (1e-3, 3e-3)
FINE_TUNING_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)


class JointTraining(TrainedControl):
    """The same network after as many ordinary training steps on as many examples."""

    name = "joint"
    label = "joint training + fine-tuning"

    def network_spec(self, tasks: TaskDistribution, recipe: Recipe) -> NetworkSpec:
        """The network with an output for every class of meta-training."""
        joint = tasks.for_joint_training()
        return joint_spec(recipe.spec, joint.num_train_classes, joint.fixed_labels)

    def train(self, tasks: TaskDistribution, recipe: Recipe, device: torch.device) -> Params:
        """Trains at each of `JOINT_RATES`; keeps the best after fine-tuning on meta-validation."""
        outer = recipe.outer
        best: tuple[float, Params] | None = None
        for rate in JOINT_RATES:
            params = train_joint(
                tasks,
                recipe.spec,
                recipe.problem,
                outer,
                num_steps=outer.pretrain_steps + outer.meta_steps,
                lr=rate,
                seed=recipe.seed,
                dtype=recipe.dtype,
                device=device,
            )
            tuning = choose_fine_tuning(tasks, recipe, params, recipe.eval_steps)
            value = recipe.problem.sign * tuning.value
            if best is None or value > best[0]:
                best = value, params
        assert best is not None, "there are rates to choose from"
        return best[1]

    def judge(self, contest: Contest) -> Judgement:
        """Fine-tunes at the rate and for the number of steps that meta-validation prefers."""
        network = contest.networks[self.name]
        tuning = choose_fine_tuning(
            network.tasks, network.recipe, network.params, network.recipe.eval_steps
        )
        curves = adaptation_curves(
            network.tasks,
            tuning.recipe,
            tuning.params,
            "test",
            num_episodes=contest.num_episodes,
            num_steps=tuning.recipe.eval_steps,
        )
        detail = f"rate {tuning.rate:g}"
        return Judgement(curves[..., tuning.num_steps], tuning.num_steps, curves, detail)


@dataclass(frozen=True)
class FineTuning:
    """The best fine-tuning of a jointly trained network on meta-validation, and its score."""

    recipe: Recipe
    params: Params
    rate: float
    num_steps: int
    value: float


def choose_fine_tuning(
    tasks: TaskDistribution, recipe: Recipe, joint: Params, max_steps: int
) -> FineTuning:
    """Chooses the learning rate and number of steps (up to `max_steps`) by validation score.

    The network gets a new head where classes differ from task to task.
    """
    params = joint if tasks.fixed_labels else with_fresh_head(joint, recipe.spec.num_outputs)
    sign = recipe.problem.sign
    choices = []
    for rate in FINE_TUNING_RATES:
        tuned = replace(recipe, learner=Maml(adaptation_steps=max_steps, inner_lr=rate))
        curve = adaptation_curves(
            tasks,
            tuned,
            params,
            "val",
            num_episodes=contract.NUM_CHOICE_EPISODES,
            num_steps=max_steps,
        ).mean(dim=(0, 1))
        value, steps = (sign * curve).nan_to_num(nan=-math.inf).max(dim=0)
        choices.append(FineTuning(tuned, params, rate, int(steps), sign * value.item()))
    return max(choices, key=lambda choice: sign * choice.value)
