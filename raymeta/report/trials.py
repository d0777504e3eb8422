"""The part of a run's page that is about its trials: plots that one filter serves, and a table."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter

from raymeta.console.text import clock_text, plus_minus, value_text
from raymeta.experiment.schema import Experiment
from raymeta.report import trial_plots
from raymeta.report.facts import RunFacts
from raymeta.report.page import Page
from raymeta.report.words import STATUS_WORDS, source_words, trial_lines
from raymeta.search.records import Curve
from raymeta.search.results import finished_best, summaries
from raymeta.search.space import Point

_MOST_ROWS = 1000  # of the table


def write_trials(page: Page, facts: RunFacts) -> None:
    """Adds the section; a run without a trial has none."""
    records = list(facts.trials.records.values())
    if not records:
        return
    experiment = facts.experiment
    page.section("The trials")
    page.lines((text, style) for text, style in trial_lines(facts.trials) if style != "yellow")
    counts = Counter(record.status for record in records)
    page.filters(
        [
            (state, f"{STATUS_WORDS[state]} ({count})", trial_plots.STATE_COLOURS[state])
            for state, count in counts.items()
        ]
    )
    shown = trial_plots.shown_trials(records, experiment.problem.sign)
    if len(shown) < len(records):
        page.text(f"The plots show the best {len(shown)} of {len(records)} trials.", "yellow")
    for title, told, figure in (
        (
            "Results, trial by trial",
            "Each trial's last validation, ± its standard error.",
            trial_plots.progress_figure(shown, experiment),
        ),
        ("Learning curves", "", trial_plots.learning_figure(shown, experiment)),
        (
            "All keys at once",
            "A line is a trial: orange ones are the best, grey ones the worst.",
            trial_plots.parallel_figure(shown, experiment),
        ),
        (
            "Pareto front",
            "No trial is better in both than one on the green line; a click picks one of them.",
            trial_plots.front_figure(facts.trials.records, experiment),
        ),
    ):
        if figure is not None:
            page.heading(title)
            if told:
                page.text(told, "dim")
            page.plot(figure, title)
    page.heading("Table")
    page.text(
        "A click on a row, or on a point of a plot, picks that trial out in every plot, and says "
        "how to train it alone.",
        "dim",
    )
    _trial_table(page, facts)


def _trial_table(page: Page, facts: RunFacts) -> None:
    experiment = facts.experiment
    keys = list(experiment.search.space)
    unit, per_second = _cost(experiment)
    second = [name for name, _ in experiment.objectives[1:]]
    head = ["trial", experiment.metric, *second, "state", "meta-steps", "time", unit, "point"]
    best = finished_best(experiment, summaries(facts.trials))
    rows, marks = [], []
    for number, trial in enumerate(summaries(facts.trials)[:_MOST_ROWS], start=1):
        record = trial.record
        sem = record.curve[-1][2] if record.curve else None
        lasted = record.latest_s - record.began_s if record.began_s is not None else math.nan
        is_timed = math.isfinite(lasted) and lasted >= 0
        state = STATUS_WORDS[record.status]
        if best is not None and best.trial_id == trial.trial_id:
            state += ", the best"
        rows.append(
            [
                str(number),
                plus_minus(trial.value, sem) if record.curve else "",
                *(_last_text(record.curve_of(1, name)) for name in second),
                state,
                str(trial.steps),
                clock_text(lasted) if is_timed else "",
                f"{per_second * lasted:.2g}" if is_timed else "",
                source_words(record.source),
                *(value_text(record.point[key]) if key in record.point else "" for key in keys),
            ]
        )
        marks.append((number, record.status, _train_command(facts, record.point)))
    page.table([*head, *keys], rows, marks)
    if len(facts.trials.records) > _MOST_ROWS:
        page.text(f"and {len(facts.trials.records) - _MOST_ROWS} more: see trials.jsonl", "yellow")


def _last_text(curve: Curve) -> str:
    return f"{curve[-1][1]:.3g}" if curve else ""


def _cost(experiment: Experiment) -> tuple[str, float]:
    """The unit of a trial's cost, and the cost of one second."""
    resources = experiment.resources
    if resources.gpus_per_worker:
        return "GPU-hours", resources.num_workers * resources.gpus_per_worker / 3600
    return "CPU-hours", resources.num_workers * resources.cpus_per_worker / 3600


def _train_command(facts: RunFacts, point: Point) -> str:
    """The command that trains a trial's values alone."""
    values = (f"--set {shlex.quote(f'{key}={json.dumps(v)}')}" for key, v in point.items())
    file = shlex.quote(str(facts.run.experiment_file))
    return " ".join(["raymeta train", file, *values])
