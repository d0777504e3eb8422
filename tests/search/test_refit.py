"""The refit trains the same networks as without Ray, and leaves the rest if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raymeta.evaluation.networks import NO_REFIT, Refitted
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.nn.networks import Params
from raymeta.run_folder import Run
from raymeta.search.preflight import prepare
from raymeta.search.refit import Outcome, _outcome, _points, refit, unfinished_trainings
from raymeta.search.results import read_trials
from raymeta.search.trial_log import logged_trials
from raymeta.storage.paths import AnyPath
from raymeta.training.checkpoint import read_state
from raymeta.training.trainer import build_trainer
from tests.search.helpers import assert_same_bits, local_ray, tiny_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WINNER = {"maml.inner_lr": 0.2}


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cpus() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


def refitted(
    folder: Path, *overrides: str, winner: dict[str, float] = WINNER
) -> tuple[Run, Experiment, Outcome, Outcome]:
    """Returns a run after its refit, the files its search had left, and the files it has now."""
    experiment = tiny_experiment("search.space.maml.inner_lr={low: 0.01, high: 1}", *overrides)
    run = Run.create(folder, experiment)
    files = {}
    for role in ("tuned", "default"):
        files[role] = folder / f"{role}-checkpoint.safetensors"
        files[role].write_bytes(build_trainer(experiment).serialize())
    searched = Outcome(winner, files)
    found = again(run, experiment, searched)
    return run, experiment, searched, found


def again(run: Run, experiment: Experiment, searched: Outcome) -> Outcome:
    return refit(
        prepare(experiment, run.path.parent),
        run,
        searched,
        observer=lambda _: None,
        trials_at_once=2,
        say=lambda _: None,
    )


def trained(experiment: Experiment, **values: object) -> Params:
    """Returns the network after the whole training in this process."""
    trainer = build_trainer(with_values(experiment, values))
    while trainer.step < trainer.recipe.outer.meta_steps:
        trainer.train(experiment.training.eval_every)
    return trainer.meta_params


def network(checkpoint: AnyPath) -> Params:
    return read_state(checkpoint).meta_params


def test_every_seed_and_the_control_are_trained_as_long_as_asked(tmp_path: Path) -> None:
    run, experiment, _, found = refitted(tmp_path, "search.refit={steps: 1.5, seeds: 2}")
    longer = {"training.meta_steps": 9}
    assert found.values == {**WINNER, **longer, "training.seed": 0, "search.refit.steps": 1.0}
    assert found.refitted == Refitted((0, 1), 9)
    assert list(found.checkpoints) == ["tuned", "tuned-1", "default"]
    for role, values in {
        "tuned": WINNER,
        "tuned-1": {**WINNER, "training.seed": 1},
        "default": {},
    }.items():
        expected = trained(experiment, **longer, **values)
        assert_same_bits(network(found.checkpoints[role]), expected)
    first, second = (network(found.checkpoints[role]) for role in ("tuned", "tuned-1"))
    assert not any(torch.equal(first[name], second[name]) for name in first)

    assert read_trials(run) == {}  # of the search
    records = logged_trials(run.refit).records.values()
    assert [record.status for record in records] == ["completed"] * 3
    assert [step for step, _, _ in next(iter(records)).curve] == [3, 6, 9]
    assert len(run.read_json("refit/trials.json")) == 3
    assert run.read_json("trials.json") is None

    # Gone on with, nothing is trained again; another winner is, and takes the control as it is.
    assert again(run, experiment, Outcome(WINNER, {})) == found
    assert len(logged_trials(run.refit).records) == 3
    other = again(run, experiment, Outcome({"maml.inner_lr": 0.3}, {}))
    assert len(logged_trials(run.refit).records) == 5
    assert other.checkpoints["default"] == found.checkpoints["default"]
    expected = trained(experiment, **longer, **{"maml.inner_lr": 0.3})
    assert_same_bits(network(other.checkpoints["tuned"]), expected)


def test_what_the_search_has_trained_as_long_from_the_same_seed_is_not_trained_again(
    tmp_path: Path,
) -> None:
    run, _, searched, found = refitted(tmp_path, "search.refit={steps: 1, seeds: 2}")
    assert [r.point["training.seed"] for r in logged_trials(run.refit).records.values()] == [1]
    for role in ("tuned", "default"):
        assert found.checkpoints[role] == searched.checkpoints[role]
    assert found.refitted == Refitted((0, 1), 6)


def test_a_winner_that_is_the_file_s_own_configuration_is_trained_once(tmp_path: Path) -> None:
    run, _, _, found = refitted(
        tmp_path, "search.refit={steps: 2, seeds: 1}", winner={"maml.inner_lr": 0.1}
    )
    assert len(logged_trials(run.refit).records) == 1
    assert found.checkpoints["default"] == found.checkpoints["tuned"]


def test_a_refit_without_a_finite_training_leaves_the_search_s_winner(tmp_path: Path) -> None:
    run, experiment, searched, found = refitted(
        tmp_path,
        "search.refit={steps: 2, seeds: 2}",
        "search.space.maml.inner_lr={low: 0.01, high: 1.0e+300}",
        "training.max_skipped=0",
        winner={"maml.inner_lr": 1e300},
    )
    assert found == searched
    assert found.refitted == NO_REFIT
    trials = logged_trials(run.refit)
    statuses = [record.status for record in trials.records.values()]
    assert statuses == ["abandoned", "abandoned", "completed"]
    assert len(trials.errors) == 2
    assert not unfinished_trainings(experiment, run)


def test_where_a_seed_fails_the_others_are_kept_in_its_place(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        "search.refit={steps: 2, seeds: 3}", "search.space.maml.inner_lr={low: 0.01, high: 1}"
    )
    files = {name: tmp_path / name for name in ("short", "default", "seed-1", "seed-2")}
    searched = Outcome(WINNER, {"tuned": files["short"], "default": files["default"]})
    points = _points(experiment, WINNER, {"maml.inner_lr": 0.1})
    found = _outcome(
        experiment, points, searched, {"tuned-1": files["seed-1"], "tuned-2": files["seed-2"]}
    )
    assert found.checkpoints == {
        "tuned": files["seed-1"],
        "tuned-1": files["seed-2"],
        "default": files["default"],
    }
    assert found.refitted == Refitted((1, 2), 6)  # the control took the search's 6 meta-steps
    assert found.values["training.seed"] == 1
    assert found.values["training.meta_steps"] == 12


def test_a_training_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path: Path) -> None:
    run, experiment, _, found = refitted(tmp_path, "search.refit={steps: 2, seeds: 1}")
    before = network(found.checkpoints["tuned"])
    Path(str(found.checkpoints["tuned"])).write_bytes(b"damaged")
    mended = again(run, experiment, Outcome(WINNER, {}))
    assert mended.checkpoints["tuned"] != found.checkpoints["tuned"]
    assert_same_bits(network(mended.checkpoints["tuned"]), before)
    assert load_file(str(mended.checkpoints["tuned"]))
