from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from raymeta.errors import RunError
from raymeta.evaluation.controls.joint import JointTraining
from raymeta.evaluation.ensemble import ensemble_curves
from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.scores import MetaTest, Score
from raymeta.experiment.file import load_experiment
from raymeta.training.curves import adaptation_curves
from raymeta.training.trainer import build_trainer
from tests.evaluation.conftest import TINY

CPU = torch.device("cpu")
ADAPTING = ["tuned", "unadapted", "default", "random", "joint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("pen-maml", ["class_mean", "dtw", "minirocket"]),
        ("sinusoid", ["support_mean", "kernel_ridge"]),
        ("sentiment", ["class_mean", "words"]),
    ],
)
def test_every_control_is_judged_on_the_same_episodes(name, others, untrained):
    fresh = untrained(name)
    tasks, recipe = fresh.tasks, fresh.recipe
    trainer = build_trainer(load_experiment(name, TINY))
    trainer.train(3)
    joint = replace(fresh, params=JointTraining().train(tasks, recipe, CPU))
    judged = meta_test(
        replace(fresh, params=trainer.meta_params),
        {"default": fresh, "joint": joint},
        label="tuned",
        num_episodes=5,
    )
    assert [row.name for row in judged.rows] == ADAPTING + others
    rows = {row.name: row for row in judged.rows}
    own = adaptation_curves(tasks, recipe, trainer.meta_params, "test", num_episodes=5, num_steps=3)
    assert [p.mean for p in rows["tuned"].curve] == pytest.approx(own.mean(dim=(0, 1)).tolist())
    assert rows["tuned"].over_episodes == rows["tuned"].curve[3]
    assert rows["unadapted"].over_episodes == rows["tuned"].curve[0]
    units = tasks.query_units("test", 5)
    assert judged.units == units.counts
    assert rows["tuned"].score == Score.over(own[..., 3], units)
    assert rows["default"].score == rows["random"].score  # both are the untrained network here
    # The lead is the mean difference over queries; positive where the network is better.
    sign = recipe.problem.sign
    assert rows["unadapted"].ahead == Score.over(sign * (own[..., 3] - own[..., 0]), units)
    assert rows["tuned"].ahead is None
    for row in judged.rows[1:]:
        assert row.ahead is not None
        assert row.ahead.mean == pytest.approx(sign * (judged.rows[0].score.mean - row.score.mean))
    assert MetaTest.from_json(json.loads(json.dumps(judged.to_json()))) == judged


def test_a_network_without_finite_outputs_is_refused_with_the_remedy(untrained):
    own = untrained("pen-maml")
    own.params["head.weight"].fill_(float("nan"))
    with pytest.raises(RunError, match=r"5 of 5 episodes .* no finite score .*maml\.inner_lr"):
        meta_test(own, {}, label="tuned network", num_episodes=5)


def test_a_refit_from_several_seeds_is_judged_by_their_mean_and_as_an_ensemble(untrained):
    own, further = untrained("pen-maml"), untrained("pen-maml", "training.seed=1")
    trainings = [own, further]
    judged = meta_test(own, {}, label="tuned", num_episodes=5, further=[further])
    rows = {row.name: row for row in judged.rows}
    assert list(rows)[:3] == ["tuned", "ensemble", "unadapted"]
    assert judged.controls == judged.rows[2:]
    each = torch.stack(
        [
            adaptation_curves(n.tasks, n.recipe, n.params, "test", num_episodes=5, num_steps=3)
            for n in trainings
        ]
    )
    tuned, units = rows["tuned"], own.tasks.query_units("test", 5)
    assert tuned.seeds == pytest.approx(each[..., 3].mean(dim=(1, 2)).tolist())
    assert tuned.score == Score.over(each[..., 3], units.of_trainings(2))
    assert [point.mean for point in tuned.curve] == pytest.approx(each.mean(dim=(0, 1, 2)).tolist())
    before = each[..., 0].mean(dim=0)
    assert rows["unadapted"].ahead == Score.over(each[..., 3] - before, units.of_trainings(2))
    together = ensemble_curves(trainings, 5, 3)
    assert rows["ensemble"].score == Score.over(together[..., 3], units)
    assert rows["ensemble"].ahead == Score.over(
        each[..., 3] - together[..., 3], units.of_trainings(2)
    )
    assert MetaTest.from_json(json.loads(json.dumps(judged.to_json()))) == judged


def test_a_further_training_without_finite_outputs_is_refused(untrained):
    own, further = untrained("pen-maml"), untrained("pen-maml", "training.seed=1")
    further.params["head.weight"].fill_(float("nan"))
    with pytest.raises(RunError, match=r"5 of 5 episodes .* no finite score"):
        meta_test(own, {}, label="tuned network", num_episodes=5, further=[further])


@pytest.mark.slow
def test_a_control_that_was_trained_for_fewer_steps_says_so(untrained):
    own, control = untrained("pen-maml", "training.meta_steps=6"), untrained("pen-maml")
    judged = meta_test(own, {"default": control}, label="tuned", num_episodes=2)
    (row,) = (row for row in judged.rows if row.name == "default")
    assert row.detail == "3 meta-steps; the tuned network took 6"
    (row,) = (
        row
        for row in meta_test(own, {"default": own}, label="tuned", num_episodes=2).rows
        if row.name == "default"
    )
    assert row.detail == ""
