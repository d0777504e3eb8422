"""`raymeta new` and `raymeta inspect` lead from a file to a searched experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import raymeta
from raymeta.cli import app
from raymeta.errors import DataError, ExperimentError
from tests.tasks.test_guess import table, written


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    written(tmp_path, table(3, num_people=6), "readings.parquet")
    return tmp_path


def run(*arguments: str) -> str:
    """Runs a command and returns its output; raises its error."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


NEW = ("new", "readings.parquet", "--target", "kind", "--task", "person", "-o", "mine.yaml")


def test_new_says_what_it_guessed_and_inspect_shows_the_tasks(folder: Path) -> None:
    told = run(*NEW)
    assert "recording: by its name; 90 sequences" in told
    assert "a task is one person with all 3 classes of kind" in told
    shown = run("inspect", "mine.yaml")
    assert "90 of 90 sequences are used" in shown
    assert "no person and no equal sequence is in two splits" in shown
    assert "Episode 0 of the meta-test" in shown
    counts = [line.split()[1:4] for line in shown.splitlines() if line.startswith("meta-")]
    assert counts == [["60", "3", "4"], ["15", "3", "1"], ["15", "3", "1"]]


def test_a_file_is_never_overwritten(folder: Path) -> None:
    run(*NEW)
    before = (folder / "mine.yaml").read_bytes()
    with pytest.raises(ExperimentError, match=r"mine.yaml: exists already; .* -o"):
        run(*NEW)
    assert (folder / "mine.yaml").read_bytes() == before


def test_inspect_shows_the_counts_before_it_refuses(folder: Path) -> None:
    run(*NEW)
    result = CliRunner().invoke(app, ["inspect", "mine.yaml", "--set", "tasks.num_queries=50"])
    assert isinstance(result.exception, DataError)
    assert "meta-train" in result.output
    assert "what would fit: num_ways: 3, num_shots: 1, num_queries: 4" in result.output


@pytest.mark.ray
@pytest.mark.slow
def test_tune_runs_the_file_as_it_is(folder: Path) -> None:
    run(*NEW)
    short = {"training.meta_steps": 4, "training.eval_every": 2, "training.val_episodes": 4}
    budget = {"search.num_trials": 2, "search.num_sobol": 2, "search.grace_steps": 2}
    report = raymeta.tune(
        "mine.yaml",
        overrides={**short, **budget, "evaluation.num_episodes": 10},
        runs_dir=folder / "runs",
        keep_data=True,
    )
    assert np.isfinite(report.meta_test.rows[0].score.mean)
    assert report.meta_test.units["person"] == 1
    assert (Path(str(report.run.path)) / "data" / "readings.parquet").is_file()
