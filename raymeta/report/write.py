"""RUN/report.html: a run for the person who decides, whatever became of it."""

from __future__ import annotations

import shlex

from raymeta.console.text import clock_text, plus_minus, value_text
from raymeta.evaluation.drawings import Drawings, DrawnForecast
from raymeta.evaluation.scores import MetaTest
from raymeta.experiment.file import to_yaml
from raymeta.experiment.schema import Experiment
from raymeta.report import drawing_plots, model_plots, plots, trial_plots
from raymeta.report.facts import RunFacts, read_facts
from raymeta.report.page import Page
from raymeta.report.per_unit import unit_table
from raymeta.report.pictures import episode_cards, line_key
from raymeta.report.trials import write_trials
from raymeta.report.words import (
    answer,
    asked,
    certainty_lines,
    interval_lines,
    own_units_table,
    range_words,
    refit_lines,
    score_table,
    trial_lines,
    verdict_lines,
)
from raymeta.run_folder import Run
from raymeta.search.results import finished_best, summaries
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath

REPORT_FILE = "report.html"
_LONGEST_ERROR = 2000  # characters
_MOST_ROWS = 20  # of a table that is not drawn


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
    page.table(*score_table(result))
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
        if facts.drawings is not None:
            _drawings(page, facts, facts.drawings)
    if facts.best is not None and facts.experiment.search.space:
        _winner(page, facts, facts.best)
    write_trials(page, facts)
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
            [key, range_words(experiment.search.space[key]), value_text(experiment.value(key))]
            for key in experiment.search.space
        ]
        page.table(["key", "searched in", "in the file"], rows)


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
    page.table(*score_table(result))
    certainty = certainty_lines(result)
    if certainty:
        page.heading("How sure it is")
        page.lines((line, "") for line in certainty)
    head, rows = own_units_table(result)
    if rows:
        page.heading("In own units")
        page.table(head, rows)
    if facts.scores is not None:
        for axis in facts.scores.queries.units:
            known = facts.drawings.units.get(axis, ()) if facts.drawings is not None else ()
            figure = plots.gain_figure(result, facts.scores, axis, known)
            if figure is not None:
                page.heading(f"Gain on each {axis}")
                numbered = "" if known else " Units are numbered as in the data."
                page.text(
                    "Mean lead over the hardest control; the legend adds the others." + numbered,
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


def _drawings(page: Page, facts: RunFacts, drawings: Drawings) -> None:
    """Draws what the network does: episodes, forecasts, and which classes it confuses."""
    several = facts.meta_test is not None and len(facts.meta_test.rows[0].seeds) > 1
    whose = "the first of the trainings" if several else "the network"
    page.section("What it does")
    if drawings.episodes:
        page.text(f"The first episodes of the meta-test, answered by {whose}.", "dim")
        for number, episode in enumerate(drawings.episodes, start=1):
            page.markup(episode_cards(episode), f"Episode {number}", is_open=number == 1)
    if drawings.forecasts:
        shown = _shown_forecasts(facts, drawings.forecasts[0])
        page.text(
            "A forecast of each of the first series of the meta-test, in the series' own units, "
            f"by {whose} and by controls. What lies behind the dotted line nobody had seen.",
            "dim",
        )
        first = drawings.forecasts[0]
        bands = {f"{first.band_share:g} % interval of {whose}": drawing_plots.BAND}
        page.markup(line_key({"the series": plots.GREY, **shown, **(bands if first.band else {})}))
        page.begin_grid()
        for forecast in drawings.forecasts:
            figure = drawing_plots.forecast_figure(forecast, shown)
            page.plot(figure, f"forecast of {forecast.series}")
        page.end_grid()
    if drawings.fits:
        page.text(f"The first tasks of the meta-test, answered by {whose}.", "dim")
        page.begin_grid()
        for fit in drawings.fits:
            page.plot(drawing_plots.fit_figure(fit), "a fit to the support points")
        page.end_grid()
    if drawings.confusion is not None and len(drawings.confusion.classes) > 1:
        page.heading("What it takes for what")
        left = drawings.confusion.num_left_out
        page.text(
            "Of the queries of each class (row) the share in percent that got each answer "
            "(column). An answer is one of the classes of its episode."
            + f" Without the {left} classes that have the fewest errors."
            * bool(left),
            "dim",
        )
        figure = drawing_plots.confusion_figure(drawings.confusion)
        page.plot(figure, "confusion matrix")
    if drawings.reliability:
        page.heading("Whether its probabilities can be trusted")
        page.text(
            "Of answers given with a probability of 0.8, say, 0.8 should be right: dots on the "
            "dotted line.",
            "dim",
        )
        page.plot(drawing_plots.reliability_figure(drawings.reliability), "reliability")


def _shown_forecasts(facts: RunFacts, drawn: DrawnForecast) -> dict[str, str]:
    """Chooses the forecasters to draw, the network first, with their colours."""
    rows = facts.meta_test.rows if facts.meta_test is not None else ()
    controls = [row.label for row in rows if row.name in ("seasonal_naive", "naive", "ets")]
    found = [next(iter(drawn.forecasts), ""), *(c for c in controls if c in drawn.forecasts)]
    return dict(zip(found, (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE), strict=False))


def _winner(page: Page, facts: RunFacts, best: Experiment) -> None:
    page.section("The winner")
    head, rows = ["key", "tuned", "in the file"], []
    for key in facts.experiment.search.space:
        dimension = facts.experiment.search.space[key]
        is_used = all(best.value(k) in values for k, values in (dimension.when or {}).items())
        tuned = value_text(best.value(key)) if is_used else "unused"
        row = [key, tuned, value_text(facts.experiment.value(key))]
        if facts.importance:
            share = facts.importance.get(key)
            row.append("" if share is None else f"{100 * share:.0f} %")
        rows.append(row)
    if facts.importance:
        head.append("share of the variance")
    page.table(head, rows)


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
        if facts.importance and (analysis.kind, analysis.of) == ("importance", metric):
            continue  # drawn above, with the columns of a choice in one
        title = model_plots.analysis_title(analysis)
        figure = model_plots.analysis_figure(analysis, facts.experiment)
        page.heading(title)
        if figure is not None:
            page.plot(figure, title)
        else:
            rows = list(zip(*analysis.columns.values(), strict=True))
            page.table(list(analysis.columns), rows[:_MOST_ROWS])
            if len(rows) > _MOST_ROWS:
                page.text(f"The first {_MOST_ROWS} of {len(rows)} rows.", "dim")


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
    page.lines((line, "dim") for line in facts.missing)
    if not facts.missing:
        page.text("Nothing.")
