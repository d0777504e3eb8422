"""The live view of a run: a table on a terminal or in a notebook, one line per event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raymeta.console.notebook import LiveHtml, is_notebook
from raymeta.console.text import clock_text, leaf, plus_minus, value_text
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run

if TYPE_CHECKING:  # it imports Ray, which `raymeta --help` must not wait for
    from raymeta.search.progress import TrialEvent

SHOWN_TRIALS = 16
BAR_WIDTH = 12
FIXED_COLUMNS_WIDTH = 65  # trial, state, meta-steps, metric and speed
VALUE_WIDTH = 9
STEP_KEY = "meta_steps"

_STATE_STYLES = {
    "running": "cyan",
    "done": "",
    "stopped": "dim",
    "failed": "red",
    "diverged": "red",
    "overflowed": "red",
}


@dataclass
class _TrialLine:
    number: int
    point: Mapping[str, Any]
    budget: int  # in meta-steps
    is_refit: bool = False
    state: str = "running"
    steps: int = 0
    value: float | None = None
    sem: float | None = None
    speed: float | None = None
    memory: str = ""
    num_skipped: int = 0

    @property
    def name(self) -> str:
        return f"{'refit' if self.is_refit else 'trial'} {self.number}"


@dataclass
class ProgressView:
    """Shows a running search: a live table on a terminal or in a notebook, else a line an event.

    Use as a context manager; it is a `raymeta.api.Watcher`.
    """

    console: Console
    verbose: bool = False
    run: Run | None = None
    _experiment: Experiment | None = None
    _lines: dict[str, _TrialLine] = field(default_factory=dict)
    _phase: str = "starting Ray"
    _start: float = field(default_factory=time.monotonic)
    _live: Live | LiveHtml | None = None

    def __enter__(self) -> Self:
        if is_notebook():
            self._live = LiveHtml(self._render)
        elif self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4
            )
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            if exc[0] is None:
                self._phase = ""
            self._live.__exit__(None, None, None)

    def refresh(self) -> None:
        """Draws the clock and the latest events in a notebook; a terminal draws them by itself."""
        if isinstance(self._live, LiveHtml):
            self._live.refresh()

    # ------------------------------------------------------------------- calls of a watcher

    def started(self, run: Run, experiment: Experiment) -> None:
        """Prints the run's folder."""
        self.run = run
        self._experiment = experiment
        self._phase = "searching" if experiment.search.space else "training"
        self.console.print(f"run folder: {run.path}", soft_wrap=True, highlight=False)
        self.refresh()

    def trial(self, event: TrialEvent) -> None:
        """Shows an event of a trial."""
        self._take(event)
        self.refresh()

    def _take(self, event: TrialEvent) -> None:
        experiment = self._experiment
        assert experiment is not None, "a run starts before its trials"
        line = self._lines.get(event.trial_id)
        if line is None:
            line = _TrialLine(
                number=sum(x.is_refit == event.is_refit for x in self._lines.values()) + 1,
                point=event.point,
                budget=event.point.get(f"training.{STEP_KEY}", experiment.training.meta_steps),
                is_refit=event.is_refit,
            )
            self._lines[event.trial_id] = line
        result = event.result
        if "note" in result:  # of a damaged checkpoint
            self.console.print(f"{line.name}: {result['note']}", soft_wrap=True, highlight=False)
        if STEP_KEY in result:
            line.steps = int(result[STEP_KEY])
            line.speed = result.get("meta_steps_per_s", line.speed)
            line.num_skipped = int(result.get("num_skipped", line.num_skipped))
            if "planned_mb" in result:
                graph = "full" if result["graph_steps"] else "flat"
                line.memory = (
                    f"{graph} graph, {result['chunk_size']:.0f} episodes at once, about "
                    f"{result['planned_mb']:.0f} MB a worker"
                )
        if experiment.metric in result:
            line.value = result[experiment.metric]
            line.sem = result.get(f"{experiment.metric}_sem")
        if event.kind in ("silent", "hung"):
            self._say_silent(line.name, event)
            return
        if event.kind == "failed":
            line.state = "failed"
        elif event.kind == "completed":
            finished = line.steps >= line.budget
            line.state = result.get("outcome", "done" if finished else "stopped")
        else:
            line.state = "running"
        if self._live is None and (event.kind != "result" or self.verbose):
            self.console.print(self._sentence(line, event), soft_wrap=True, highlight=False)
        if event.kind == "completed" and "training_error" in result:
            reason = f"{line.name}: {result['training_error']}"
            self.console.print(reason, style="yellow", soft_wrap=True, highlight=False)

    def _say_silent(self, name: str, event: TrialEvent) -> None:
        silent, limit = event.result["silent_s"], event.result["limit_s"]
        text = f"{name}: no report for {silent:.0f} s; "
        if event.kind == "silent":
            text += f"after {limit:.0f} s it restarts from its last checkpoint"
        else:
            key = event.result["limit"]
            text += f"it hangs and restarts from its last checkpoint (resources.{key})"
        self.console.print(text, style="yellow", highlight=False)

    def phase(self, text: str) -> None:
        """Shows the phases before and after the search."""
        self._phase = text
        if self._live is None:
            self.console.print(text, soft_wrap=True, highlight=False)
        self.refresh()

    # ------------------------------------------------------------------- drawing

    def _sentence(self, line: _TrialLine, event: TrialEvent) -> str:
        assert self._experiment is not None
        at_s = time.monotonic() - self._start if event.at_s is None else event.at_s
        head = f"[{clock_text(at_s)}] {line.name}"
        if event.kind == "started":
            point = "  ".join(f"{leaf(k)}={value_text(v)}" for k, v in line.point.items())
            return f"{head} started  {point}"
        speed = f"  {line.speed:.1f} meta-steps/s" if line.speed else ""
        memory = f"  {line.memory}" if self.verbose and line.memory else ""
        skipped = f"  {line.num_skipped} meta-steps skipped" if line.num_skipped else ""
        found = f"{self._measure(line)}{speed}{skipped}{memory}"
        return f"{head} {line.state} at step {line.steps}: {found}"

    def _measure(self, line: _TrialLine) -> str:
        return "" if line.value is None else plus_minus(line.value, line.sem)

    def _best(self) -> _TrialLine | None:
        assert self._experiment is not None
        sign = self._experiment.problem.sign
        searched = [x for x in self._lines.values() if not x.is_refit]
        ended = [x for x in searched if x.state == "done" and x.value is not None]
        return max(ended, key=lambda x: sign * (x.value or 0.0), default=None)

    def _render(self) -> RenderableType:
        experiment = self._experiment
        clock = clock_text(time.monotonic() - self._start)
        if experiment is None:
            return Text(f"{clock}  {self._phase} …")
        best = self._best()
        total = experiment.search.num_trials if experiment.search.space else 1
        searched, refit = (
            [x for x in self._lines.values() if x.is_refit == is_refit]
            for is_refit in (False, True)
        )
        ended = sum(line.state != "running" for line in searched)
        speed = sum(x.speed or 0.0 for x in self._lines.values() if x.state == "running")
        parts = [f"{clock}  {self._phase}" + (" …" if self._phase else "")]
        parts.append(f"{ended}/{total} trials")
        if refit:
            done = sum(line.state != "running" for line in refit)
            parts.append(f"refit: {done}/{len(refit)} trainings")
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
            table.add_column(leaf(key), justify="right", no_wrap=True)
        for line in self._shown(best):
            share = line.steps / line.budget
            filled = round(BAR_WIDTH * min(share, 1.0))
            bar = Text.assemble(
                ("━" * filled, "green"), ("━" * (BAR_WIDTH - filled), "dim"), f" {line.steps}"
            )
            table.add_row(
                line.name if line.is_refit else str(line.number),
                line.state,
                bar,
                self._measure(line),
                f"{line.speed:.1f}" if line.speed else "",
                *[value_text(line.point.get(key)) for key in keys],
                style="bold" if line is best else _STATE_STYLES[line.state],
            )
        return Group(header, table)

    def _fitting_keys(self) -> list[str]:
        """The searched keys that fit the terminal's width; the report shows all."""
        assert self._experiment is not None
        room = self.console.width - FIXED_COLUMNS_WIDTH
        keys: list[str] = []
        for key in self._experiment.search.space:
            room -= 2 + max(len(leaf(key)), VALUE_WIDTH)
            if room < 0:
                break
            keys.append(key)
        return keys

    def _shown(self, best: _TrialLine | None) -> list[_TrialLine]:
        """All trials if they fit; else the best, the running and the latest ones."""
        lines = list(self._lines.values())
        if len(lines) <= SHOWN_TRIALS:
            return lines
        kept = {id(x): x for x in lines if x is best or x.state == "running"}
        for line in reversed(lines):
            if len(kept) >= SHOWN_TRIALS:
                break
            kept[id(line)] = line
        return sorted(kept.values(), key=lambda x: (x.is_refit, x.number))
