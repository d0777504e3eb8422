from __future__ import annotations

import io
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.table import Table

from raymeta.console.tables import (
    _score_table,
    print_runs,
)
from raymeta.console.terminal import Terminal
from raymeta.evaluation.networks import Refitted
from raymeta.evaluation.scores import MetaTest, Score
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from tests.report.test_words import BEATEN, UNITS, row


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_narrow_terminal_cuts_no_number_of_the_meta_test(width):
    few = replace(row("a control of few units", 3.0, Score(0.8, None)), score=Score(3.0, None))
    joint = row("joint training + fine-tuning", 3.6, Score(-0.1, 0.2))
    result = MetaTest(
        "squared error",
        False,
        600,
        UNITS,
        "",
        (
            row("tuned network", 3.8),
            replace(joint, score=Score(3.6, 1.0), steps=3),
            row("a broken control", math.nan, Score(0.0, math.nan)),
            few,
        ),
    )
    raw = io.StringIO()
    report = SimpleNamespace(experiment=load_experiment("sinusoid"), meta_test=result)
    Terminal(file=raw, width=width).print(_score_table(report))  # type: ignore[arg-type]
    text = raw.getvalue()
    assert "3.600 ± 1.000" in text
    assert "not finite" in text
    assert "3.000, no ±" in text
    if width >= 60:
        assert "-0.100 ± 0.200" in text
        assert "steps" in text


@pytest.mark.parametrize(
    ("name", "title"),
    [("pen", "5-way 1-shot"), ("sentiment", "2-way 5-shot"), ("sinusoid", "10 points")],
)
def test_the_title_names_ways_and_shots_of_the_tasks(name, title):
    result = MetaTest("accuracy", True, 600, UNITS, "", (row("tuned", 0.8),))
    report = SimpleNamespace(experiment=load_experiment(name), meta_test=result)
    assert title in str(_score_table(report).title)  # type: ignore[arg-type]


def test_an_ensemble_is_not_a_control_and_seeds_show_their_spread():
    tuned = replace(row("tuned", 0.8), seeds=(0.79, 0.81, 0.805))
    ensemble = row("ensemble", 0.9, Score(-0.1, 0.02))
    judged = MetaTest("accuracy", True, 600, UNITS, "", (tuned, ensemble, BEATEN))
    report = SimpleNamespace(experiment=load_experiment("pen"), meta_test=judged)
    text = shown(_score_table(report))  # type: ignore[arg-type]
    assert "tuned (3 seeds: 0.790 to 0.810)" in text


def test_the_list_of_runs_says_which_were_refitted(tmp_path):
    judged = MetaTest("accuracy", True, 600, UNITS, "", (row("tuned", 0.8),))
    for name in ("plain", "refitted"):
        run = Run.create(tmp_path, load_experiment("pen"), name)
        run.write_json("results.json", {"meta_test": judged.to_json()})
    Refitted((0,), 5).keep(run)
    printed = io.StringIO()
    print_runs(
        Terminal(file=printed, width=100), [Run(tmp_path / n) for n in ("plain", "refitted")]
    )
    _, plain, refitted = printed.getvalue().splitlines()
    assert plain.split()[2:4] == ["done", "accuracy"]
    assert refitted.split()[2:5] == ["done,", "refit", "accuracy"]


def shown(table: Table) -> str:
    printed = io.StringIO()
    Terminal(file=printed, width=120).print(table)
    return printed.getvalue()
