"""A run's networks are bound to the run, its settings and its data: real files of all kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raymeta.errors import RunError
from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.networks import (
    NO_REFIT,
    REFIT_FILE,
    Refitted,
    keep_network,
    open_further,
    open_networks,
)
from raymeta.experiment.file import load_experiment, with_values
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.training.trainer import build_trainer
from tests.evaluation.conftest import TINY

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[2] / "raymeta" / "data" / "shipped"
FOLDERS = {"sentiment": "uci_sentences", "pen": "uji_pen"}


def begin(folder: Path, name: str, *overrides: str) -> tuple[Run, Experiment]:
    """Makes a run folder with data of its own."""
    data = folder / "data"
    if not data.exists():
        shutil.copytree(SHIPPED / FOLDERS[name], data)
    experiment = load_experiment(name, [*TINY, f"tasks.data_dir={data}", *overrides])
    return Run.create(folder / "runs", experiment), experiment


def trained(folder: Path, name: str, *overrides: str) -> Run:
    """Makes a run whose search has ended, as the command line leaves it before the meta-test."""
    run, experiment = begin(folder, name, *overrides)
    trainer = build_trainer(experiment)
    trainer.train(3)
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(trainer.serialize())
    keep_network(run, "tuned", checkpoint)
    keep_network(run, "default", checkpoint)
    run.keep_best({})
    open_networks(run, CPU, lambda _: None)  # trains the controls
    return run


def refusal(run: Run) -> str:
    """Returns the message with which a run is refused; nothing is trained or written."""
    before = {p: p.read_bytes() for p in Path(str(run.path)).rglob("*") if p.is_file()}
    said: list[str] = []
    with pytest.raises(RunError) as error:
        open_networks(run, CPU, said.append)
    assert said == []
    assert {p: p.read_bytes() for p in Path(str(run.path)).rglob("*") if p.is_file()} == before
    assert len(str(error.value)) < 1500
    return str(error.value)


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes folders with a trained run and its data, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            trained(made[name], name)
        return made[name]

    return make


@pytest.fixture
def run_of(kept: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Run]:
    """Copies a trained run together with its data."""

    def copy(name: str) -> Run:
        source = kept(name)
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
        (folder,) = (tmp_path / "runs").iterdir()
        for file in ("experiment.yaml", "best.yaml"):
            edit(folder / file, str(source), str(tmp_path))
        return Run(folder)

    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentiment", "pen"])
def test_a_run_is_evaluated_wherever_its_folder_and_data_are_moved(run_of, name):
    run = run_of(name)
    own, networks = open_networks(run, CPU, pytest.fail)
    assert set(networks) == {"default", "joint"}
    judged = meta_test(own, networks, label="tuned", num_episodes=4)
    assert all(row.score.is_finite for row in judged.rows)


def test_two_rows_with_a_new_word_are_refused_naming_the_word(run_of, tmp_path):
    run = run_of("sentiment")
    file = tmp_path / "data" / "amazon.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows += [{"text": "A zorblax phone.", "class": 1}, {"text": "No zorblax here.", "class": 0}]
    file.write_text(json.dumps(rows), encoding="utf-8")
    message = refusal(run)
    assert "tuned.safetensors: its network was trained on other data" in message
    assert "vocabulary" in message
    assert "zorblax" in message
    assert "put back the data" in message


def one_row_less(data: Path) -> None:
    file = data / "imdb.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))[1:]), encoding="utf-8")


def another_label(data: Path) -> None:
    file = data / "yelp.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows[0]["class"] = 1 - rows[0]["class"]
    file.write_text(json.dumps(rows), encoding="utf-8")


def a_domain_more(data: Path) -> None:
    rows = [{"text": f"sentence {number}, fine", "class": number % 2} for number in range(400)]
    (data / "books.json").write_text(json.dumps(rows), encoding="utf-8")


def a_writer_less(data: Path) -> None:
    min(data.glob("UJIpenchars-w*")).unlink()


def a_point_less_a_character(data: Path) -> None:
    """Removes a point from each of one writer's characters; a split uses only some."""
    file = max(data.glob("UJIpenchars-w*"))
    lines = file.read_text(encoding="latin-1").splitlines()
    last = {n - 1 for n, line in enumerate(lines) if line == ".PEN_UP"}
    kept = [line for n, line in enumerate(lines) if n not in last or not line.strip()[0].isdigit()]
    file.write_text("\n".join(kept), encoding="latin-1")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sentiment", one_row_less),
        ("sentiment", another_label),
        ("sentiment", a_domain_more),
        ("pen", a_writer_less),
        ("pen", a_point_less_a_character),
    ],
)
def test_data_that_changed_in_any_way_are_refused(run_of, tmp_path, name, change):
    run = run_of(name)
    change(tmp_path / "data")
    assert "trained on other data" in refusal(run)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("cell: gru", "cell: lstm", "network.cell: 'gru' in the file, 'lstm' asked for"),
        ("cell: gru", "cell: rnn", "network.cell"),
        ("hidden_size: 8", "hidden_size: 9", "network.hidden_size: 8 in the file, 9 asked for"),
        ("bidirectional: false", "bidirectional: true", "network.bidirectional"),
        ("num_layers: 1", "num_layers: 2", "network.num_layers"),
        ("adapt: all", "adapt: head", "learner.adapt"),
        ("seed: 0", "seed: 5", "seed"),
        ("num_shots: 5", "num_shots: 4", "support_examples"),
    ],
)
def test_an_edited_best_yaml_is_refused_naming_the_key(run_of, before, after, named):
    run = run_of("sentiment")
    text = (run.path / "best.yaml").read_text(encoding="utf-8")
    if before not in text:
        pytest.fail(f"{before} is not in best.yaml:\n{text}")
    edit(run.path / "best.yaml", before, after)
    message = refusal(run)
    assert named in message
    assert "tuned.safetensors" in message


@pytest.mark.slow
@pytest.mark.parametrize("role", ["tuned", "default", "joint"])
@pytest.mark.parametrize("overrides", [["seed=3"], []], ids=["other seed", "same experiment"])
def test_the_model_file_of_another_run_is_refused_by_name(run_of, tmp_path, role, overrides):
    run = run_of("sentiment")
    other = trained(tmp_path / "other", "sentiment", *overrides)
    shutil.copy(str(other.model_file(role)), str(run.model_file(role)))
    message = refusal(run)
    assert f"{role}.safetensors" in message
    assert other.origin is not None
    assert run.origin is not None
    assert other.origin.id in message
    assert run.origin.id in message
    assert other.origin.id != run.origin.id


def test_a_network_kept_for_another_purpose_is_refused(run_of):
    run = run_of("sentiment")
    shutil.copy(str(run.model_file("default")), str(run.model_file("tuned")))
    assert "holds the network 'default'" in refusal(run)


def test_a_damaged_control_can_be_trained_again(run_of):
    run = run_of("sentiment")
    Path(str(run.model_file("joint"))).write_bytes(b"damaged")
    assert "remove the file, and the control is trained again" in refusal(run)
    Path(str(run.model_file("joint"))).unlink()
    said: list[str] = []
    open_networks(run, CPU, said.append)
    assert said == ["training a control: joint training + fine-tuning"]


def refitted(folder: Path, control_steps: int) -> Run:
    """Makes a run of 3 meta-steps, a refit of two seeds for 6, a control of `control_steps`."""
    run, experiment = begin(folder, "pen", "search.refit={steps: 2, seeds: 2}")
    longer = {"training.meta_steps": 6}
    for role, values in {
        "tuned": longer,
        "tuned-1": {**longer, "training.seed": 5},
        "default": {"training.meta_steps": control_steps},
    }.items():
        checkpoint = folder / f"{role}.safetensors"
        checkpoint.write_bytes(build_trainer(with_values(experiment, values)).serialize())
        keep_network(run, role, checkpoint)
    Refitted((0, 5), control_steps).keep(run)
    run.keep_best(longer)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("control_steps", [3, 6])
def test_every_training_of_a_refit_opens_with_its_own_identity(tmp_path, control_steps):
    run = refitted(tmp_path, control_steps)
    own, networks = open_networks(run, CPU, lambda _: None)
    (further,) = open_further(run, CPU)
    assert own.recipe.outer.meta_steps == further.recipe.outer.meta_steps == 6
    assert networks["joint"].recipe.outer.meta_steps == 6
    assert networks["default"].recipe.outer.meta_steps == control_steps
    assert (own.recipe.seed, further.recipe.seed) == (0, 5)
    assert not all(torch.equal(own.params[n], further.params[n]) for n in own.params)
    shutil.copy(str(run.model_file("tuned")), str(run.model_file("tuned-1")))
    with pytest.raises(RunError, match="holds the network 'tuned'"):
        open_further(run, CPU)


def test_the_record_of_a_refit_is_read_back_and_removed_without_one(tmp_path):
    run, _ = begin(tmp_path, "pen")
    assert Refitted.of(run) == NO_REFIT
    Refitted((0, 2), 9).keep(run)
    assert Refitted.of(run) == Refitted((0, 2), 9)
    NO_REFIT.keep(run)
    assert Refitted.of(run) == NO_REFIT
    for damaged in ('{"seeds": [0]}', "[]", '{"seeds": ["a"], "default_meta_steps": 3}'):
        (run.path / REFIT_FILE).write_bytes(damaged.encode())
        with pytest.raises(RunError, match="put back a copy of it"):
            Refitted.of(run)
