from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from raymeta.evaluation.networks import Refitted
from raymeta.evaluation.scores import (
    Coverage,
    MetaTest,
    Reliability,
    Row,
    Score,
    SetCoverage,
    UnlikeTraining,
)
from raymeta.experiment.file import load_experiment
from raymeta.report.words import (
    agreement_lines,
    answer,
    asked,
    certainty_lines,
    interval_lines,
    own_units_table,
    refit_lines,
    trial_lines,
    verdict_lines,
)
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import LoggedTrials, TrialLog


def row(label: str, mean: float, ahead: Score | None = None) -> Row:
    return Row(label, label, Score(mean, 0.01), Score(mean, 0.004), ahead=ahead)


UNITS = {"shape": 10, "writer": 2}
BEATEN = row("random", 0.3, Score(0.5, 0.1))
UNDECIDED = row("joint", 0.79, Score(0.01, 0.02))
BETTER = row("DTW", 0.85, Score(-0.05, 0.02))
BROKEN = row("broken", math.nan, Score(math.nan, math.nan))
FEW = row("words", 0.7, Score(0.1, None))


def lines(*controls: Row) -> list[str]:
    judged = MetaTest("accuracy", True, 600, UNITS, "", (row("tuned", 0.8), *controls))
    return [text for text, _ in verdict_lines(judged)]


def test_all_controls_count_as_beaten_only_if_each_one_is():
    assert lines(BEATEN, row("unadapted", 0.2, Score(0.6, 0.5))) == [
        "every control is beaten: the network is ahead of each by more than 0"
    ]


@pytest.mark.parametrize(
    ("control", "fragment"),
    [
        (UNDECIDED, "NOT beaten, the interval of the difference holds 0: joint"),
        (BETTER, "NOT beaten, the control is better: DTW"),
        (FEW, "no verdict, too few units for an interval: words"),
        (BROKEN, "no verdict, a score is not finite: broken"),
    ],
)
def test_every_control_that_is_not_beaten_is_named(control, fragment):
    assert lines(BEATEN, control) == [fragment, "beaten: random"]
    assert lines(control) == [fragment]


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (
            UNITS,
            [
                "intervals are over what is new to the network: 10 × shape, 2 × writer",
                "for more episodes of the same, the first row's would be ± 0.004",
            ],
        ),
        (
            {"sentence": 996, "domain": 1},
            [
                "intervals are over what is new to the network: 996 × sentence",
                "only 1 × domain: nothing here holds for another domain",
                "for more episodes of the same, the first row's would be ± 0.004",
            ],
        ),
        (
            {"writer": 1},
            [
                "no intervals: there are too few units",
                "only 1 × writer: nothing here holds for another writer",
            ],
        ),
        ({}, ["intervals are over episodes: the tasks do not say what is new at deployment"]),
    ],
)
def test_what_intervals_are_over_is_said_in_words(units, expected):
    judged = MetaTest("accuracy", True, 600, units, "", (row("tuned", 0.8),))
    assert interval_lines(judged) == expected


def test_every_control_is_in_one_line():
    text = "\n".join(lines(BEATEN, UNDECIDED, BETTER, BROKEN))
    assert all(text.count(control.label) == 1 for control in (BEATEN, BETTER, BROKEN))
    assert "every control is beaten" not in text


def record(source: str, status: str = "completed") -> TrialRecord:
    return TrialRecord({}, source, status)  # type: ignore[arg-type]


def test_the_sources_of_all_points_are_counted():
    trials = LoggedTrials(
        {
            "a": record("given"),
            "b": record("sobol"),
            "c": record("bo", "early_stopped"),
            "d": record("bo"),
            "e": record("random"),
        }
    )
    assert [text for text, _ in trial_lines(trials)] == [
        "5 trials: 4 completed, 1 stopped early",
        "points: 1 from the file, 1 from the Sobol sequence, 2 from the model, 1 random",
    ]


def test_points_that_are_random_because_the_model_failed_are_named_apart():
    failed = [replace(record("fallback"), reason=f"NanError: {part}") for part in ("fit", "x")]
    trials = LoggedTrials({"a": record("bo"), "b": failed[0], "c": failed[1]})
    assert [text for text, _ in trial_lines(trials)][2:] == [
        "2 of 3 points were drawn at random because the search's model failed: NanError: fit"
    ]


def test_skipped_steps_and_the_reasons_of_trials_without_a_result_are_reported():
    trials = LoggedTrials(
        {"a": record("given"), "b": record("bo", "abandoned"), "c": record("bo", "failed")},
        errors={"b": "lower maml.inner_lr", "c": "Traceback\n  …\nRayActorError: it died\n"},
        num_skipped={"a": 3, "c": 0},
        notes=["a line of trials.jsonl was damaged"],
    )
    lines = [text for text, _ in trial_lines(trials)]
    assert "3 trials: 1 completed, 1 failed, 1 without a finite result" in lines
    assert "meta-steps skipped because they were not finite: 3 of trial 1" in lines
    assert "trial 2: lower maml.inner_lr" in lines
    assert "trial 3: RayActorError: it died" in lines
    assert "a line of trials.jsonl was damaged" in lines


def test_many_errors_are_cut_short():
    names = [f"t{number}" for number in range(40)]
    trials = LoggedTrials(
        {name: record("bo", "failed") for name in names}, errors=dict.fromkeys(names, "it died")
    )
    lines = [text for text, _ in trial_lines(trials)]
    assert len(lines) < 12
    assert lines[-1] == "and 35 more trials with an error: see trials.json"


def test_the_report_says_whether_validation_separates_the_finished_trials() -> None:
    trials = LoggedTrials({str(n): record("sobol") for n in range(6)})
    assert not agreement_lines(trials)
    trials.halves = {str(n): (0.1 * n, 0.2 * n) for n in range(6)}
    ((text, style),) = agreement_lines(trials)
    assert text.startswith("validation separates the 6 finished trials (ranked by halves")
    assert "ρ = 1.00" in text
    trials.halves = {str(n): (0.1 * n, 0.2 * (n % 2)) for n in range(6)}
    ((text, style),) = agreement_lines(trials)
    assert "validation separates the 6 finished trials no better than chance" in text
    assert style == "yellow"
    trials.halves = {str(n): (0.1 * n, 0.2 * n) for n in range(4)}
    ((text, _),) = agreement_lines(trials)
    assert text == "4 trials came to their end: too few to say that the best is better"


def test_the_result_of_a_refit_is_shown(tmp_path):
    run = Run.create(tmp_path, load_experiment("pen", ["search.refit={steps: 2, seeds: 2}"]))
    log = TrialLog(run.refit)
    Path(str(run.refit.trials_dir)).mkdir()
    point = {"training.meta_steps": 10, "training.seed": 1}
    log.set("a", TrialRecord(point, "given", "abandoned"), error="diverged\nlower the rate")
    steps = run.experiment().refit_meta_steps
    assert refit_lines(run) == [
        (
            "refit: no training of the winner came to its end; the network is the search's own",
            "yellow",
        ),
        ("refit, training.seed 1: lower the rate", "yellow"),
    ]
    Refitted((0,), steps).keep(run)
    assert refit_lines(run)[0] == (
        f"refit: 1 of 2 trainings of the winner, {steps} meta-steps each",
        "",
    )
    plain = Run.create(tmp_path, load_experiment("pen-maml"))
    assert refit_lines(plain) == []


def judged(*controls: Row, own: float = 0.8) -> MetaTest:
    first = replace(row("tuned network", own), steps=2)
    return MetaTest("accuracy", True, 600, UNITS, "", (first, *controls))


def test_the_answer_is_as_careful_as_the_verdicts():
    assert answer(judged(BEATEN, UNDECIDED, BETTER, FEW)) == (
        "On new tasks the tuned network has an accuracy of 0.800 ± 0.010 after 2 adaptation steps "
        "(95 % interval over 10 × shape, 2 × writer). It beats 1 of 4 controls for sure; 1 is "
        "better than it; for 2 the test cannot tell."
    )
    assert "It beats all 2 controls for sure." in answer(judged(BEATEN, BEATEN))
    assert answer(judged()).endswith("There were no controls.")


def test_an_answer_without_an_interval_says_so():
    few = replace(judged(FEW), rows=(replace(row("net", 0.8), score=Score(0.8, None)), FEW))
    assert "0.800 (no interval is known: there are too few units)" in answer(few)


def test_what_was_asked_names_task_learner_and_search():
    assert (
        asked(load_experiment("pen"))[0] == "5-way 1-shot classification on tasks of the source pen"
    )
    assert asked(load_experiment("employment"))[0].startswith("forecasts of 12 steps on tasks of")
    text = "\n".join(asked(load_experiment("pen")))
    assert "learner alignment" in text
    assert "in up to 8 trials, for the highest val_accuracy" in text
    assert "the winner is trained again" in text
    assert "nothing is searched" in "\n".join(
        asked(load_experiment("pen", ["search.space={}", "search.refit=null"]))
    )


def test_an_ensemble_is_no_control_and_seeds_widen_the_first_interval():
    tuned = replace(row("tuned", 0.8), seeds=(0.79, 0.81, 0.805))
    ensemble = row("ensemble", 0.9, Score(-0.1, 0.02))
    result = MetaTest("accuracy", True, 600, UNITS, "", (tuned, ensemble, BEATEN))
    assert [style for _, style in verdict_lines(result)] == ["green"]
    assert "the first row's, and what it is ahead by, also over 3 seeds" in interval_lines(result)


def test_calibration_and_measures_in_own_units_are_reported_where_there_are_some() -> None:
    judged = MetaTest("accuracy", True, 600, UNITS, "", (row("tuned", 0.8), BEATEN))
    assert certainty_lines(judged) == []
    assert own_units_table(judged) == ([], [])
    told = replace(judged, reliability=Reliability(1.5, 0.02, 0.09))
    (line,) = certainty_lines(told)
    assert "error 0.020 (15 bins) with temperature 1.50 from meta-validation, 0.090 without" in line
    coverage = Coverage(0.9, Score(0.913, 0.021), 100, 30.25, 20.5, 44.125, "the unit of dose")
    told = replace(judged, coverage=coverage, unlike=UnlikeTraining(1.875, 0.005, 200, 0.015, 600))
    of_intervals, of_supports = certainty_lines(told)
    assert of_intervals == (
        "intervals of 90 %, from 100 tasks of meta-validation, hold 0.913 ± 0.021 of the values, "
        "and are ± 30.2 on average (20.5 to 44.1) wide in the unit of dose"
    )
    assert of_supports == (
        "support examples: 1.5 % of 600 meta-test tasks are called unlike meta-training, and 0.5 % "
        "of 200 meta-validation tasks, which set the threshold (distance 1.88)"
    )
    even = replace(told, coverage=replace(coverage, narrowest=30.25, widest=30.25, unit=""))
    assert certainty_lines(even)[0].endswith("and are ± 30.2 wide")
    few_persons = replace(told, coverage=replace(coverage, val_units={"person": 2}))
    assert "100 tasks of meta-validation (2 × person), hold" in certainty_lines(few_persons)[0]
    sets = SetCoverage(0.9, Score(0.871, 0.031), 2.345, 5, 100, {"writer": 2, "shape": 10})
    told = replace(judged, sets=sets)
    (line,) = certainty_lines(told)
    assert line == (
        "sets of 90 %, from 100 tasks of meta-validation (2 × writer, 10 × shape), hold 0.871 ± "
        "0.031 of the classes, and have 2.35 of 5 classes on average"
    )
    assert MetaTest.from_json(json.loads(json.dumps(told.to_json()))) == told
    own = replace(row("tuned", 0.8), own_units={"sMAPE in %": Score(12.345678, 0.25)})
    few = replace(FEW, own_units={"sMAPE in %": Score(13.0, None)})
    head, rows = own_units_table(replace(judged, rows=(own, BEATEN, few)))
    assert head == ["", "sMAPE in %"]
    assert rows == [["tuned", "12.35 ± 0.25"], ["words", "13, no ±"]]
