"""The tables of a finished run, the list of runs, and the tables of a cluster's jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raymeta.console.text import clock_text, leaf, plus_minus, value_text
from raymeta.errors import RaymetaError, RunError
from raymeta.experiment.schema import Experiment
from raymeta.finding import Finding
from raymeta.report.words import (
    certainty_lines,
    interval_lines,
    own_units_table,
    problem_words,
    refit_lines,
    trial_lines,
    verdict_lines,
)
from raymeta.run_folder import Run

if TYPE_CHECKING:  # these import Ray and torch, which `raymeta --help` must not wait for
    from raymeta.deploy.jobs.client import Job
    from raymeta.evaluation.scores import MetaTest, Row, Score
    from raymeta.report.comparison import Comparison
    from raymeta.running import Report
    from raymeta.search.records import TrialRecord

LONGEST_WHOLE_CURVE = 10  # in adaptation steps
LAST_LINES = 10  # of a log
SHOWN_DIFFERENCES = 40  # of keys


def print_report(console: Console, report: Report) -> None:
    """Prints the best hyperparameters, the meta-test with its controls, and the run's folder."""
    experiment, result = report.experiment, report.meta_test
    if experiment.search.space:
        table = _table("Best hyperparameters")
        table.add_column("key")
        table.add_column("tuned", justify="right")
        table.add_column("in the file", justify="right", style="dim")
        importance = report.run.importance
        if importance:
            table.add_column("share of the variance", justify="right", style="dim")
        for key in experiment.search.space:
            share = [f"{100 * importance[key]:.0f} %"] if key in importance else []
            values = value_text(report.best.value(key)), value_text(experiment.value(key))
            table.add_row(key, *values, *share)
        console.print()
        console.print(table)
        if experiment.search.against is not None:
            console.print()
            console.print(_front_table(experiment, report.trials))
        console.print()
    from raymeta.search.trial_log import logged_trials  # noqa: PLC0415  (it imports Ray)

    for text, style in (*trial_lines(logged_trials(report.run)), *refit_lines(report.run)):
        console.print(text, style=style, highlight=False, soft_wrap=True)
    console.print()
    console.print(_score_table(report))
    notes = [
        "ahead of it by: mean difference over the same queries; negative: the control is better",
        *interval_lines(result),
        *certainty_lines(result),
        result.note,
    ]
    for text in filter(None, notes):
        console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
    if experiment.evaluation.sealed:
        from raymeta.evaluation.sealed import look_lines  # noqa: PLC0415  (it imports torch)

        for text in look_lines(report.run):
            console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print()
    console.print(_curve_table(result.rows, result.metric))
    console.print()
    if result.rows[0].own_units:
        console.print(_own_units_table(result))
        console.print()
    if experiment.search.space and all(row.name != "default" for row in result.rows):
        console.print("the file's configuration did not finish: no comparison", style="yellow")
    for text, style in verdict_lines(result):
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"\n{clock_text(report.seconds)} in all; the report is {report.run.path / 'report.html'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _front_table(experiment: Experiment, trials: Mapping[str, TrialRecord]) -> Table:
    """Builds the table of the Pareto front, sorted by the metric."""
    from raymeta.search.records import pareto_front  # noqa: PLC0415  (its package imports Ray)

    names = [name for name, _ in experiment.objectives]
    table = _table(f"Pareto front: {' against '.join(names)}")
    for name in (*names, *map(leaf, experiment.search.space)):
        table.add_column(name, justify="right", no_wrap=True)
    front = pareto_front(trials, experiment.objectives)
    for trial_id in sorted(front, key=lambda i: -experiment.problem.sign * front[i][0]):
        score, cost = front[trial_id]
        point = trials[trial_id].point
        shown = f"{cost:.0f}" if cost >= 1 else f"{cost:.2g}"
        keys = (value_text(point[key]) if key in point else "" for key in experiment.search.space)
        table.add_row(f"{score:.3f}", shown, *keys)
    return table


def _score_table(report: Report) -> Table:
    result, problem = report.meta_test, problem_words(report.experiment)
    table = _table(f"Meta-test: {problem}, {result.num_episodes} episodes, 95 % intervals")
    table.add_column("")  # the only one that a narrow terminal may wrap
    table.add_column(result.metric, justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("ahead of it by", justify="right", no_wrap=True, style="dim")
    for number, row in enumerate(result.rows):
        table.add_row(
            _row_text(row),
            _score_text(row.score),
            "" if row.steps is None else str(row.steps),
            _score_text(row.ahead) if row.ahead else "",
            style="bold" if number == 0 else "",
        )
    return table


def _own_units_table(result: MetaTest) -> Table:
    head, rows = own_units_table(result)
    table = _table("In own units")
    table.add_column(head[0])
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _row_text(row: Row) -> str:
    details = [row.detail] if row.detail else []
    if row.seeds:
        ends = f"{min(row.seeds):.3f} to {max(row.seeds):.3f}"
        details.append(f"{len(row.seeds)} seeds: {ends}")
    return f"{row.label} ({'; '.join(details)})" if details else row.label


def _score_text(score: Score) -> str:
    text = plus_minus(score.mean, score.half_width)
    return f"{text}, no ±" if score.half_width is None else text


def _curve_table(rows: Sequence[Row], metric: str) -> Table:
    table = _table(f"{metric[0].upper()}{metric[1:]} by adaptation step")
    curves = [row for row in rows if row.curve]
    for heading in ("steps", *(row.name for row in curves)):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in _curve_steps(curves):
        table.add_row(str(step), *(f"{row.curve[step].mean:.3f}" for row in curves))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _curve_steps(rows: Sequence[Row]) -> list[int]:
    """Selects the adaptation steps to show: all of a short curve, some of a long one."""
    last = min(len(row.curve) for row in rows) - 1
    if last <= LONGEST_WHOLE_CURVE:
        return list(range(last + 1))
    return [step for step in range(last) if step in {0, 1, 2, 5} or step % 10 == 0] + [last]


def print_importance(console: Console, run: Run) -> None:
    """Prints the searched keys by their share of the metric's variance, and where the plots are."""
    table = _table(f"What {run.experiment().metric} depends on")
    table.add_column("key")
    table.add_column("share of the variance", justify="right")
    for key, share in run.importance.items():
        table.add_row(key, f"{100 * share:.0f} %")
    console.print(table)
    console.print(
        "by the search's model; an interaction counts for each of its keys\n"
        f"plots: {run.path / 'report.html'}; their data in {run.search_dir}",
        highlight=False,
        soft_wrap=True,
    )


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints runs side by side, the queries not compared, and the keys that differ."""
    from raymeta.report.comparison import HEAD  # noqa: PLC0415  (it imports Ray)

    names = [facts.name for facts in comparison.runs]

    def show(title: str, rows: Sequence[Sequence[str]]) -> None:
        table = _table(title)
        for number, name in enumerate(("", *names)):
            table.add_column(name, overflow="fold", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    # A column a run, so that it fits a terminal; the names are in the head.
    show("Runs side by side", list(zip(HEAD, *comparison.rows(), strict=True))[1:])
    for note in comparison.notes():
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    console.print()
    rows = [(key, *values) for key, values in comparison.differences.items()]
    show(
        "What differs in their experiments (searched keys: the winner's; empty: no such key)",
        rows[:SHOWN_DIFFERENCES],
    )
    if len(rows) > SHOWN_DIFFERENCES:
        console.print(f"and {len(rows) - SHOWN_DIFFERENCES} more: the page of -o has them all")


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    """Prints one line per run: name, experiment, status, and meta-test score or damage."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "experiment", "status", "meta-test"):
        table.add_column(column, no_wrap=True)
    damaged = []
    for run in runs:
        experiment, status, score = "?", "damaged", ""
        try:
            run.check_links()
            experiment = run.experiment().name
            results = run.read_json("results.json", run.made_anew)
            status = run.status
            if status == "done" and run.read_json("refit.json") is not None:
                status = "done, refit"
            if results is not None:
                score = _score_of(results, run)
        except RaymetaError as error:
            status = "damaged"
            damaged.append(str(error).splitlines()[0])
        table.add_row(run.path.name, experiment, status, score)
    console.print(table)
    for line in damaged:
        console.print(line, highlight=False, soft_wrap=True)


def _score_of(results: Any, run: Run) -> str:
    try:
        first = results["meta_test"]["rows"][0]["score"]
        half_width = first["half_width"]
        spread = None if half_width is None else float(half_width)
        score = plus_minus(float(first["mean"]), spread)
        return f"{results['meta_test']['metric']} {score}"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / 'results.json'}: is damaged; {run.made_anew}") from error


_SIGNS = {"ok": "✓", "note": "·", "warning": "!", "error": "✗"}
_STYLES = {"ok": "green", "note": "", "warning": "yellow", "error": "red"}


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Prints the findings of a check, one paragraph each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("sign", "subject", "text"):
        table.add_column(column, no_wrap=column != "text", overflow="fold")
    for found in findings:
        sign = Text(_SIGNS[found.level], style=_STYLES[found.level])
        table.add_row(sign, found.subject, Text(found.text))
    console.print(table)


def print_submitted(console: Console, job: Job, where: str) -> None:
    """Prints the submitted run's name and the commands that follow it."""
    console.print(
        f"submitted {job.run}; it runs without this terminal: `raymeta logs {job.run}{where}` "
        f"follows it, `raymeta stop {job.run}{where}` ends it, `raymeta fetch {job.run}{where}` "
        "copies it to this machine",
        highlight=False,
        soft_wrap=True,
    )


def print_jobs(console: Console, jobs: Sequence[Job]) -> None:
    """Prints one line per job: run, state, start, duration, exit code."""
    if not jobs:
        console.print("no runs on this cluster; `raymeta submit EXPERIMENT` starts one")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "began", "time", "exit code"):
        table.add_column(column, no_wrap=True)
    for job in jobs:
        seconds = ((job.ended or datetime.now()) - job.began).total_seconds()
        code = "" if job.exit_code is None else str(job.exit_code)
        began = f"{job.began:%Y-%m-%d %H:%M:%S}"
        table.add_row(job.job_id, job.status.lower(), began, clock_text(seconds), code)
    console.print(table)


def print_reason(console: Console, job: Job) -> None:
    """Prints why a job ended, without the log that Ray appends."""
    for line in job.message.splitlines()[:1]:
        console.print(line.partition(", last available logs")[0], highlight=False, soft_wrap=True)


def print_log_end(console: Console, log: str) -> None:
    """Prints the last lines of a driver's log."""
    for line in log.splitlines()[-LAST_LINES:]:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
