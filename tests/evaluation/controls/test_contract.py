"""The contract of every control, and how one is added."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from raymeta.episodes import TaskDistribution
from raymeta.evaluation import controls
from raymeta.evaluation.controls.contract import (
    Contest,
    Control,
    Judgement,
    Network,
    TrainedControl,
)
from raymeta.evaluation.meta_test import controls_to_train, meta_test
from raymeta.nn.networks import NetworkSpec, Params, init_params
from raymeta.problem import PROBLEMS
from raymeta.training.recipe import Recipe

CPU = torch.device("cpu")
ALWAYS = {"unadapted", "default", "random", "joint"}
OF_FORECASTS = ALWAYS | {"naive", "seasonal_naive", "moved_season", "ets", "theta"}
# Shipped experiments, with what is changed in them, and the controls that serve them.
SERVING = {
    "pen-maml": ALWAYS | {"class_mean", "dtw", "minirocket"},
    "sentiment": ALWAYS | {"class_mean", "words"},
    "sinusoid": ALWAYS | {"support_mean", "kernel_ridge"},
    "employment": OF_FORECASTS,
    "employment tasks.quantiles=[0.1,0.5,0.9]": OF_FORECASTS,
}
PAIRS = [
    (name, control)
    for name, serving in SERVING.items()
    for control in controls.CONTROLS
    if control.name in serving
]
UNTRAINED = [pair for pair in PAIRS if pair[1].needs in {"nothing", "steps"}]
TRAINED = [pair for pair in PAIRS if isinstance(pair[1], TrainedControl)]


def named(value: object) -> str:
    return value.name if isinstance(value, Control) else str(value)


def networks_for(control: Control, own: Network) -> dict[str, Network]:
    if control.needs == "trial":
        return {control.name: own}
    if not isinstance(control, TrainedControl):
        return {}
    params = control.train(own.tasks, own.recipe, CPU)
    return {control.name: dataclasses.replace(own, params=params)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "control"), PAIRS, ids=named)
def test_a_control_scores_every_episode_of_the_tasks_it_serves(
    name, control, untrained, contest_of
):
    own = untrained(*name.split())
    contest = contest_of(own, **networks_for(control, own))
    judgement = control.judge(contest)
    queries = own.tasks.episodes("test", range(5)).query.y.shape[:2]
    assert judgement.scores.shape == queries
    assert judgement.scores.dtype == torch.float64
    assert judgement.scores.isfinite().all()
    if judgement.curves is not None:
        assert judgement.curves.shape == (*queries, 4)
        assert torch.equal(judgement.scores, judgement.curves[..., judgement.steps])
    again = control.judge(contest)
    assert torch.equal(again.scores, judgement.scores)
    assert again.detail == judgement.detail


@pytest.mark.slow
@pytest.mark.parametrize(("name", "control"), UNTRAINED, ids=named)
def test_scores_do_not_depend_on_how_many_episodes_follow(name, control, untrained, contest_of):
    own = untrained(*name.split())
    few = control.judge(contest_of(own, num_episodes=3))
    many = control.judge(contest_of(own, num_episodes=6))
    torch.testing.assert_close(few.scores, many.scores[:3])


@pytest.mark.parametrize(("name", "control"), TRAINED, ids=named)
def test_a_trained_control_has_the_network_that_it_announces(name, control, untrained):
    own = untrained(*name.split())
    params = control.train(own.tasks, own.recipe, CPU)
    announced = init_params(control.network_spec(own.tasks, own.recipe), torch.Generator())
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in announced.items()}


def test_controls_have_names_and_labels_of_their_own():
    for one, other in itertools.combinations(controls.CONTROLS, 2):
        assert one.name != other.name
        assert one.label != other.label
    assert all(control.problems <= PROBLEMS.keys() for control in controls.CONTROLS)


@pytest.mark.parametrize("name", SERVING)
def test_controls_serve_their_problem_and_kind_of_input(name, untrained):
    tasks = untrained(*name.split()).tasks
    found = {control.name for control in controls.CONTROLS if control.serves(tasks)}
    assert found == SERVING[name]


class AlwaysFirst(Control):
    """Answers class 0."""

    name = "first"
    label = "always the first class"
    problems = frozenset({"classification"})

    def judge(self, contest: Contest) -> Judgement:
        queries = contest.own.tasks.episodes("test", range(contest.num_episodes)).query
        return Judgement((queries.y == 0).double(), detail="class 0")


class TrainedOnce(AlwaysFirst, TrainedControl):
    name = "trained"
    label = "a control with a network"

    def network_spec(self, _: TaskDistribution, recipe: Recipe) -> NetworkSpec:
        return recipe.spec

    def train(self, *_: object) -> Params:
        return {"head.weight": torch.zeros(1)}


def test_a_control_is_added_by_one_class_and_one_line(monkeypatch, untrained):
    monkeypatch.setattr(controls, "CONTROLS", (*controls.CONTROLS, AlwaysFirst(), TrainedOnce()))
    own = untrained("pen-maml")
    assert [control.name for control in controls_to_train(own.tasks)] == ["joint", "trained"]
    networks = {"trained": dataclasses.replace(own, params=TrainedOnce().train())}
    rows = meta_test(own, networks, label="tuned", num_episodes=5).rows
    added = {row.name: row for row in rows}["first"]
    assert added.score.mean == pytest.approx(0.2)
    assert added.detail == "class 0"
    assert added.ahead is not None
    assert "trained" in {row.name for row in rows}
    assert "joint" not in {row.name for row in rows}  # its network is missing

    regression = meta_test(untrained("sinusoid"), {}, label="tuned", num_episodes=5)
    assert "first" not in {row.name for row in regression.rows}


def test_a_control_whose_scores_are_not_finite_gets_no_verdict(monkeypatch, untrained):
    class Broken(AlwaysFirst):
        def judge(self, _: Contest) -> Judgement:
            scores = torch.full((5, 15), 0.2, dtype=torch.float64)
            scores[2, 3] = float("nan")
            return Judgement(scores)

    monkeypatch.setattr(controls, "CONTROLS", (Broken(),))
    judged = meta_test(untrained("pen-maml"), {}, label="tuned", num_episodes=5)
    assert judged.verdict(judged.rows[1]) == "not finite"
