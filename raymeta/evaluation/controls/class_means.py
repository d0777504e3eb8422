"""Control: the nearest class mean in the raw input, without learning."""

from __future__ import annotations

import torch
from torch import Tensor

from raymeta.episodes import Examples, Split, TaskDistribution
from raymeta.evaluation.controls.contract import Contest, Control, Judgement

CHUNK = 64  # episodes compared at once; bounds memory


class ClassMeans(Control):
    """A query gets the class whose support examples have the nearest mean."""

    name = "class_mean"
    label = "class-mean nearest neighbour"
    problems = frozenset({"classification"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether the tasks define features of raw examples."""
        return super().serves(tasks) and tasks.class_mean_features is not None

    def judge(self, contest: Contest) -> Judgement:
        """The accuracy of the nearest class mean."""
        return Judgement(class_mean_scores(contest.as_recorded, "test", contest.num_episodes))


def class_mean_scores(tasks: TaskDistribution, split: Split, num_episodes: int) -> Tensor:
    """Scores the nearest class mean on each query: 1 if right, float64 `[E, M]`.

    Distances are Euclidean, in `tasks.class_mean_features`.
    """
    features = tasks.class_mean_features
    assert features is not None, "`serves` was asked"
    num_ways = tasks.input_spec.num_outputs

    def flat(examples: Examples) -> Tensor:
        return features(examples).double()

    scores = []
    for start in range(0, num_episodes, CHUNK):
        episodes = tasks.episodes(split, range(start, min(start + CHUNK, num_episodes)))
        one_hot = torch.nn.functional.one_hot(episodes.support.y, num_ways).double()  # [E, N, W]
        sums = one_hot.transpose(1, 2) @ flat(episodes.support)
        means = sums / one_hot.sum(dim=1).unsqueeze(-1)
        nearest = torch.cdist(flat(episodes.query), means).argmin(dim=-1)
        scores.append((nearest == episodes.query.y).double())
    return torch.cat(scores)
