"""Control: the run's own network before adaptation."""

from __future__ import annotations

from raymeta.evaluation.controls.contract import Contest, Control, Judgement


class Unadapted(Control):
    """The meta-trained network without adaptation to the support set."""

    name = "unadapted"
    label = "the same before adaptation"
    needs = "steps"

    def judge(self, contest: Contest) -> Judgement:
        """The network's scores after 0 adaptation steps."""
        return Judgement(contest.scores[..., 0], steps=0)
