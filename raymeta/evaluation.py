"""Meta-test of a network beside the controls that it must beat.

Everything is judged on the same episodes, which no choice has seen: what a control needs chosen
(its learning rate, how long it fine-tunes) is chosen on meta-validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raymeta.meta.joint import with_fresh_head
from raymeta.meta.maml import Maml
from raymeta.models import Params
from raymeta.pretraining import train_joint
from raymeta.tasks import Split, TaskDistribution
from raymeta.tasks.episodes import Examples
from raymeta.training import Recipe, adaptation_curves, initial_meta_params

Z_95 = 1.959964  # a normal variable lies within ± this with probability 0.95
JOINT_RATES = (1e-3, 3e-3)
FINE_TUNING_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
NUM_CHOICE_EPISODES = 100  # meta-validation episodes on which a control's settings are chosen


@dataclass(frozen=True)
class Score:
    """A mean over episodes and half the width of its 95 % interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """The score of `values` `[episodes]`: mean ± 1.96 standard errors."""
        values = values.double()
        return cls(values.mean().item(), Z_95 * values.std().item() / math.sqrt(len(values)))

    def overlaps(self, other: Score) -> bool:
        """Whether the two intervals have a point in common."""
        return abs(self.mean - other.mean) <= self.half_width + other.half_width


@dataclass(frozen=True)
class Row:
    """One contestant of the meta-test.

    `score` is after `steps` adaptation steps, `curve` after 0 … S of them; what does not adapt has
    neither.  `ahead` is by how much the run's network is better, episode by episode: its interval
    is narrower than those of the two scores, since what is hard for one is mostly hard for the
    other.  `detail` names what was chosen on meta-validation.
    """

    name: str
    label: str
    score: Score
    steps: int | None = None
    curve: tuple[Score, ...] = ()
    ahead: Score | None = None
    detail: str = ""


@dataclass(frozen=True)
class MetaTest:
    """The meta-test of a run: `rows[0]` is its network, the others are the controls."""

    metric: str
    higher_is_better: bool
    num_episodes: int
    note: str
    rows: tuple[Row, ...]

    def beats(self, row: Row) -> bool:
        """Whether the network is better than a control by more than both intervals."""
        mine, theirs = self.rows[0].score, row.score
        better = mine.mean > theirs.mean if self.higher_is_better else mine.mean < theirs.mean
        return better and not mine.overlaps(theirs)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> MetaTest:
        """What `to_json` gave."""
        rows = tuple(
            Row(
                **{
                    **row,
                    "score": Score(**row["score"]),
                    "curve": tuple(Score(**point) for point in row["curve"]),
                    "ahead": Score(**row["ahead"]) if row.get("ahead") else None,
                }
            )
            for row in content["rows"]
        )
        return cls(**{**content, "rows": rows})


def meta_test(
    tasks: TaskDistribution,
    recipe: Recipe,
    meta_params: Params,
    joint: Params,
    *,
    label: str,
    default: tuple[TaskDistribution, Recipe, Params] | None = None,
    num_episodes: int,
    progress: Callable[[str], None] = lambda _: None,
) -> MetaTest:
    """Runs the meta-test.

    Args:
        tasks: whose meta-test split is used.
        recipe: of the network.
        meta_params: the meta-trained network.
        joint: the jointly trained network of `train_joint_control`.
        label: what to call the network.
        default: tasks, recipe and meta-parameters of the experiment file's own configuration, after
            the same training budget; None where the network is just that.
        num_episodes: meta-test episodes.
        progress: told what is being judged.
    """
    steps = recipe.eval_steps

    def curves(label: str, tasks: TaskDistribution, recipe: Recipe, params: Params) -> Tensor:
        progress(label)
        return adaptation_curves(
            tasks, recipe, params, "test", num_episodes=num_episodes, num_steps=steps
        )

    mine = curves(label, tasks, recipe, meta_params)
    sign = -1.0 if recipe.kind == "regression" else 1.0

    def ahead(scores: Tensor) -> Score:
        return Score.of(sign * (mine[:, steps] - scores))

    def row(name: str, label: str, found: Tensor, at: int, detail: str = "") -> Row:
        curve = tuple(Score.of(column) for column in found.unbind(1))
        return Row(name, label, curve[at], at, curve, ahead(found[:, at]), detail)

    rows = [
        replace(row("tuned", label, mine, steps), ahead=None),
        replace(row("unadapted", "the same before adaptation", mine, 0), curve=()),
    ]
    if default is not None:
        label = "the file's configuration, meta-trained"
        rows.append(row("default", label, curves(label, *default), steps))
    label = "random initialisation"
    fresh = initial_meta_params(recipe, meta_params["head.weight"].device)
    rows.append(row("random", label, curves(label, tasks, recipe, fresh), steps))
    label = "joint training + fine-tuning"
    progress(f"how {label} serves meta-validation best")
    tuning = choose_fine_tuning(tasks, recipe, joint, steps)
    found = curves(label, tasks, tuning.recipe, tuning.params)
    rows.append(row("joint", label, found, tuning.num_steps, f"rate {tuning.rate:g}"))
    if tasks.class_mean_features is not None:
        progress("class means")
        scores = class_mean_scores(tasks, "test", num_episodes)
        label = "class-mean nearest neighbour"
        rows.append(Row("class_mean", label, Score.of(scores), ahead=ahead(scores)))
    regression = recipe.kind == "regression"
    return MetaTest(
        metric="squared error" if regression else "accuracy",
        higher_is_better=not regression,
        num_episodes=num_episodes,
        note=tasks.note,
        rows=tuple(rows),
    )


def train_joint_control(tasks: TaskDistribution, recipe: Recipe, device: torch.device) -> Params:
    """Ordinary training of the same network on as many steps and examples as it had itself.

    The learning rate is the one of `JOINT_RATES` that serves fine-tuning on meta-validation best.
    """
    outer = recipe.outer
    best: tuple[float, Params] | None = None
    for rate in JOINT_RATES:
        params = train_joint(
            tasks,
            recipe.spec,
            recipe.kind,
            outer,
            num_steps=outer.pretrain_steps + outer.meta_steps,
            lr=rate,
            seed=recipe.seed,
            dtype=recipe.dtype,
            device=device,
        )
        tuning = choose_fine_tuning(tasks, recipe, params, recipe.eval_steps)
        value = tuning.value if recipe.kind == "classification" else -tuning.value
        if best is None or value > best[0]:
            best = value, params
    assert best is not None, "there are rates to choose from"
    return best[1]


@dataclass(frozen=True)
class FineTuning:
    """How a jointly trained network adapts best on meta-validation, and its score there."""

    recipe: Recipe
    params: Params
    rate: float
    num_steps: int
    value: float


def choose_fine_tuning(
    tasks: TaskDistribution, recipe: Recipe, joint: Params, max_steps: int
) -> FineTuning:
    """The learning rate and number of steps, up to `max_steps`, that serve meta-validation best.

    Where classes differ from task to task the network gets a new head.
    """
    params = joint if tasks.fixed_labels else with_fresh_head(joint, recipe.spec.num_outputs)
    sign = -1.0 if recipe.kind == "regression" else 1.0
    choices = []
    for rate in FINE_TUNING_RATES:
        tuned = replace(recipe, maml=Maml(adaptation_steps=max_steps, inner_lr=rate))
        curve = adaptation_curves(
            tasks, tuned, params, "val", num_episodes=NUM_CHOICE_EPISODES, num_steps=max_steps
        ).mean(dim=0)
        value, steps = (sign * curve).nan_to_num(nan=-math.inf).max(dim=0)
        choices.append(FineTuning(tuned, params, rate, int(steps), sign * value.item()))
    return max(choices, key=lambda choice: sign * choice.value)


def class_mean_scores(tasks: TaskDistribution, split: Split, num_episodes: int) -> Tensor:
    """The share of right answers of the nearest class mean, float64 `[num_episodes]`.

    No learning: a query belongs to the class whose support examples' mean is nearest to it in
    Euclidean distance, in the features that the task distribution calls its raw input.
    """
    features = tasks.class_mean_features
    assert features is not None, "regression has no classes"
    episodes = tasks.episodes(split, range(num_episodes))
    num_ways = tasks.input_spec.num_outputs

    def flat(examples: Examples) -> Tensor:
        return features(examples).double()

    one_hot = torch.nn.functional.one_hot(episodes.support.y, num_ways).double()  # [E, N, W]
    sums = one_hot.transpose(1, 2) @ flat(episodes.support)
    means = sums / one_hot.sum(dim=1).unsqueeze(-1)
    nearest = torch.cdist(flat(episodes.query), means).argmin(dim=-1)
    return (nearest == episodes.query.y).double().mean(dim=1)
