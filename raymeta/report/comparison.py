"""Runs side by side, over the same meta-test queries where they have them.

Shape legend: R trainings, E episodes, M queries of an episode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly import graph_objects as go

from raymeta.console.text import clock_text, plus_minus, value_text
from raymeta.errors import RunError
from raymeta.evaluation.query_scores import QueryScores
from raymeta.evaluation.scores import Score
from raymeta.experiment.schema import Dimension, Experiment
from raymeta.report.facts import RunFacts, read_facts
from raymeta.report.page import Page
from raymeta.report.plots import BLUE, GREEN, GREY, ORANGE, RED, label, rows_layout, score_dot
from raymeta.report.words import range_words
from raymeta.run_folder import Run
from raymeta.search.results import finished_best, summaries
from raymeta.uncertainty import Units

_LONGEST_VALUE = 60  # characters


@dataclass(frozen=True)
class Lead:
    """The lead of a run over the first one on the same queries.

    `score` is positive where the run is better; None where the two cannot be paired, and `note`
    says why.  Otherwise `note` says what the interval leaves out.
    """

    score: Score | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The lead's interval in words."""
        if self.score is None:
            return "not paired"
        if self.score.half_width is None:
            return "too few units"
        if abs(self.score.mean) <= self.score.half_width:
            return "undecided"
        return "better" if self.score.mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were named; `leads` has one for each after the first.

    `differences` are the keys of their experiments that differ, with the values of all runs; a
    searched key has the winner's value.
    """

    runs: list[RunFacts]
    leads: list[Lead]
    differences: dict[str, list[str]]

    def rows(self) -> list[list[str]]:
        """The table: run, experiment, state, best trial, meta-test, lead, verdict, time."""
        found = []
        for number, facts in enumerate(self.runs):
            result, score = facts.meta_test, "none yet"
            if result is not None:
                own = result.rows[0].score
                score = f"{result.metric} {plus_minus(own.mean, own.half_width)}"
            lead, verdict = "", ""
            if number:
                found_lead = self.leads[number - 1]
                verdict = found_lead.verdict
                if found_lead.score is not None:
                    lead = plus_minus(found_lead.score.mean, found_lead.score.half_width)
            head = [facts.name, facts.experiment.name, facts.run.status, _best_text(facts)]
            found.append([*head, score, lead, verdict, clock_text(facts.seconds)])
        return found

    def notes(self) -> list[str]:
        """Explains what the leads leave out, or why there is none."""
        first = self.runs[0].name
        named = zip(self.runs[1:], self.leads, strict=True)
        return [f"{facts.name} and {first}: {lead.note}" for facts, lead in named if lead.note]


HEAD = (
    *("run", "experiment", "state", "best trial ± standard error"),
    *("meta-test ± 95 % interval", "ahead of the first by", "verdict", "time"),
)


def compared(runs: Sequence[Run]) -> Comparison:
    """Reads the runs and compares each with the first.

    Raises:
        RunError: there are fewer than two, one is named twice, or one cannot be read.
    """
    if len(runs) < 2:
        raise RunError(f"a comparison needs at least two runs, but got {len(runs)}")
    if len({str(run.path) for run in runs}) < len(runs):
        raise RunError("a run is compared with others, not with itself; name each run once")
    facts = [read_facts(run) for run in runs]
    leads = [_lead(facts[0], other) for other in facts[1:]]
    return Comparison(facts, leads, _differences(facts))


def _best_text(facts: RunFacts) -> str:
    best = finished_best(facts.experiment, summaries(facts.trials))
    if best is None:
        return "none yet"
    return f"{facts.experiment.metric} {plus_minus(best.value, best.record.curve[-1][2])}"


def _lead(first: RunFacts, other: RunFacts) -> Lead:
    for facts in (first, other):
        if facts.meta_test is None:
            return Lead(None, f"{facts.name} has no meta-test yet")
        if facts.scores is None:
            return Lead(
                None,
                f"{facts.name} kept no scores of single queries; `raymeta evaluate {facts.name}` "
                "records them",
            )
    assert first.meta_test is not None
    assert other.meta_test is not None
    metrics = first.meta_test.metric, other.meta_test.metric
    if metrics[0] != metrics[1]:
        return Lead(None, f"their metrics differ: {metrics[0]} and {metrics[1]}")
    data = [None if facts.origin is None else facts.origin.data for facts in (first, other)]
    if data[0] is None or data[0] != data[1]:
        return Lead(
            None,
            "not paired, since their data differ (fingerprints in run.json): each score is "
            "of tasks of its own",
        )
    assert first.scores is not None
    assert other.scores is not None
    sign = 1 if first.meta_test.higher_is_better else -1
    return paired_lead(first.scores, other.scores, sign)


def paired_lead(first: QueryScores, other: QueryScores, sign: int) -> Lead:
    """The mean of `sign * (other - first)` over the episodes that both have.

    Its 95 % interval is over the units of the queries, and over trainings too where both runs have
    several: the r-th of one is set against the r-th of the other, which are as independent as any.
    """
    count = min(len(first.queries.digests), len(other.queries.digests))
    queries = first.own.shape[2], other.own.shape[2]
    digests = first.queries.digests[:count], other.queries.digests[:count]
    if queries[0] != queries[1] or not np.array_equal(*digests):
        return Lead(None, "not paired, since their meta-tests had different episodes")
    notes = []
    longest = max(len(first.queries.digests), len(other.queries.digests))
    if count < longest:
        notes.append(f"over the first {count} episodes, which both have, of up to {longest}")
    trainings = len(first.own), len(other.own)
    several = min(trainings)
    a, b = first.own[:, :count], other.own[:, :count]
    if several == 1:
        values = (b.mean(axis=0) - a.mean(axis=0))[None]
        notes.append("the interval leaves out that another training seed gives another network")
    else:
        values = b[:several] - a[:several]
        if max(trainings) > several:
            notes.append(f"the first {several} trainings of each")
    ids = {axis: units[:count] for axis, units in first.queries.units.items()}
    units = Units(ids, count, queries[0]).of_trainings(len(values))
    found = units.estimate(sign * (values[0] if len(values) == 1 else values))
    score = Score(found.mean, found.half_width if units.are_enough else None)
    return Lead(score, "; ".join(notes))


def _differences(runs: Sequence[RunFacts]) -> dict[str, list[str]]:
    flat = [dict(_flat(_judged(facts).model_dump())) for facts in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    found = {}
    for key in keys:
        texts = [_short(values[key]) if key in values else "" for values in flat]
        if len(set(texts)) > 1:
            found[key] = texts
    return found


def _judged(facts: RunFacts) -> Experiment:
    return facts.best or facts.experiment


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if prefix == "search.space.":  # what is said of a searched key, in one line
            yield f"{prefix}{key}", range_words(Dimension.model_validate(value))
        elif isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: object) -> str:
    text = value_text(value) if isinstance(value, float | str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def comparison_page(comparison: Comparison) -> str:
    """The comparison as a page for a browser."""
    runs, names = comparison.runs, [facts.name for facts in comparison.runs]
    page = Page(f"{' and '.join(names[:3])} compared")
    page.header("Runs compared", ", ".join(names))
    page.section("Side by side")
    page.table(HEAD, comparison.rows())
    page.lines((note, "yellow") for note in comparison.notes())
    judged = [facts for facts in runs if facts.meta_test is not None]
    for metric in dict.fromkeys(f.meta_test.metric for f in judged if f.meta_test is not None):
        page.heading(f"Meta-test: {metric}, 95 % intervals")
        figure = go.Figure()
        for facts in judged:
            if facts.meta_test is not None and facts.meta_test.metric == metric:
                score = facts.meta_test.rows[0].score
                if math.isfinite(score.mean):
                    colour = BLUE if facts is runs[0] else GREY
                    figure.add_trace(score_dot(score, facts.name, colour))
        page.plot(
            figure.update_layout(rows_layout(len(figure.data), label(metric))), f"{metric} by run"
        )
    paired = [
        (facts, lead)
        for facts, lead in zip(runs[1:], comparison.leads, strict=True)
        if lead.score is not None and math.isfinite(lead.score.mean)
    ]
    if paired:
        page.heading(f"Ahead of {names[0]} by")
        page.text("Mean differences over the same queries; left of 0 the first run is better.")
        colours = {"better": GREEN, "worse": RED, "undecided": ORANGE}
        figure = go.Figure()
        for facts, lead in paired:
            assert lead.score is not None
            colour = colours.get(lead.verdict, GREY)
            figure.add_trace(score_dot(lead.score, facts.name, colour))
        figure.add_vline(x=0, line={"width": 1.5, "color": GREY})
        figure.update_layout(rows_layout(len(paired), f"ahead of {label(names[0], 40)} by"))
        page.plot(figure, f"lead over {names[0]}")
    page.section("What differs in their experiments")
    page.text(
        "A searched key has the winner's value; where a run has no such key, its place is empty.",
        "dim",
    )
    rows = [[key, *values] for key, values in comparison.differences.items()]
    if rows:
        page.table(["key", *names], rows)
    else:
        page.text("Nothing.")
    return page.html()
