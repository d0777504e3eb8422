"""Control: adaptation from random initial weights, without any training."""

from __future__ import annotations

from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.training.curves import adaptation_curves
from raymeta.training.recipe import initial_meta_params


class RandomStart(Control):
    """The network as it was before the first meta-step."""

    name = "random"
    label = "random initialisation"

    def judge(self, contest: Contest) -> Judgement:
        """Adapts the initial network as the trained one is adapted."""
        own, steps = contest.own, contest.own.recipe.num_steps
        curves = adaptation_curves(
            own.tasks,
            own.recipe,
            initial_meta_params(own.recipe, next(iter(own.params.values())).device),
            "test",
            num_episodes=contest.num_episodes,
            num_steps=steps,
        )
        return Judgement(curves[..., steps], steps, curves)
