"""The model card of a network: what it does, how well, and what it is not good for.

Markdown in the form of the Hugging Face Hub (Mitchell et al. 2019, "Model Cards for Model
Reporting"), with the meta-test in its front matter.  It names neither this machine nor its users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from raymeta.console.text import value_text
from raymeta.evaluation.familiarity import Reference
from raymeta.evaluation.scores import MetaTest
from raymeta.experiment.file import to_yaml
from raymeta.experiment.schema import Experiment
from raymeta.inference.trained import Trained
from raymeta.report.words import (
    answer,
    asked,
    certainty_lines,
    interval_lines,
    own_units_table,
    problem_words,
    score_table,
    verdict_lines,
)
from raymeta.run_format import RunOrigin

_MOST_SHOWN = 40  # channels or classes


@dataclass(frozen=True)
class CardFacts:
    """The facts that a model card shows.

    `experiment` is the run's own, as it was searched; `trained` is how the network was trained.
    `result` is None of a run that was not meta-tested.
    """

    experiment: Experiment
    trained: Trained
    num_networks: int
    reference: Reference | None
    result: MetaTest | None
    origin: RunOrigin | None

    @property
    def is_forecast(self) -> bool:
        """Whether the network forecasts series."""
        return self.trained.recipe.problem.is_forecast

    @property
    def is_text(self) -> bool:
        """Whether the network reads texts."""
        return not self.is_forecast and self.trained.inputs.text is not None

    @property
    def task_type(self) -> str:
        """The Hub's name for this type of task."""
        if self.is_text:
            return "text-classification"
        asked = "forecasting" if self.is_forecast else self.trained.recipe.problem.name
        return f"time-series-{asked}"


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with a front matter in YAML."""
    name = facts.trained.experiment.name
    parts = [
        _front_matter(facts),
        f"# {name}",
        _what(facts),
        "## How to use it",
        _use(facts),
        "## How well it does",
        *_meta_test(facts),
        "## What it is not good for",
        _items(_limits(facts)),
        "## Data and splits",
        *_data(facts),
        "## How it was trained and chosen",
        _items(_training(facts)),
        "## How to repeat it",
        *_repeat(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    experiment = facts.trained.experiment
    task = facts.task_type
    tags = ["meta-learning", "few-shot-learning", task, experiment.learner, experiment.model.cell]
    lines = ["---", "library_name: raymeta", "license: unknown", "tags:"]
    lines += [f"- {_quoted(tag)}" for tag in tags]
    result = facts.result
    if result is not None and math.isfinite(result.rows[0].score.mean):
        metric = result.metric
        about = f"{metric}, mean over {result.num_episodes} meta-test episodes"
        lines += [
            "model-index:",
            f"- name: {_quoted(experiment.name)}",
            "  results:",
            "  - task:",
            f"      type: {_quoted(task)}",
            f"      name: {_quoted(problem_words(experiment))}",
            "    dataset:",
            f"      type: {_quoted(experiment.tasks.source)}",
            f"      name: {_quoted(experiment.name)}",
            "      split: meta-test",
            "    metrics:",
            f"    - type: {_quoted(metric.replace(' ', '_').lower())}",
            f"      name: {_quoted(about)}",
            f"      value: {result.rows[0].score.mean!r}",
        ]
    return "\n".join([*lines, "---"])


def _what(facts: CardFacts) -> str:
    experiment, spec = facts.trained.experiment, facts.trained.recipe.spec
    several = f"{facts.num_networks} trainings answer together. " if facts.num_networks > 1 else ""
    both = "bidirectional " * spec.bidirectional
    layers = f"{spec.num_layers} layer{'s' * (spec.num_layers != 1)}"
    network = f"a {both}{spec.cell.upper()} network of {layers} with {spec.hidden_size} units"
    told = (
        "It forecasts a new series from the series' own past."
        if facts.is_forecast
        else "It is made to be adapted to a new task, a small data set, from a few examples of it; "
        "as it is, it answers nothing."
    )
    return (
        f"This is {network}, meta-trained by the learner `{experiment.learner}` for "
        f"{problem_words(experiment)}. {several}{told}"
    )


def _use(facts: CardFacts) -> str:
    if facts.is_forecast:
        lines = [
            'forecaster = raymeta.load_forecaster("this folder")',
            "forecaster.forecast(history)  # a DataFrame, one row a step of a series",
        ]
    else:
        given = "texts" if facts.is_text else "arrays [time step, channel], or a DataFrame"
        lines = [
            f'adapted = raymeta.load("this folder").adapt(support_x, support_y)  # {given}',
            "adapted.predict(x), adapted.familiarity  # see below",
        ]
    code = "\n".join(["import raymeta", "", *lines])
    return (
        f"```python\n{code}\n```\n\nLoading runs no code of this folder. `config.json` and "
        "`model.safetensors` are all that is read."
    )


def _meta_test(facts: CardFacts) -> Iterable[str]:
    result = facts.result
    if result is None:
        yield "It was not meta-tested: nothing is known of how well it does."
        return
    yield answer(result)
    better = "higher" if result.higher_is_better else "lower"
    yield (
        f"Meta-test: {problem_words(facts.experiment)}, {result.num_episodes} episodes, 95 % "
        f"intervals; {better} is better. *Ahead of it by*: mean difference over the same queries; "
        "negative: the control is better."
    )
    yield _table(*score_table(result))
    head, rows = own_units_table(result)
    if rows:
        yield _table(head, rows)
    lines = [*(line for line, _ in verdict_lines(result)), *interval_lines(result)]
    yield _items([*lines, *certainty_lines(result), *filter(None, [result.note])])


def _limits(facts: CardFacts) -> Iterable[str]:
    trained, result = facts.trained, facts.result
    if facts.reference is not None:
        yield (
            "Tasks unlike those of meta-training: support examples with a distance above "
            f"{facts.reference.threshold:.3g} (`adapted.familiarity`) are called unlike them, and "
            "the meta-test says nothing of such tasks. About one ordinary task in a hundred is "
            "called so too."
        )
    else:
        yield (
            "Tasks unlike those of meta-training; the network cannot tell that a task is unlike "
            "them."
        )
    if facts.is_text:
        yield "Texts of another language or kind than those of meta-training."
    else:
        yield (
            f"Other units or sampling than in meta-training. The inputs are {_channels(facts)}, in "
            "the units of the training data."
        )
    if not facts.is_forecast and trained.inputs.classes:
        yield f"Other classes than {_listed(trained.inputs.classes)}."
    if result is not None:
        open_ = [r.label for r in result.controls if result.verdict(r) != "beaten"]
        if open_:
            yield f"Where one of these does as well and is simpler: {_listed(open_)}."
    yield (
        "Conclusions about other deals of the data: the score is of one deal into splits, and its "
        "interval does not cover others."
    )


def _channels(facts: CardFacts) -> str:
    """The numbers of a time step, standardised ones with what they were in meta-training."""
    if facts.is_forecast:
        tasks = facts.trained.settings["tasks"]
        further = (tasks.get(key, ()) for key in ("features", "known", "categories"))
        return _listed([str(tasks["target"]), *chain(*further)])
    names, known = facts.trained.inputs.channels, facts.trained.identity.facts
    if not {"mean", "deviation"} <= known.keys() or len(known["mean"]) != len(names):
        return _listed(names)
    both = zip(names, known["mean"], known["deviation"], strict=True)
    return _listed([f"{name} ({mean:.4g} ± {spread:.2g})" for name, mean, spread in both])


def _data(facts: CardFacts) -> Iterable[str]:
    settings = facts.trained.settings["tasks"]
    yield (
        "The folder holds none of the data; of texts it holds the vocabulary. Units of `val_…` are "
        "for meta-validation, those of `test_…` for the meta-test alone, all others for "
        "meta-training."
    )
    rows = [
        [f"`tasks.{key}`", _setting(value)]
        for key, value in settings.items()
        if key != "data_dir" and value not in (None, [], {})
    ]
    fingerprint = facts.trained.identity.settings.get("data.fingerprint")
    yield _table(["setting", "value"], [*rows, ["fingerprint of the data", f"`{fingerprint}`"]])


def _training(facts: CardFacts) -> Iterable[str]:
    yield from asked(facts.experiment, names_data=False)
    best = facts.trained.experiment
    if facts.experiment.search.space:
        yield f"chosen by {best.metric} on meta-validation; the meta-test had no part in it"
        for key in facts.experiment.search.space:
            yield f"`{key}`: {value_text(best.value(key))}"
    yield f"{best.training.meta_steps} meta-steps, precision {best.training.precision}"
    if facts.num_networks > 1:
        yield f"trained from {facts.num_networks} seeds"


def _repeat(facts: CardFacts) -> Iterable[str]:
    yield "Write this to `experiment.yaml`, and the data to the folder that it names:"
    settings = Experiment.model_validate(facts.trained.settings)
    yield f"```yaml\n{to_yaml(settings).strip()}\n```"
    yield "```sh\nraymeta train experiment.yaml\n```"
    if facts.origin is not None:
        versions = ", ".join(f"{name} {number}" for name, number in facts.origin.versions.items())
        yield f"It was trained with {versions}."


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _listed(list(map(str, value)))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more


def _quoted(text: str) -> str:
    """A YAML scalar: JSON's strings are such."""
    return json.dumps(text)


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_line(text)}" for text in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in row) + " |" for row in cells
    )


def _line(text: str) -> str:
    """Text of data on one line, without markup of HTML."""
    return " ".join(text.split()).replace("<", "&lt;")
