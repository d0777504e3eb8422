"""Control: the experiment file's own hyperparameters, meta-trained with the same budget."""

from __future__ import annotations

from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.training.curves import adaptation_curves


class FileConfiguration(Control):
    """The first trial, with the file's own values: the search must improve on it."""

    name = "default"
    label = "the file's configuration, meta-trained"
    needs = "trial"

    def judge(self, contest: Contest) -> Judgement:
        """Adapts the trial's network as the run's own is adapted."""
        network = contest.networks[self.name]
        steps = network.recipe.num_steps
        curves = adaptation_curves(
            network.tasks,
            network.recipe,
            network.params,
            "test",
            num_episodes=contest.num_episodes,
            num_steps=steps,
        )
        taken, own = network.recipe.outer.meta_steps, contest.own.recipe.outer.meta_steps
        detail = "" if taken == own else f"{taken} meta-steps; the tuned network took {own}"
        return Judgement(curves[..., steps], steps, curves, detail)
