from __future__ import annotations

import pytest

from raymeta.evaluation.controls.support_mean import SupportMean


def test_every_query_gets_the_mean_of_the_support_targets(untrained, contest_of):
    own = untrained("sinusoid")
    judgement = SupportMean().judge(contest_of(own, num_episodes=4))
    for index, score in enumerate(judgement.scores.mean(dim=1).tolist()):
        episode = own.tasks.episode("test", index)
        expected = ((episode.query_y - episode.support_y.mean()) ** 2).mean()
        assert score == pytest.approx(float(expected), rel=1e-5)
