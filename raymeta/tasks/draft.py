"""Writes a commented experiment file for a user's table."""

from __future__ import annotations

import json
import re
from string import Template
from typing import Any

from raymeta.errors import ExperimentError
from raymeta.tasks.base_settings import FileTasks
from raymeta.tasks.settings import TextTasks
from raymeta.tasks.table_settings import TableTasks

_PLAIN = re.compile(
    r"(?!(?:true|false|yes|no|on|off|null)$)[A-Za-z_][A-Za-z0-9_ .-]*", re.IGNORECASE
)

# The comment beside each key, in the order of the file.
_OF_TABLE = {
    "kind": "a task is new classes (classes), one group (groups), or one series (forecast)",
    "data_dir": "a relative folder is looked for where raymeta is run",
    "files": "names or patterns in data_dir; [] is every table file in it",
    "sequence": "which rows are one sequence",
    "target": "the class of a sequence, its {number: COLUMN}, or the numbers to be forecast",
    "time": "orders the rows of a sequence; null: as they stand in the file",
    "time_differences": "the time since the row before is a feature too",
    "missing": "refuse, interpolate or mask",
    "features": "the numbers that the network reads at each step",
    "categories": "names that it reads at each step; each column has few",
    "groups": "no group is in two splits",
    "window": "sequences are cut into windows of so many rows; null: a sequence is one example",
    "support": "a task's first sequences (first), or sequences at random (random)",
    "num_ways": "classes of an episode",
    "num_shots": "support examples a class",
    "num_queries": "query examples a class",
    "small_classes": "refuse, or leave_out what has too few sequences",
    "val_classes": "held out for validation, from which the search learns",
    "test_classes": "held out for the meta-test at the end",
    "val_groups": "held out for validation",
    "test_groups": "held out for the meta-test",
    "max_steps": "rows of a sequence; longer ones are refused",
    "season": "steps of a season; 1: none",
    "horizon": "steps to be forecast",
    "context": "an episode sees context + horizon steps before its cut",
    "difference": "networks correct the last season (season), moved by its change (drift), or last",
}
_OF_NUMBERS = _OF_TABLE | {"num_shots": "support examples", "num_queries": "query examples"}
_OF_FORECASTS = _OF_TABLE | {
    "num_shots": "windows before the cut, whose steps to come are known",
    "num_queries": "windows from the cut on, which are asked",
}
_OF_TEXTS = {
    "data_dir": _OF_TABLE["data_dir"],
    "files": _OF_TABLE["files"],
    "text": "what the network reads",
    "label": "the class of a text",
    "domain": "a task is one domain, with the labels of all",
    "num_ways": "the labels that there are",
    "num_shots": "support texts a label",
    "num_queries": "query texts a label",
    "test_domains": "held out whole for the meta-test",
    "max_tokens": "longer texts are cut here",
    "encoder": "a pretrained Transformer, a folder or a hub name; needs raymeta[text]",
}
# Keys that only some kinds of tasks have.
_ONLY = {
    "val_classes": {"classes"},
    "test_classes": {"classes"},
    **{key: {"forecast"} for key in ("season", "horizon", "context", "difference")},
    **{key: {"classes", "groups"} for key in ("num_ways", "missing")},
    **{key: {"groups"} for key in ("window", "support")},
}

# What a forecast may have besides, offered as comments.
_MORE_OF_FORECAST = """\
  # known: [price]              # numbers, not among the features, whose values to come are known
  # calendar: [month, weekday]  # of the times, also hour; read over the horizon too
  # quantiles: [0.1, 0.5, 0.9]  # also a distribution; take ridge out of search.space.learner"""

# The budget of a first run, as in `pen`.
_REST_OF_TABLE = Template("""
$learner

# For answers while a sequence is under way: bidirectional: false, and a learner but alignment.
model: {cell: gru, hidden_size: 64, bidirectional: true, pooling: attention}

training:
  meta_steps: 300             # more for a final result
  meta_batch_size: 16
  outer_lr: 0.003
  eval_every: 50
  val_episodes: 200

resources: {num_workers: 1, max_concurrent_trials: 2}

search:
  num_trials: 8
  num_sobol: 4
  grace_steps: 100
  space:
    learner: {choices: [prototypes, alignment, ridge, maml]}
    maml.inner_lr: {low: 0.03, high: 1.0, log: true, when: {learner: maml}}
    training.outer_lr: {low: 1e-3, high: 1e-2, log: true}
    model.hidden_size: {low: 32, high: 128, step: 32}
    model.dropout: {low: 0.0, high: 0.3}

evaluation: {num_episodes: 600, adaptation_steps: 10}
""")
_REST_OF_CLASSES = _REST_OF_TABLE.substitute(learner="learner: prototypes")
# All groups have the same classes.
_REST_OF_GROUPS = _REST_OF_TABLE.substitute(
    learner="learner: ridge\n\n# All tasks have the same classes, and begin from what all have in "
    "common.\nridge: {learned_prior: true, penalty: 10, scale: 2}"
)
# The same, as in `sentiment`.
_REST_OF_TEXTS = """
learner: maml

model: {cell: gru, hidden_size: 32, embedding_size: 32, dropout: 0.2, pooling: mean}

training:
  meta_steps: 200             # more for a final result
  meta_batch_size: 4
  outer_lr: 0.002
  eval_every: 40
  weight_decay: 0.01
  val_episodes: 100

resources: {num_workers: 1, max_concurrent_trials: 2}

search:
  num_trials: 8
  num_sobol: 4
  grace_steps: 80
  space:
    learner: {choices: [maml, prototypes, ridge]}
    maml.inner_lr: {low: 0.01, high: 1.0, log: true, when: {learner: maml}}
    training.outer_lr: {low: 5e-4, high: 1e-2, log: true}
    model.dropout: {low: 0.0, high: 0.5}
    tasks.token_dropout: {low: 0.0, high: 0.4}

evaluation: {num_episodes: 600, adaptation_steps: 5}
"""

_REST_OF_VALUES = Template("""
$learner

model: {cell: gru, hidden_size: 48}

training:
  meta_steps: 300             # more for a final result
  meta_batch_size: $batch
  outer_lr: $rate
  eval_every: 50
  val_episodes: 200

resources: {num_workers: 1, max_concurrent_trials: 2}

search:
  num_trials: 8
  num_sobol: 4
  grace_steps: 100
  space:
    learner: {choices: [$learners]}
    maml.inner_lr: {low: 0.003, high: 0.1, log: true, when: {learner: maml}}
    training.outer_lr: {low: 1e-3, high: 1e-2, log: true}
    model.hidden_size: {low: 32, high: 128, step: 32}
    model.dropout: {low: 0.0, high: 0.3}

evaluation: {num_episodes: 600, adaptation_steps: $steps}
""")

_REST_OF_FORECAST = _REST_OF_VALUES.substitute(
    learner="learner: maml\n\nmaml: {adaptation_steps: 1, inner_lr: 0.02, learn_inner_lr: true}",
    batch=16,
    rate=0.004,
    learners="maml, meta_sgd, ridge",
    steps=1,
)

_REST_OF_NUMBERS = _REST_OF_VALUES.substitute(
    learner="learner: ridge", batch=8, rate=0.003, learners="ridge, alpaca, maml", steps=5
)


def draft(name: str, settings: FileTasks, command: str, file: str) -> str:
    """Formats the text of an experiment file.

    Args:
        name: of the experiment; invalid characters become `-`.
        settings: of its tasks.
        command: that made it, for the first line.
        file: where it is written, for the comments.

    Raises:
        ExperimentError: a column's name has characters that YAML cannot hold.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("-_.")[:60] or "own"
    values = settings.model_dump()
    comments, rest = _OF_TABLE, _REST_OF_CLASSES
    if isinstance(settings, TextTasks):
        comments, rest = _OF_TEXTS, _REST_OF_TEXTS
    elif isinstance(settings, TableTasks) and settings.kind == "forecast":
        comments, rest = _OF_FORECASTS, _REST_OF_FORECAST
    elif isinstance(settings, TableTasks) and settings.has_numbers:
        comments, rest = _OF_NUMBERS, _REST_OF_NUMBERS
    elif isinstance(settings, TableTasks) and settings.kind == "groups":
        rest = _REST_OF_GROUPS
    lines = []
    for key in ("source", *comments):
        if isinstance(settings, TableTasks) and _is_idle(key, settings):
            continue
        entry = f"  {key}: {_yaml(values[key])}"
        comment = comments.get(key)
        lines.append(entry if comment is None else f"{entry:<30}  # {comment}")
    if isinstance(settings, TableTasks) and settings.kind == "forecast":
        lines.append(_MORE_OF_FORECAST)
    shown = command.encode("unicode_escape").decode()  # a comment ends with its line
    head = [
        f"# Made by `{shown}`.",
        f"# `raymeta inspect {file}` shows the tasks, `raymeta tune {file}` searches.",
        f"name: {_yaml(name)}",
        "",
        "tasks:",
    ]
    return "\n".join([*head, *lines, rest])


def _is_idle(key: str, settings: TableTasks) -> bool:
    """Whether a key is of another kind of tasks, or has an obvious default."""
    if settings.kind not in _ONLY.get(key, {settings.kind}):
        return True
    if settings.has_numbers and key in ("num_ways", "small_classes"):
        return True
    has_units = settings.kind == "forecast" or settings.has_numbers
    if key.endswith("_groups") and not settings.groups and not has_units:
        return True
    default = TableTasks.model_fields[key].default
    idle = ("categories", "time_differences", "max_steps", "window", "support")
    return key in idle and getattr(settings, key) == default


def _yaml(value: Any) -> str:
    """Formats a value on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(own)}' for key, own in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        if not value.isprintable():
            raise ExperimentError(
                f"the name {value!r:.100} holds characters that a YAML file cannot; rename it"
            )
        is_plain = _PLAIN.fullmatch(value) and value == value.strip()
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
