"""`train` with a refit is killed by SIGKILL midway, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.evaluation.networks import REFIT_FILE
from raymeta.evaluation.scores import ENSEMBLE
from raymeta.experiment.file import load_experiment, with_values
from raymeta.run_folder import Run, runs
from raymeta.search.trial_log import logged_trials
from raymeta.training.checkpoint import read_state
from raymeta.training.trainer import build_trainer
from tests.search.helpers import TINY, assert_same_bits, kill_driver, local_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

META_STEPS = 96
OVERRIDES = [*TINY, "search.refit={steps: 16, seeds: 2}"]
DRIVER = """
import sys
from raymeta import api
api.train("pen-maml", overrides=sys.argv[2:], runs_dir=sys.argv[1])
"""
TIMEOUT_S = 240


def freeze_in_the_refit(driver: subprocess.Popen[bytes], runs_dir: Path) -> Run:
    """Stops the driver after a training of the refit has reported, before it ends."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and driver.poll() is None:
        os.kill(driver.pid, signal.SIGSTOP)
        for run in runs(runs_dir):
            records = logged_trials(run.refit).records.values()
            if any(r.status == "running" and len(r.curve) > 2 for r in records):
                return run
        os.kill(driver.pid, signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail("the run did not come to its refit")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> api.Report:
    runs_dir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-c", DRIVER, str(runs_dir), *OVERRIDES]
    driver = subprocess.Popen(command, start_new_session=True)
    try:
        run = freeze_in_the_refit(driver, runs_dir)
    finally:
        kill_driver(driver)
    assert run.status == "refitting"
    (searched,) = logged_trials(run).records.items()
    before = logged_trials(run.refit).records
    with local_ray(num_cpus=2):
        report = api.train(resume=run.path.name, runs_dir=runs_dir)
    assert report.trials == dict([searched])
    after = logged_trials(run.refit).records
    assert list(after)[: len(before)] == list(before)
    assert {record.status for record in after.values()} == {"completed"}
    for trial_id, record in before.items():
        assert after[trial_id].curve[: len(record.curve)] == record.curve
    return report


@pytest.mark.parametrize(("role", "seed"), [("tuned", 0), ("tuned-1", 1)])
def test_a_refit_that_was_killed_comes_to_the_same_bits(
    resumed: api.Report, role: str, seed: int
) -> None:
    values = {"training.meta_steps": META_STEPS, "training.seed": seed}
    trainer = build_trainer(with_values(load_experiment("pen-maml", OVERRIDES), values))
    trainer.train(META_STEPS)
    found = read_state(resumed.run.model_file(role)).meta_params
    assert_same_bits(found, trainer.meta_params)


def test_the_meta_test_is_of_all_seeds(resumed: api.Report) -> None:
    tuned, ensemble, *controls = resumed.meta_test.rows
    assert (tuned.name, ensemble.name, ensemble.label) == ("tuned", ENSEMBLE, "ensemble of 2 seeds")
    assert len(tuned.seeds) == 2
    assert tuned.score.mean == pytest.approx(sum(tuned.seeds) / 2)
    assert resumed.meta_test.controls == tuple(controls)
    assert resumed.best.training.meta_steps == META_STEPS
    loaded = api.load_report(resumed.run)
    assert loaded is not None
    assert loaded.meta_test == resumed.meta_test


def test_best_yaml_trains_the_same_again_and_not_longer(resumed: api.Report) -> None:
    best = api.read_experiment(str(resumed.run.path / "best.yaml"))
    assert best.refit_meta_steps == best.training.meta_steps == META_STEPS


def test_a_finished_refit_is_not_run_again(resumed: api.Report) -> None:
    assert api.train(resume=str(resumed.run.path)).meta_test == resumed.meta_test


def test_the_meta_test_is_repeated_with_all_seeds(resumed: api.Report) -> None:
    results = resumed.run.read_json("results.json")
    again = api.evaluate(str(resumed.run.path))
    assert again.meta_test == resumed.meta_test
    assert resumed.run.read_json("results.json") == results


def test_a_damaged_record_of_the_refit_is_refused_with_the_remedy(resumed: api.Report) -> None:
    record = Path(str(resumed.run.path / REFIT_FILE))
    whole = record.read_bytes()
    try:
        record.write_text('{"seeds": "many"}')
        with pytest.raises(RunError, match=r"refit\.json: is damaged; put back a copy"):
            api.evaluate(str(resumed.run.path))
    finally:
        record.write_bytes(whole)
