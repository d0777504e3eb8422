"""The contract of every registered learner.

`LEARNERS` is read when the tests are collected: a plug-in that adds a learner of its own, such as
the one of `test_registry.py`, has it tested as well.
"""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.meta import cuda_graph
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.learner import Learner
from raymeta.meta.learners import LEARNERS
from raymeta.meta.memory import plan_memory
from raymeta.nn.networks import NetworkSpec, Params, init_params, is_head
from raymeta.nn.stepwise import first_state, next_features
from raymeta.problem import PROBLEMS, Problem
from tests.reference import ReferenceNetwork, random_episodes

CPU = torch.device("cpu")
SPEC = NetworkSpec(num_outputs=3, num_features=2, hidden_size=4, dropout=0.3)
SERVED = [
    (name, problem)
    for name, learner in LEARNERS.items()
    for problem in PROBLEMS
    if problem not in learner.refuses
]
every_learner = pytest.mark.parametrize("name", LEARNERS)
every_served_problem = pytest.mark.parametrize(("name", "problem"), SERVED)


def learner_with(name: str, **settings: Any) -> Learner:
    """Makes the learner with those of `settings` that it has."""
    own = {field.name for field in fields(LEARNERS[name])}
    return LEARNERS[name](**{key: value for key, value in settings.items() if key in own})


class Case:
    """A learner with a network, a problem and five episodes whose examples are padded."""

    def __init__(self, name: str, problem: str, dtype: torch.dtype = torch.float64) -> None:
        self.learner: Learner = learner_with(name, adaptation_steps=3)
        self.problem: Problem = PROBLEMS[problem]
        params = init_params(SPEC, torch.Generator().manual_seed(0), dtype)
        self.meta_params = self.learner.init_meta_params(params)
        self.episodes = random_episodes(
            ReferenceNetwork(**asdict(SPEC)),
            5,
            regression=problem != "classification",
            num_levels=len(self.problem.levels) or 1,
            padded=True,
            every_class=True,
        ).to(CPU, dtype)

    def gradient(
        self, episodes: Episodes | None = None, graph_steps: int | None = None
    ) -> MetaGradient:
        return self.learner.meta_gradient(
            SPEC,
            self.problem,
            self.meta_params,
            self.episodes if episodes is None else episodes,
            graph_steps=graph_steps,
        )


def everything(result: MetaGradient) -> Params:
    return {**result.grads, "loss": result.loss, "score": result.score}


def assert_same(found: object, wanted: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@every_learner
def test_a_learner_is_registered_by_its_name_and_is_plain_frozen_data(name: str) -> None:
    learner = LEARNERS[name]()
    assert learner.name == name
    assert pickle.loads(pickle.dumps(learner)) == learner  # noqa: S301  (our own)
    assert hash(learner) == hash(LEARNERS[name]())  # a captured CUDA graph is found by it
    assert learner_with(name, adaptation_steps=7).adaptation_steps in {0, 7}
    assert "training.outer_lr" in learner.remedy


@every_served_problem
def test_meta_parameters_keep_the_networks_and_survive_a_file(name: str, problem: str) -> None:
    case = Case(name, problem)
    params = init_params(SPEC, torch.Generator().manual_seed(0), torch.float64)
    assert {name for name in params if not is_head(name)} <= case.meta_params.keys()
    assert all(value.dtype == torch.float64 for value in case.meta_params.values())
    again = load(save({k: v.contiguous() for k, v in case.meta_params.items()}))
    assert_same(again, case.meta_params, 0)


@every_served_problem
def test_a_meta_gradient_has_the_shapes_of_the_meta_parameters_and_is_finite(
    name: str, problem: str
) -> None:
    case = Case(name, problem)
    result = case.gradient()
    assert {k: v.shape for k, v in result.grads.items()} == {
        k: v.shape for k, v in case.meta_params.items()
    }
    assert result.num_episodes == 5
    for value in everything(result).values():
        assert value.dtype == torch.float64
        assert value.isfinite().all()
    assert sum(value.norm() for value in result.grads.values()) > 0


@every_served_problem
@pytest.mark.parametrize("cuts", [(2,), (1, 2, 3, 4)])
def test_a_meta_gradient_does_not_depend_on_the_number_of_workers(
    name: str, problem: str, cuts: tuple[int, ...]
) -> None:
    case = Case(name, problem)
    shards = [
        everything(case.gradient(case.episodes[start:end]))
        for start, end in zip((0, *cuts), (*cuts, 5), strict=True)
    ]
    total = {key: torch.stack([one[key] for one in shards]).sum(dim=0) for key in shards[0]}
    assert_same(total, everything(case.gradient()))


@every_served_problem
@pytest.mark.parametrize("graph_steps", [0, 1, 2, 9])
def test_a_meta_gradient_does_not_depend_on_the_graphs_that_are_kept(
    name: str, problem: str, graph_steps: int
) -> None:
    case = Case(name, problem)
    assert_same(everything(case.gradient(graph_steps=graph_steps)), everything(case.gradient()))


@every_served_problem
def test_what_a_cuda_graph_replays_is_the_meta_gradient(name: str, problem: str) -> None:
    case = Case(name, problem)
    inputs = cuda_graph._inputs(SPEC, case.meta_params, case.episodes)
    found = cuda_graph._run(case.learner, SPEC, case.problem, inputs, 0)
    assert_same(everything(found), everything(case.gradient(graph_steps=0)))


@every_served_problem
def test_single_precision_is_near_double_precision(name: str, problem: str) -> None:
    single = everything(Case(name, problem, torch.float32).gradient())
    double = everything(Case(name, problem).gradient())
    for key, value in double.items():
        assert_same(single[key], value, 1e-3)


@every_served_problem
def test_arguments_are_never_written_to_and_results_repeat(name: str, problem: str) -> None:
    case = Case(name, problem)
    before = {key: value.clone() for key, value in case.meta_params.items()}
    first, second = everything(case.gradient()), everything(case.gradient())
    assert_same(first, second, 0)
    assert_same(case.meta_params, before, 0)
    assert not any(value.requires_grad for value in case.meta_params.values())


@every_served_problem
def test_scores_begin_before_adaptation_and_go_beyond_the_steps_of_meta_training(
    name: str, problem: str
) -> None:
    case = Case(name, problem)

    def scores(num_steps: int) -> Tensor:
        return case.learner.adaptation_scores(
            SPEC, case.problem, case.meta_params, case.episodes, num_steps
        )

    most, fewer = (5, 2) if case.learner.adaptation_steps else (0, 0)
    long = scores(most)
    assert long.shape == (*case.episodes.query.y.shape[:2], most + 1)
    assert long.isfinite().all()
    assert not long.requires_grad
    assert_same(long[..., : fewer + 1], scores(fewer))


@every_served_problem
@pytest.mark.parametrize("more_steps", [0, 2])
def test_an_adapted_network_kept_in_a_file_answers_as_at_the_end_of_adaptation(
    name: str, problem: str, more_steps: int
) -> None:
    case = Case(name, problem)
    learner, support, query = case.learner, case.episodes.support, case.episodes.query
    num_steps = learner.adaptation_steps and learner.adaptation_steps + more_steps
    arguments = (SPEC, case.problem, case.meta_params, support)
    adapted = learner.adapted_params(*arguments, num_steps)
    again = load(save({k: v.contiguous() for k, v in adapted.items()}))
    *_, wanted = learner.query_outputs(*arguments, query, num_steps)
    assert_same(learner.adapted_outputs(SPEC, again, query), wanted, 1e-12)
    network = learner.adapted_network(SPEC, again)
    if learner.reads_steps:  # it has no answer step by step: what it reads are all states
        flat = {key: value[0] for key, value in network.items()}
        features = learner.features(SPEC, flat, query.x, query.lengths)
        assert_same(learner.adapted_answers(SPEC, again, features), wanted, 1e-12)
    else:  # step by step: of the examples that go on, those that have ended stay as they were
        state, ended = first_state(SPEC, network, query.y.shape[1]), torch.zeros_like(wanted)
        for step in range(query.x.shape[2]):
            features, state = next_features(SPEC, network, query.x[:, :, step], state)
            found = learner.adapted_answers(SPEC, again, features)
            assert query.lengths is not None
            ended = torch.where((query.lengths == step + 1).unsqueeze(-1), found, ended)
        assert_same(ended, wanted, 1e-10)
    # One query after another, whatever their number.
    for number in range(2):
        lengths = None if query.lengths is None else query.lengths[:, number : number + 1]
        one = Examples(query.x[:, number : number + 1], query.y[:, number : number + 1], lengths)
        found = learner.adapted_outputs(SPEC, again, one)
        assert_same(found, wanted[:, number : number + 1], 1e-12)


@every_served_problem
def test_an_episode_that_overflows_makes_the_sum_not_finite(name: str, problem: str) -> None:
    case = Case(name, problem)
    case.episodes.query.x[2] = math.inf
    case.episodes.support.x[2] = math.nan
    result = case.gradient()
    flat = torch.cat([value.flatten() for value in everything(result).values()])
    assert not flat.isfinite().all()


@every_served_problem
@pytest.mark.parametrize("mode", ["auto", "full", "flat"])
def test_memory_is_planned(name: str, problem: str, mode: str) -> None:
    case = Case(name, problem)
    plan = plan_memory(
        case.learner,
        SPEC,
        case.meta_params,
        case.episodes,
        mode=mode,  # type: ignore[arg-type]
        limit_bytes=1e9,
    )
    assert plan.chunk_size == 5
    assert plan.num_bytes > 0
    assert plan.graph_steps in {0, case.learner.adaptation_steps}


@every_learner
def test_a_problem_is_served_or_refused_with_the_reason(name: str) -> None:
    for problem in PROBLEMS:
        reason = LEARNERS[name].refuses.get(problem)
        if reason is None:
            LEARNERS[name].check_problem(name, problem)
            continue
        with pytest.raises(ValueError, match=problem):
            LEARNERS[name].check_problem(name, problem)
        assert len(reason) > 10


@every_learner
def test_a_jointly_trained_network_is_taken_over_but_for_the_head_of_its_classes(
    name: str,
) -> None:
    learner = LEARNERS[name]()
    params = init_params(SPEC, torch.Generator().manual_seed(0))
    meta_params = learner.init_meta_params(params)
    joint_spec = replace(SPEC, num_outputs=11)
    joint = init_params(joint_spec, torch.Generator().manual_seed(1))
    learner.starts_from(meta_params, joint)
    assert_same(meta_params["rnn.weight_hh_l0"], joint["rnn.weight_hh_l0"], 0)
    assert not meta_params.get("head.weight", torch.zeros(1)).any()


def in_stacks(examples: Examples, count: int) -> Examples:
    """Joins every `count` time steps into one, by a loop."""
    assert examples.lengths is not None
    num_episodes, num_examples, _, size = examples.x.shape
    lengths = (examples.lengths + count - 1) // count
    x = torch.zeros(num_episodes, num_examples, int(lengths.max()), count * size).double()
    for episode, example in itertools.product(range(num_episodes), range(num_examples)):
        for step in range(int(examples.lengths[episode, example])):
            place = slice(step % count * size, (step % count + 1) * size)
            x[episode, example, step // count, place] = examples.x[episode, example, step]
    return Examples(x, examples.y, lengths)


@every_served_problem
def test_a_network_that_reads_steps_at_once_learns_as_one_of_longer_vectors(
    name: str, problem: str
) -> None:
    case = Case(name, problem)
    spec = replace(SPEC, stacked_steps=3)
    plain = replace(SPEC, num_features=spec.stack_size)
    params = init_params(spec, torch.Generator().manual_seed(0), torch.float64)
    meta_params = case.learner.init_meta_params(params)
    support, query = (in_stacks(e, 3) for e in (case.episodes.support, case.episodes.query))
    episodes = replace(case.episodes, support=support, query=query)
    found = case.learner.meta_gradient(spec, case.problem, meta_params, case.episodes)
    wanted = case.learner.meta_gradient(plain, case.problem, meta_params, episodes)
    assert_same(everything(found), everything(wanted))
