"""Inspects an experiment's tasks before training, for `raymeta inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymeta.data.readers.columns import Column
from raymeta.episodes import SPLITS, TaskDistribution
from raymeta.errors import DataError, ExperimentError
from raymeta.experiment.schema import Experiment
from raymeta.finding import Finding
from raymeta.tasks.cutter import Cutter
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.leaks import find_future_reads, find_leaks, find_shared_sides
from raymeta.tasks.load import SOURCES, load_tasks
from raymeta.tasks.table_files import read_columns_of
from raymeta.tasks.table_settings import TableTasks


@dataclass(frozen=True)
class Way:
    """One class of an episode: the names of its support and its query sequences."""

    label: str
    support: tuple[str, ...]
    query: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The tasks of an experiment.

    `ways` describe episode 0 of the meta-test; there are none where no episode can be drawn.
    """

    experiment: Experiment
    dealt: Dealt
    findings: tuple[Finding, ...]
    ways: tuple[Way, ...]

    @property
    def is_sound(self) -> bool:
        """Whether episodes can be drawn and no data are in two splits."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def task(self) -> str:
        """Describes a task in a sentence."""
        tasks, dealt = self.experiment.tasks, self.dealt
        if isinstance(tasks, TableTasks) and tasks.kind == "forecast":
            cutter = Cutter.of(tasks)
            apart = " or ".join(dealt.groups)
            return (
                f"a task is one series ({tasks.sequence}) of {tasks.target_name}, of a {apart} "
                f"that no network has seen, cut at a random step: the {cutter.past} steps before "
                f"the cut hold {tasks.num_shots} support windows to adapt to, and "
                f"{tasks.num_queries} queries ask for {tasks.horizon} steps after it"
            )
        if isinstance(tasks, TableTasks) and tasks.has_numbers:
            return self._number(tasks)
        if dealt.task is None:
            what = f"{tasks.num_ways} classes of {dealt.target} that no network has seen"
        else:
            what = f"one {dealt.task} that no network has seen, with all classes of {dealt.target}"
        new = [axis for axis in dealt.groups if axis != dealt.task]
        further = f", from {' and '.join(new)} not seen either" if new else ""
        return (
            f"a task is {what}{further}: {tasks.num_shots} support examples a class to adapt to, "
            f"{tasks.num_queries} queries a class to be judged on"
            + (_cut(tasks) if isinstance(tasks, TableTasks) else "")
        )

    def _number(self, tasks: TableTasks) -> str:
        """Describes a task with a number for each example."""
        where = (
            f"one {self.dealt.task}" if self.dealt.task else f"some sequences ({tasks.sequence})"
        )
        each = "" if tasks.windows_each is None else f", {tasks.windows_each} of each at most"
        return (
            f"a task is {where} that no network has seen: {tasks.num_shots} examples "
            f"with their {tasks.target_name} to adapt to, and {tasks.num_queries} examples of "
            f"other sequences whose {tasks.target_name} is asked for{each}{_cut(tasks)}"
        )


def _cut(tasks: TableTasks) -> str:
    """Describes how an example is made of a sequence, unless it is the sequence itself."""
    text = ""
    if tasks.window is not None:
        text = (
            f"; an example is a window of {tasks.window} rows, and no {tasks.sequence} has windows "
            "on both sides"
        )
    if tasks.spectrum is not None:
        text += f"; networks read its {tasks.spectrum.frequencies} lowest frequencies"
    return text


def inspect_tasks(experiment: Experiment) -> Inspection:
    """Deals an experiment's data and looks at them.

    Raises:
        ExperimentError: its source has no data of the user's to inspect.
        DataError: a file is broken, the data hold copies, or there are too few groups.
    """
    tasks = experiment.tasks
    deal = SOURCES[tasks.source].deal
    if deal is None:
        served = ", ".join(name for name, source in SOURCES.items() if source.deal)
        raise ExperimentError(
            f"raymeta inspect looks at the sources {served}, but tasks.source is {tasks.source}"
        )
    dealt = deal(tasks, sealed=experiment.evaluation.sealed)
    axes = [*dealt.groups, *([""] if dealt.task is None else [])]
    if isinstance(tasks, TableTasks) and tasks.has_numbers:
        axes = list(dealt.groups)
    elif not dealt.classes and dealt.task is not None and dealt.task not in axes:
        axes.append(dealt.task)
    leaks = find_leaks(dealt.chosen, axes)
    if not leaks:
        # Training and validation may share a domain of texts: there are no units to separate.
        units = [*dealt.groups, *([dealt.target] if "" in axes else [])]
        named = f"no {' or '.join(units)} and " if units else ""
        text = f"{named}no equal sequence is in two splits; no rows are shared"
        leaks = [Finding("leaks", text)]
    findings = [*leaks, *(Finding("data", text, "warning") for text in dealt.warnings)]
    if isinstance(tasks, TableTasks):
        findings += _unnamed_groups(tasks, dealt)
    enough, distribution = _enough(experiment, dealt)
    findings.append(enough)
    if distribution is not None and isinstance(tasks, TableTasks):
        if tasks.kind == "forecast":
            findings += find_future_reads(distribution, Cutter.of(tasks).num_known)
        else:
            findings += find_shared_sides(distribution.recorded or distribution)
    is_sound = all(finding.level != "error" for finding in findings)
    ways = _ways(experiment, dealt, distribution) if is_sound and distribution is not None else ()
    return Inspection(experiment, dealt, tuple(findings), ways)


def _enough(experiment: Experiment, dealt: Dealt) -> tuple[Finding, TaskDistribution | None]:
    """Whether the data serve the episodes, as the loader itself says, and what it has loaded.

    Where they do not: what would fit.
    """
    tasks = experiment.tasks
    asked = tasks.num_ways, tasks.num_shots + tasks.num_queries
    try:
        distribution = load_tasks(experiment)
    except DataError as error:
        is_cut = isinstance(tasks, TableTasks) and tasks.window is not None
        ways, examples = dealt.fitting(*asked) if dealt.classes and not is_cut else (0, 0)
        text = f"{error}"
        if ways >= 2 and examples >= 2:
            shots = min(tasks.num_shots, examples - 1)
            text += (
                f"; what would fit: num_ways: {ways}, num_shots: {shots}, num_queries: "
                f"{examples - shots}"
            )
        return Finding("enough", text, "error"), None
    ways, examples = asked
    of = "windows" if isinstance(tasks, TableTasks) and tasks.window else "sequences"
    text = f"every split serves {ways} ways with {examples} {of} each"
    if distribution.target_scale is not None:
        text = (
            f"every split serves {experiment.tasks.num_shots} support examples and "
            f"{experiment.tasks.num_queries} queries of other sequences"
        )
    if distribution.season is not None:
        fewest = min(len(dealt.chosen[split]) for split in SPLITS)
        text = f"every split has {fewest} series or more that can be cut"
    return Finding("enough", text), distribution


def _ways(experiment: Experiment, dealt: Dealt, distribution: TaskDistribution) -> tuple[Way, ...]:
    """Lists the classes and sequences of episode 0 of the meta-test."""
    episode, tested = distribution.episode("test", 0), dealt.chosen["test"]
    assert episode.support_ids is not None
    assert episode.query_ids is not None
    tasks = experiment.tasks
    names = tested.groups[tasks.sequence] if isinstance(tasks, TableTasks) else tested.ids
    if isinstance(tasks, TableTasks) and tasks.kind == "forecast":
        return (_series(tasks, distribution, dealt),)
    if distribution.target_scale is not None:
        return (_numbers(distribution, names),)
    found = []
    for way in range(tasks.num_ways):
        support = episode.support_ids[episode.support_y == way]
        query = episode.query_ids[episode.query_y == way]
        found.append(
            Way(
                tested.classes[int(support[0])],
                tuple(names[int(row)] for row in support),
                tuple(names[int(row)] for row in query),
            )
        )
    return tuple(found)


def _numbers(distribution: TaskDistribution, names: Sequence[str]) -> Way:
    """The sequences of episode 0, with the number of each example."""
    episode, scale = distribution.episode("test", 0), distribution.target_scale
    assert scale is not None, "the targets are numbers"

    def told(ids: np.ndarray | None, y: np.ndarray) -> tuple[str, ...]:
        assert ids is not None, "episodes of tables have ids"
        values = scale.mean + scale.deviation * y[:, 0]
        return tuple(f"{names[row]}: {value:.4g}" for row, value in zip(ids, values, strict=True))

    return Way(
        scale.name,
        told(episode.support_ids, episode.support_y),
        told(episode.query_ids, episode.query_y),
    )


def _series(tasks: TableTasks, distribution: TaskDistribution, dealt: Dealt) -> Way:
    """Describes the series of episode 0 and the rows of its windows."""
    episode, past = distribution.episode("test", 0), Cutter.of(tasks).past
    assert episode.support_ids is not None
    assert episode.query_ids is not None
    assert episode.query_units is not None
    names = np.unique(dealt.chosen["test"].groups[tasks.sequence])
    start = int(episode.query_ids[0]) - past

    def told(first: int, end: int) -> str:
        return f"rows {first + 1} to {end}, then {end + 1} to {end + tasks.horizon}"

    return Way(
        str(names[episode.query_units[tasks.sequence][0]]),
        tuple(told(start, int(end)) for end in episode.support_ids),
        tuple(told(int(end) - past, int(end)) for end in episode.query_ids),
    )


def _unnamed_groups(tasks: TableTasks, dealt: Dealt) -> list[Finding]:
    """Finds columns that may be groups but are not declared, with a value in two splits."""
    known = {tasks.sequence, tasks.target_name, tasks.time, *tasks.groups, *tasks.channels}
    known |= {*tasks.known}
    columns = read_columns_of(tasks, but={name for name in known if name is not None})
    if not columns:
        return []
    has_numbers = tasks.kind == "forecast" or tasks.has_numbers
    compared = [tasks.sequence, *([] if has_numbers else [tasks.target_name])]
    facts = read_columns_of(tasks, compared)
    own, target = facts[tasks.sequence], facts.get(tasks.target_name, Column())
    if own.codes is None or (target.codes is None and not has_numbers):
        return []
    split_of = {
        name: split for split in SPLITS for name in dealt.chosen[split].groups[tasks.sequence]
    }
    findings = []
    for name, column in columns.items():
        if not 1 < len(column.labels) < len(own.labels):
            continue
        if not column.is_constant_in(own.codes):
            continue
        if target.codes is not None and not has_numbers and column.is_constant_in(target.codes):
            continue
        assert column.codes is not None, "it has labels"
        first = np.unique(own.codes, return_index=True)[1]
        splits: dict[int, set[str]] = {}
        for sequence, code in zip(own.labels, column.codes[first], strict=True):
            if sequence in split_of:
                splits.setdefault(int(code), set()).add(split_of[sequence])
        if shared := [column.labels[code] for code, own in splits.items() if len(own) > 1]:
            text = (
                f"{len(shared)} of its values are in two splits or more, {shared[0]!r:.40} for "
                "one; if sequences that share it belong together, add it to tasks.groups"
            )
            findings.append(Finding(name, text, "warning"))
    return findings
