"""Control for regression: predict the mean of the support targets, whatever the input."""

from __future__ import annotations

from raymeta.evaluation.controls.contract import Contest, Control, Judgement


class SupportMean(Control):
    """The best constant prediction that the support set offers."""

    name = "support_mean"
    label = "mean of the support targets"
    problems = frozenset({"regression"})

    def judge(self, contest: Contest) -> Judgement:
        """The squared error of the support targets' mean."""
        own = contest.own
        episodes = own.tasks.episodes("test", range(contest.num_episodes))
        targets = episodes.query.y.double()  # [E, N, O]
        means = episodes.support.y.double().mean(dim=1, keepdim=True).expand_as(targets)
        return Judgement(own.recipe.problem.query_scores(means, targets), outputs=means)
