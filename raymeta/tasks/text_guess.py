"""Guesses the settings of a table of labelled texts: its columns and episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymeta.data.readers.columns import Column
from raymeta.errors import DataError, shown
from raymeta.finding import Finding
from raymeta.tasks.roles import TARGETS, Roles
from raymeta.tasks.settings import TextTasks
from raymeta.tasks.text import deal_text

# Names in lower case.
_LABELS = (*TARGETS, "sentiment", "intent", "polarity", "stars", "rating")
_DOMAINS = (
    "domain", "product", "product_category", "forum", "topic", "source", "dataset", "language",
    "lang", "author", "user", "user_id", "customer",
)  # fmt: skip
_WORDS = 3  # mean words above which a column holds texts, not names
_MAX_SHOTS, _MAX_QUERIES = 5, 10  # the first experiment's shots and queries, if the data suffice
_HELD_OUT = 0.2  # of the domains


def text_column(columns: Mapping[str, Column]) -> str | None:
    """Finds the column of texts: several words, seldom repeated; None unless it is unique."""
    found = []
    for name, column in columns.items():
        if column.codes is None or column.numbers is not None or column.times is not None:
            continue
        num_words = np.mean([len(text.split()) for text in column.labels])
        if num_words >= _WORDS and 2 * len(column.labels) > len(column.codes):
            found.append(name)
    return found[0] if len(found) == 1 else None


def guess_texts(
    roles: Roles, text: str, *, target: str | None, task: Sequence[str], files: Mapping[str, Any]
) -> TextTasks:
    """Guesses the settings of a table with a column of texts.

    Args:
        roles: of the table's columns; findings are added to them.
        text: the column of texts.
        target: the column of the labels, if it is known.
        task: the column of the domains, if it is known.
        files: `data_dir` and `files` of the settings.

    Raises:
        DataError: a role stays open, or the texts cannot serve any episode.
    """
    roles.taken.add(text)
    roles.say("text", f"{text}: texts of several words, a row each")
    label = _chosen(roles, "label", _LABELS, target, "--target", "the class of a text")
    if len(task) > 1:
        raise DataError(f"--task: texts have one column of domains, but got {', '.join(task)}")
    given = task[0] if task else None
    domain = _chosen(roles, "domain", _DOMAINS, given, "--task", "the domain, which is a task")
    for name in roles.columns:
        if name not in roles.taken:
            roles.say(name, "not used", "note")

    domains = len(roles.columns[domain].labels)
    found = {
        **files,
        "source": "text",
        "text": text,
        "label": label,
        "domain": domain,
        "num_ways": len(roles.columns[label].labels),
        "test_domains": max(1, round(_HELD_OUT * domains)),
    }
    dealt = deal_text(TextTasks.model_validate(found | {"num_shots": 1, "num_queries": 1}))
    counts = [
        (count, unit, kind)
        for split in dealt.chosen
        for unit, own in dealt.sizes(split).items()
        for kind, count in own.items()
    ]
    fewest, unit, kind = min(counts)
    if fewest < 2:
        raise DataError(
            f"{roles.location}: every domain needs two texts of every label, in meta-validation "
            f"too, but {shown(unit)} has {fewest} of label {shown(kind)}; add some, leave the "
            "domain out, or name another column with --task"
        )
    shots = min(_MAX_SHOTS, max(1, fewest // 3))
    queries = min(_MAX_QUERIES, fewest - shots)
    counted = ", ".join(f"{len(own)} {split}" for split, own in dealt.chosen.items())
    roles.say(
        "tasks",
        f"a task is one {domain} with all {found['num_ways']} labels of {label}; {shots} support "
        f"and {queries} query texts a label; texts: {counted}",
    )
    return TextTasks.model_validate(found | {"num_shots": shots, "num_queries": queries})


def _chosen(
    roles: Roles, role: str, known: Sequence[str], given: str | None, option: str, what: str
) -> str:
    """Finds a column of labels that texts share, by its option or its name."""
    if given is not None:
        name = roles.given(given, option)
        if not _is_shared(roles.columns[name]):
            raise DataError(
                f"{roles.location}: {option} {name} must hold {what}: text or whole numbers, two "
                "values at least, none missing, each for several texts"
            )
        return name
    found = [name for name in roles.named(known) if _is_shared(roles.columns[name])]
    if len(found) != 1:
        reason = f"several could be: {', '.join(found)}" if found else "no column is called so"
        raise DataError(
            f"{roles.location}: which column is {what}? {reason}; name it with {option}; the "
            f"columns are {', '.join(map(shown, roles.columns))}"[:1000]
        )
    roles.taken.add(found[0])
    roles.findings.append(Finding(role, f"{found[0]}: by its name"))
    return found[0]


def _is_shared(column: Column) -> bool:
    return column.codes is not None and 2 <= len(column.labels) <= len(column.codes) // 2
