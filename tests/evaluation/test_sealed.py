"""Every look at a sealed deal is recorded, and a report tells of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.networks import keep_network
from raymeta.evaluation.scores import MetaTest
from raymeta.evaluation.sealed import SEALED_FILE, look_lines, looks, record_look
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.search.trial_log import TrialLog
from raymeta.tasks.load import load_tasks
from raymeta.training.trainer import build_trainer
from tests.evaluation.conftest import TINY

SEALED = (*TINY, "evaluation.sealed=true", "evaluation.num_episodes=4")


def run_of(root: Path, *overrides: str) -> Run:
    """Makes a run folder with an untrained network, as after a search."""
    experiment: Experiment = load_experiment("sinusoid", [*SEALED, *overrides])
    run = Run.create(root, experiment, fingerprint=load_tasks(experiment).fingerprint)
    TrialLog(run).begin([])
    checkpoint = root / "checkpoint"
    checkpoint.write_bytes(build_trainer(experiment).serialize())
    keep_network(run, "tuned", checkpoint)
    run.keep_best({})
    return run


@pytest.fixture
def result(untrained: Callable[..., Network]) -> MetaTest:
    return meta_test(untrained("sinusoid"), {}, label="tuned", num_episodes=4)


def test_every_meta_test_on_the_sealed_deal_is_a_look(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    report = api.evaluate(run.path.name, runs_dir=tmp_path)
    assert look_lines(run) == ["judged on the sealed deal, for the first time"]
    api.evaluate(run.path.name, runs_dir=tmp_path)
    found, notes = looks(run)
    assert [look.score for look in found] == [report.meta_test.rows[0].score.mean] * 2
    assert not notes
    assert all(look.user and look.metric == "squared error" for look in found)
    assert "looked at 2 times" in look_lines(run)[0]


def test_a_meta_test_on_the_ordinary_deal_is_no_look(tmp_path: Path) -> None:
    run = run_of(tmp_path, "evaluation.sealed=false")
    api.evaluate(run.path.name, runs_dir=tmp_path)
    assert not (run.path / SEALED_FILE).is_file()


def test_looks_of_other_runs_on_the_same_data_count(tmp_path: Path, result: MetaTest) -> None:
    data = ["same", "same", "other"]
    experiment = load_experiment("sinusoid", SEALED)
    first, second, other = (
        Run.create(tmp_path, experiment, f"run{n}", fingerprint=d) for n, d in enumerate(data)
    )
    for run in (first, second, other):
        record_look(run, result)
    assert [look.run for look in looks(first)[0]] == ["run0", "run1"]
    assert [look.run for look in looks(other)[0]] == ["run2"]
    assert "run0" in look_lines(second)[1]


def test_a_look_that_was_cut_out_is_noticed(tmp_path: Path, result: MetaTest) -> None:
    run = Run.create(tmp_path, load_experiment("sinusoid", SEALED), fingerprint="data")
    for _ in range(3):
        record_look(run, result)
    file = tmp_path / run.path.name / SEALED_FILE
    first, _, third = file.read_text().splitlines(keepends=True)
    file.write_text(first + third)
    assert "lines are missing" in look_lines(run)[-1]
    file.write_text("")
    assert "somebody has removed it" in look_lines(run)[1]


def test_a_look_that_cannot_be_recorded_shows_no_score(
    tmp_path: Path, result: MetaTest, read_only_folder: Path
) -> None:
    run = Run.create(tmp_path, load_experiment("sinusoid", SEALED), fingerprint="data")
    (tmp_path / run.path.name / SEALED_FILE).symlink_to(read_only_folder / "sealed.jsonl")
    with pytest.raises(RunError, match="cannot be recorded, so that no score is shown"):
        record_look(run, result)
