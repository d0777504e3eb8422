"""RUN/report.html: a run for the person who decides, whatever became of it."""

from __future__ import annotations

import math
import shlex
from collections import Counter

from raymeta.console.text import clock_text, plus_minus, value_text
from raymeta.evaluation.scores import ENSEMBLE, MetaTest, Row
from raymeta.experiment.file import to_yaml
from raymeta.experiment.schema import Experiment
from raymeta.report import model_plots, plots, trial_plots
from raymeta.report.facts import RunFacts, read_facts
from raymeta.report.page import Page
from raymeta.report.per_unit import unit_table
from raymeta.report.words import (
    STATUS_WORDS,
    answer,
    asked,
    interval_lines,
    own_units_table,
    refit_lines,
    reliability_lines,
    source_words,
    trial_lines,
    verdict_lines,
)
from raymeta.run_folder import Run
from raymeta.search.results import finished_best, summaries
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath

REPORT_FILE = "report.html"
_MOST_ROWS = 1000  # of the table of trials
_LONGEST_ERROR = 2000  # characters


def write_page(run: Run) -> AnyPath:
    """Writes a run's page to its folder, from what is recorded there.

    Returns:
        The page's path.

    Raises:
        RunError: the run cannot be read, or the page not be written.
    """
    path = run.path / REPORT_FILE
    write_file(path, report_page(read_facts(run)).encode())
    return path


def report_summary(result: MetaTest, run: Run) -> str:
    """The answer and the table of the meta-test as a piece of HTML, without scripts."""
    page = Page(run.path.name)
    page.answer(answer(result))
    page.lines(verdict_lines(result))
    _score_table(page, result)
    page.text(f"the whole report: {run.path / REPORT_FILE}", "dim")
    return page.fragment()


def report_page(facts: RunFacts) -> str:
    """The page as HTML."""
    page = Page(f"{facts.experiment.name} – {facts.name}")
    page.header(facts.experiment.name, f"run {facts.name}, {facts.run.status}")
    _answer(page, facts)
    _asked(page, facts.experiment)
    if facts.meta_test is not None:
        _meta_test(page, facts, facts.meta_test)
    if facts.best is not None and facts.experiment.search.space:
        _winner(page, facts, facts.best)
    _trials(page, facts)
    _model(page, facts)
    _problems(page, facts)
    _time(page, facts)
    _repeat(page, facts)
    _missing(page, facts)
    return page.html()


def _answer(page: Page, facts: RunFacts) -> None:
    page.section("The answer")
    result = facts.meta_test
    if result is None:
        best = finished_best(facts.experiment, summaries(facts.trials))
        sentence = f"There is no answer yet: the run is {facts.run.status}."
        if best is not None:
            metric, numbers = facts.experiment.metric, list(facts.trials.records)
            value = plus_minus(best.value, best.record.curve[-1][2])
            number = numbers.index(best.trial_id) + 1
            sentence += (
                f" The best finished trial so far is number {number} with {metric} {value} (± its "
                "standard error), on the validation, which the search chooses by."
            )
        page.answer(sentence)
        page.text(f"To go on: {facts.run.resume_command}")
        return
    page.answer(answer(result))
    page.lines(verdict_lines(result))
    page.lines((line, "dim") for line in interval_lines(result))
    page.lines((line, "yellow") for line in facts.looks)


def _asked(page: Page, experiment: Experiment) -> None:
    page.section("What was asked")
    page.lines((line, "") for line in asked(experiment))
    if experiment.search.space:
        page.heading("What was searched")
        rows = [
            [key, _range_text(experiment, key), value_text(experiment.value(key))]
            for key in experiment.search.space
        ]
        page.table(["key", "searched in", "in the file"], rows)


def _range_text(experiment: Experiment, key: str) -> str:
    dimension = experiment.search.space[key]
    if dimension.choices is not None:
        text = ", ".join(map(value_text, dimension.choices))
    else:
        text = f"{value_text(dimension.low)} to {value_text(dimension.high)}"
        text += ", logarithmic" if dimension.log else ""
        text += f", in steps of {value_text(dimension.step)}" if dimension.step else ""
    for parent, values in (dimension.when or {}).items():
        text += f"; only while {parent} is {' or '.join(map(value_text, values))}"
    return text


def _meta_test(page: Page, facts: RunFacts, result: MetaTest) -> None:
    page.section("The meta-test")
    intervals = "95 % intervals"
    page.text(
        f"{result.num_episodes} episodes of tasks that the network has never seen; {intervals}."
    )
    if result.note:
        page.text(result.note, "dim")
    page.plot(plots.score_figure(result), f"{result.metric} of each contestant with its interval")
    ends = [(r.score.mean, r.score.half_width or 0.0) for r in result.rows]
    if result.metric == "accuracy" and any(m - w < 0 or m + w > 1 for m, w in ends):
        page.text("Intervals are cut at 0 and 1 here; the table has them whole.", "dim")
    if result.controls:
        page.heading("How far it is ahead of each control")
        page.text(
            "Mean differences over the same queries. Their intervals are narrower than those of "
            "two scores, since what is hard for one is mostly hard for the other. Green: beaten. "
            "Orange: the interval holds 0. Red: the control is better, left of 0."
        )
        page.plot(plots.lead_figure(result), "lead over each control with its interval")
    _score_table(page, result)
    page.lines((line, "dim") for line in reliability_lines(result))
    head, rows = own_units_table(result)
    if rows:
        page.heading("In own units")
        page.table(head, rows)
    if facts.scores is not None:
        for axis in facts.scores.queries.units:
            figure = plots.gain_figure(result, facts.scores, axis)
            if figure is not None:
                page.heading(f"Gain on each {axis}")
                page.text(
                    "Mean lead over the hardest control; the legend adds the others. Units are "
                    "numbered as in the data.",
                    "dim",
                )
                page.plot(figure, f"lead on each {axis}")
            head, rows = unit_table(result, facts.scores, axis)
            if rows:
                page.table(head, rows)
    figure = plots.curve_figure(result)
    page.heading("Adaptation")
    if len(result.rows[0].curve) < 2:
        page.text("The network adapts at once: it has no curve over adaptation steps.")
    if figure is not None:
        page.text("Bands are 95 % intervals for more episodes of the same tasks.", "dim")
        page.plot(figure, f"{result.metric} after each adaptation step")


def _score_table(page: Page, result: MetaTest) -> None:
    rows = [_row(result, row, number) for number, row in enumerate(result.rows)]
    page.table(["", result.metric, "adaptation steps", "ahead of it by", "verdict"], rows)


def _row(result: MetaTest, row: Row, number: int) -> list[str]:
    details = [row.detail] if row.detail else []
    if row.seeds:
        details.append(f"{len(row.seeds)} seeds: {min(row.seeds):.3f} to {max(row.seeds):.3f}")
    name = f"{row.label} ({'; '.join(details)})" if details else row.label
    ahead = "" if row.ahead is None else plus_minus(row.ahead.mean, row.ahead.half_width)
    is_control = number > 0 and row.name != ENSEMBLE
    score = plus_minus(row.score.mean, row.score.half_width)
    steps = "" if row.steps is None else str(row.steps)
    return [name, score, steps, ahead, result.verdict(row) if is_control else ""]


def _winner(page: Page, facts: RunFacts, best: Experiment) -> None:
    page.section("The winner")
    head, rows = ["key", "tuned", "in the file"], []
    for key in facts.experiment.search.space:
        row = [key, value_text(best.value(key)), value_text(facts.experiment.value(key))]
        if facts.importance:
            share = facts.importance.get(key)
            row.append("" if share is None else f"{100 * share:.0f} %")
        rows.append(row)
    if facts.importance:
        head.append("share of the variance")
    page.table(head, rows)


def _trials(page: Page, facts: RunFacts) -> None:
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
    for title, figure in (
        ("Results, trial by trial", trial_plots.progress_figure(shown, experiment)),
        ("Learning curves", trial_plots.learning_figure(shown, experiment)),
        ("All keys at once", trial_plots.parallel_figure(shown, experiment)),
        ("Pareto front", trial_plots.front_figure(facts.trials.records, experiment)),
    ):
        if figure is not None:
            page.heading(title)
            page.plot(figure, title)
    page.heading("Table")
    page.text("A click on a row, or on a point, picks that trial out in every plot.", "dim")
    _trial_table(page, facts)


def _trial_table(page: Page, facts: RunFacts) -> None:
    experiment = facts.experiment
    keys = list(experiment.search.space)
    head = ["trial", experiment.metric, "state", "meta-steps", "time", "point", *keys]
    rows, marks = [], []
    for number, trial in enumerate(summaries(facts.trials)[:_MOST_ROWS], start=1):
        record = trial.record
        sem = record.curve[-1][2] if record.curve else None
        lasted = record.latest_s - record.began_s if record.began_s is not None else math.nan
        rows.append(
            [
                str(number),
                plus_minus(trial.value, sem) if record.curve else "",
                STATUS_WORDS[record.status],
                str(trial.steps),
                clock_text(lasted) if math.isfinite(lasted) and lasted >= 0 else "",
                source_words(record.source),
                *(value_text(record.point[key]) if key in record.point else "" for key in keys),
            ]
        )
        marks.append((number, record.status))
    page.table(head, rows, marks)
    if len(facts.trials.records) > _MOST_ROWS:
        page.text(f"and {len(facts.trials.records) - _MOST_ROWS} more: see trials.jsonl", "yellow")


def _model(page: Page, facts: RunFacts) -> None:
    if not facts.importance and not facts.analyses:
        return
    metric = facts.experiment.metric
    page.section("What the search's model says")
    page.text(
        "A Gaussian process fitted to the trials; bands are its 95 % intervals. An interaction "
        "counts for each of its keys, so that shares may add up to more than 100 %.",
        "dim",
    )
    if facts.importance:
        page.heading("What matters")
        page.plot(model_plots.importance_figure(facts.importance, metric), "importance of each key")
    for analysis in facts.analyses:
        figure = model_plots.analysis_figure(analysis, facts.experiment)
        if figure is not None:
            title = model_plots.analysis_title(analysis)
            page.heading(title)
            page.plot(figure, title)


def _problems(page: Page, facts: RunFacts) -> None:
    page.section("What was skipped or failed")
    lines = [line for line in trial_lines(facts.trials) if line[1] == "yellow"]
    lines += refit_lines(facts.run) if facts.refit is not None else []
    if facts.meta_test is not None and facts.experiment.search.space:
        names = {row.name for row in facts.meta_test.rows}
        if "default" not in names:
            lines.append(("the file's configuration did not finish: no comparison", "yellow"))
    page.lines(lines)
    if not lines:
        page.text("Nothing.", "green")
    for number, trial_id in enumerate(facts.trials.records, start=1):
        error = facts.trials.errors.get(trial_id, "").strip()
        if "\n" in error:
            page.code(error[-_LONGEST_ERROR:], f"trial {number}: the whole message")


def _time(page: Page, facts: RunFacts) -> None:
    page.section("Time and cost")
    resources = facts.experiment.resources
    records = list(facts.trials.records.values())
    times = [r.latest_s - r.began_s for r in records if r.began_s is not None]
    page.text(f"{clock_text(facts.seconds)} in all (search, refit, controls and meta-test).")
    per_trial = f"{resources.num_workers} × {value_text(resources.cpus_per_worker)} CPU"
    if resources.gpus_per_worker:
        per_trial += f" and {resources.num_workers} × {value_text(resources.gpus_per_worker)} GPU"
    if times:
        each = f"{clock_text(sum(times) / len(times))} on average, {clock_text(max(times))} at most"
        hours = sum(times) * resources.num_workers / 3600
        cpu_hours = hours * resources.cpus_per_worker
        cost = f"{cpu_hours:.2g} CPU-hours"
        if resources.gpus_per_worker:
            cost += f" and {hours * resources.gpus_per_worker:.2g} GPU-hours"
        page.text(f"A trial took {each}, with {per_trial}; the {len(times)} trials {cost}.")
        shown = trial_plots.shown_trials(records, facts.experiment.problem.sign)
        figure = trial_plots.time_figure(shown)
        if figure is not None:
            page.plot(figure, "when each trial ran")
    else:
        page.text(f"The times of single trials are not recorded. Each had {per_trial}.")
    page.text("A price is not recorded.", "dim")


def _repeat(page: Page, facts: RunFacts) -> None:
    page.section("To repeat it")
    experiment, origin = facts.experiment, facts.origin
    lines = [f"seed {experiment.seed}, training seed {experiment.training.seed}"]
    if origin is not None:
        versions = ", ".join(f"{name} {number}" for name, number in origin.versions.items())
        lines += [versions, f"data: fingerprint {origin.data or 'unknown'}"]
    page.lines((line, "") for line in lines)
    command = "tune" if experiment.search.space else "train"
    name = shlex.quote(str(facts.run.path))
    page.code(
        f"# the same again, its meta-test alone, and this page alone:\n"
        f"raymeta {command} {shlex.quote(str(facts.run.experiment_file))}\n"
        f"raymeta evaluate {name}\nraymeta report {name}"
    )
    page.code(to_yaml(experiment), "experiment.yaml, with all defaults")


def _missing(page: Page, facts: RunFacts) -> None:
    page.section("What is not on this page")
    lines = [*facts.missing, "a confusion matrix and drawn episodes: a run keeps no predictions"]
    page.lines((line, "dim") for line in lines)
