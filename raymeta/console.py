"""What a person sees of a run in the terminal: live progress, the tables at the end, the list."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raymeta.experiment import Experiment
from raymeta.runs import Run

if TYPE_CHECKING:  # these import Ray and torch, which `raymeta --help` must not wait for
    from raymeta.api import Report
    from raymeta.deploy.check import Finding
    from raymeta.deploy.jobs import Job
    from raymeta.evaluation import Row
    from raymeta.search.records import TrialRecord
    from raymeta.search.tuner import TrialEvent

SHOWN_TRIALS = 16
BAR_WIDTH = 12
FIXED_COLUMNS_WIDTH = 63  # trial, state, meta-steps, metric and speed
VALUE_WIDTH = 9
LONGEST_WHOLE_CURVE = 10  # in adaptation steps
STEP_KEY = "meta_steps"
LAST_LINES = 10  # of a log


@dataclass
class _TrialLine:
    number: int
    point: Mapping[str, Any]
    state: str = "running"
    steps: int = 0
    value: float | None = None
    sem: float | None = None
    speed: float | None = None
    memory: str = ""


@dataclass
class ProgressView:
    """Draws a run while it goes on: a live table on a terminal, a line per event elsewhere.

    Use as a context manager; it is a `raymeta.api.Watcher`.
    """

    console: Console
    verbose: bool = False
    run: Run | None = None
    _experiment: Experiment | None = None
    _lines: dict[str, _TrialLine] = field(default_factory=dict)
    _phase: str = "starting Ray"
    _start: float = field(default_factory=time.monotonic)
    _live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4
            )
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            if exc[0] is None:
                self._phase = ""
            self._live.__exit__(None, None, None)

    # ------------------------------------------------------------------- the watcher's calls

    def started(self, run: Run, experiment: Experiment) -> None:
        """Names the run."""
        self.run = run
        self._experiment = experiment
        self._phase = "searching" if experiment.search.space else "training"
        self.console.print(f"run folder: {run.path}", soft_wrap=True, highlight=False)

    def trial(self, event: TrialEvent) -> None:
        """Takes up what happened to a trial."""
        line = self._lines.get(event.trial_id)
        if line is None:
            line = _TrialLine(number=len(self._lines) + 1, point=event.point)
            self._lines[event.trial_id] = line
        experiment = self._experiment
        assert experiment is not None, "a run starts before its trials"
        result = event.result
        if STEP_KEY in result:
            line.steps = int(result[STEP_KEY])
            line.speed = result.get("meta_steps_per_s", line.speed)
            if "planned_mb" in result:
                graph = "full" if result["graph_steps"] else "flat"
                line.memory = (
                    f"{graph} graph, {result['chunk_size']:.0f} episodes at once, about "
                    f"{result['planned_mb']:.0f} MB a worker"
                )
        if experiment.metric in result:
            line.value = result[experiment.metric]
            line.sem = result.get(f"{experiment.metric}_sem")
        if event.kind == "failed":
            line.state = "failed"
        elif event.kind == "completed":
            finished = line.steps >= experiment.training.meta_steps
            diverged = line.value is not None and line.value != line.value
            line.state = "diverged" if diverged else "done" if finished else "stopped"
        else:
            line.state = "running"
        if self._live is None and (event.kind != "result" or self.verbose):
            self.console.print(self._sentence(line, event.kind), soft_wrap=True, highlight=False)

    def phase(self, text: str) -> None:
        """Says what is being done after the search."""
        self._phase = text
        if self._live is None:
            self.console.print(text, highlight=False)

    # ------------------------------------------------------------------- drawing

    def _sentence(self, line: _TrialLine, kind: str) -> str:
        assert self._experiment is not None
        head = f"[{_clock(time.monotonic() - self._start)}] trial {line.number}"
        if kind == "started":
            point = "  ".join(f"{_short(k)}={_value(v)}" for k, v in line.point.items())
            return f"{head} started  {point}"
        speed = f"  {line.speed:.1f} meta-steps/s" if line.speed else ""
        memory = f"  {line.memory}" if self.verbose and line.memory else ""
        return f"{head} {line.state} at step {line.steps}: {self._measure(line)}{speed}{memory}"

    def _measure(self, line: _TrialLine) -> str:
        return "" if line.value is None else _plus_minus(line.value, line.sem)

    def _best(self) -> _TrialLine | None:
        assert self._experiment is not None
        sign = 1 if self._experiment.mode == "max" else -1
        ended = [x for x in self._lines.values() if x.state == "done" and x.value is not None]
        return max(ended, key=lambda x: sign * (x.value or 0.0), default=None)

    def _render(self) -> RenderableType:
        experiment = self._experiment
        clock = _clock(time.monotonic() - self._start)
        if experiment is None:
            return Text(f"{clock}  {self._phase} …")
        best = self._best()
        total = experiment.search.num_trials if experiment.search.space else 1
        ended = sum(line.state != "running" for line in self._lines.values())
        speed = sum(x.speed or 0.0 for x in self._lines.values() if x.state == "running")
        parts = [f"{clock}  {self._phase}" + (" …" if self._phase else "")]
        parts.append(f"{ended}/{total} trials")
        if speed:
            parts.append(f"{speed:.1f} meta-steps/s")
        if best is not None and experiment.search.space:
            parts.append(f"best {experiment.metric} {self._measure(best)} (trial {best.number})")
        header = Text("  ·  ".join(part for part in parts if part.strip()), style="bold")

        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("trial", "state", "meta-steps", experiment.metric):
            table.add_column(name, justify="right" if name == "trial" else "left", no_wrap=True)
        table.add_column("steps/s", justify="right", no_wrap=True)
        keys = self._fitting_keys()
        for key in keys:
            table.add_column(_short(key), justify="right", no_wrap=True)
        for line in self._shown(best):
            share = line.steps / experiment.training.meta_steps
            filled = round(BAR_WIDTH * min(share, 1.0))
            bar = Text("━" * filled, style="green") + Text("━" * (BAR_WIDTH - filled), style="dim")
            table.add_row(
                str(line.number),
                line.state,
                bar + Text(f" {line.steps}"),
                self._measure(line),
                f"{line.speed:.1f}" if line.speed else "",
                *[_value(line.point.get(key)) for key in keys],
                style="bold" if line is best else _STATE_STYLES[line.state],
            )
        return Group(header, table)

    def _fitting_keys(self) -> list[str]:
        """The searched keys that the terminal is wide enough for; the report shows them all."""
        assert self._experiment is not None
        room = self.console.width - FIXED_COLUMNS_WIDTH
        keys: list[str] = []
        for key in self._experiment.search.space:
            room -= 2 + max(len(_short(key)), VALUE_WIDTH)
            if room < 0:
                break
            keys.append(key)
        return keys

    def _shown(self, best: _TrialLine | None) -> list[_TrialLine]:
        """All trials while they fit; then the best, those running and the latest."""
        lines = list(self._lines.values())
        if len(lines) <= SHOWN_TRIALS:
            return lines
        kept = {id(x): x for x in lines if x is best or x.state == "running"}
        for line in reversed(lines):
            if len(kept) >= SHOWN_TRIALS:
                break
            kept[id(line)] = line
        return sorted(kept.values(), key=lambda x: x.number)


_STATE_STYLES = {
    "running": "cyan",
    "done": "",
    "stopped": "dim",
    "failed": "red",
    "diverged": "red",
}


def print_report(console: Console, report: Report) -> None:
    """The best hyperparameters, the meta-test with its controls, and where the files are."""
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
            values = _value(report.best.value(key)), _value(experiment.value(key))
            table.add_row(key, *values, *share)
        console.print()
        console.print(table)
        if experiment.search.against is not None:
            console.print()
            console.print(_front_table(experiment, report.trials))
        statuses = [record.status for record in report.trials.values()]
        counts = ", ".join(
            f"{statuses.count(status)} {word}"
            for status, word in _STATUS_WORDS.items()
            if status in statuses
        )
        console.print(f"{len(statuses)} trials: {counts}\n", highlight=False)

    console.print(_score_table(report))
    console.print("ahead: episode by episode, on the same episodes", style="dim", highlight=False)
    if result.note:
        console.print(result.note, style="dim", highlight=False, soft_wrap=True)
    console.print()
    console.print(_curve_table(result.rows, result.metric))
    console.print()
    rest = [row for row in result.rows[1:] if not result.beats(row)]
    close = [row.label for row in rest if row.ahead and row.ahead.mean > row.ahead.half_width]
    lost = [row.label for row in rest if row.label not in close]
    if experiment.search.space and all(row.name != "default" for row in result.rows):
        console.print("the file's configuration did not finish: no comparison", style="yellow")
    elif lost:
        told = f"not beaten: {'; '.join(lost)}"
        console.print(told, style="yellow", highlight=False, markup=False)
    elif close:
        told = f"every control is beaten; intervals overlap for: {'; '.join(close)}"
        console.print(told, style="green", highlight=False, markup=False)
    else:
        console.print("every control is beaten, and no interval overlaps", style="green")
    console.print(
        f"\n{_clock(report.seconds)} in all; files in {report.run.path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


_STATUS_WORDS = {
    "completed": "completed",
    "early_stopped": "stopped early",
    "failed": "failed",
    "abandoned": "without a finite result",
    "running": "unfinished",
}


def _front_table(experiment: Experiment, trials: Mapping[str, TrialRecord]) -> Table:
    """Trials that none is better than in both objectives, the best by the metric first."""
    from raymeta.search.records import pareto_front  # noqa: PLC0415  (its package imports Ray)

    names = [name for name, _ in experiment.objectives]
    table = _table(f"Pareto front: {' against '.join(names)}")
    for name in (*names, *map(_short, experiment.search.space)):
        table.add_column(name, justify="right", no_wrap=True)
    sign = -1 if experiment.mode == "max" else 1
    front = pareto_front(trials, experiment.objectives)
    for trial_id in sorted(front, key=lambda i: sign * front[i][0]):
        score, cost = front[trial_id]
        point = trials[trial_id].point
        shown = f"{cost:.0f}" if cost >= 1 else f"{cost:.2g}"
        keys = (_value(point[key]) if key in point else "" for key in experiment.search.space)
        table.add_row(f"{score:.3f}", shown, *keys)
    return table


def _score_table(report: Report) -> Table:
    result, tasks = report.meta_test, report.experiment.tasks
    problem = f"{tasks.num_shots} points"
    if result.higher_is_better:
        problem = f"{getattr(tasks, 'num_ways', 2)}-way {tasks.num_shots}-shot"
    table = _table(f"Meta-test: {problem}, {result.num_episodes} episodes, 95 % intervals")
    table.add_column("", no_wrap=True)
    table.add_column(result.metric, justify="right", no_wrap=True)
    table.add_column("steps", justify="right")
    table.add_column("ahead of it by", justify="right", no_wrap=True, style="dim")
    for number, row in enumerate(result.rows):
        table.add_row(
            f"{row.label} ({row.detail})" if row.detail else row.label,
            _plus_minus(row.score.mean, row.score.half_width),
            "" if row.steps is None else str(row.steps),
            _plus_minus(row.ahead.mean, row.ahead.half_width) if row.ahead else "",
            style="bold" if number == 0 else "",
        )
    return table


def _curve_table(rows: Sequence[Row], metric: str) -> Table:
    table = _table(f"{metric.capitalize()} after so many adaptation steps")
    curves = [row for row in rows if row.curve]
    for heading in ("steps", *(row.name for row in curves)):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in _curve_steps(curves):
        table.add_row(str(step), *(f"{row.curve[step].mean:.3f}" for row in curves))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _curve_steps(rows: Sequence[Row]) -> list[int]:
    """The adaptation steps to show: all of a short curve, some of a long one."""
    last = min(len(row.curve) for row in rows) - 1
    if last <= LONGEST_WHOLE_CURVE:
        return list(range(last + 1))
    return [step for step in range(last) if step in {0, 1, 2, 5} or step % 10 == 0] + [last]


def print_importance(console: Console, run: Run) -> None:
    """The searched keys by their share of the metric's variance, and where the plots are."""
    table = _table(f"What {run.experiment().metric} depends on")
    table.add_column("key")
    table.add_column("share of the variance", justify="right")
    for key, share in run.importance.items():
        table.add_row(key, f"{100 * share:.0f} %")
    console.print(table)
    console.print(
        "as the search's model has it, interactions counted with every key that takes part\n"
        f"plots: {run.search_dir / 'report.html'}; their data beside it",
        highlight=False,
        soft_wrap=True,
    )


def print_runs(console: Console, runs: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> None:
    """A line for every run: name, how far it came, meta-test score.

    Args:
        console: where to print.
        runs: in the order to print.
        results: of each run, the content of its results file; empty where there is none.
    """
    table = Table(box=None, pad_edge=False)
    for column in ("run", "experiment", "status", "meta-test"):
        table.add_column(column, no_wrap=True)
    for run, result in zip(runs, results, strict=True):
        score = ""
        if result:
            first = result["meta_test"]["rows"][0]["score"]
            score = (
                f"{result['meta_test']['metric']} {_plus_minus(first['mean'], first['half_width'])}"
            )
        table.add_row(run.path.name, run.experiment().name, run.status, score)
    console.print(table)


_SIGNS = {"ok": "✓", "note": "·", "warning": "!", "error": "✗"}
_STYLES = {"ok": "green", "note": "", "warning": "yellow", "error": "red"}


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """What was found of an experiment on a cluster, a paragraph each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("sign", "subject", "text"):
        table.add_column(column, no_wrap=column != "text", overflow="fold")
    for found in findings:
        sign = Text(_SIGNS[found.level], style=_STYLES[found.level])
        table.add_row(sign, found.subject, Text(found.text))
    console.print(table)


def print_submitted(console: Console, job: Job, where: str) -> None:
    """The run's name on the cluster, and what one can do with it."""
    console.print(
        f"submitted {job.run}; it goes on without you: `raymeta logs {job.run}{where}` follows it, "
        f"`raymeta stop {job.run}{where}` ends it, `raymeta fetch {job.run}{where}` brings it home",
        highlight=False,
        soft_wrap=True,
    )


def print_jobs(console: Console, jobs: Sequence[Job]) -> None:
    """A line for every job: run, state, when it began, how long it has run."""
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
        table.add_row(job.job_id, job.status.lower(), began, _clock(seconds), code)
    console.print(table)


def print_reason(console: Console, job: Job) -> None:
    """Why a job has ended, without the log that Ray adds to it."""
    for line in job.message.splitlines()[:1]:
        console.print(line.partition(", last available logs")[0], highlight=False, soft_wrap=True)


def print_log_end(console: Console, log: str) -> None:
    """The last lines of what a driver has printed."""
    for line in log.splitlines()[-LAST_LINES:]:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _plus_minus(value: float, spread: float | None) -> str:
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
