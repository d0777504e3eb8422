"""Loads the tasks of an experiment from its source.

How to add a source `words`, with `raymeta.tasks.table` as the model:

1. `raymeta/tasks/settings.py`: a subclass `WordTasks` of `TaskSettings`: `source:
   Literal["words"]`, `problem`, its keys with ranges and defaults, `FIXED` (the keys that cannot be
   searched) and `data_files()` (exactly the files that are read).  The class registers itself.
2. `raymeta/data/readers/words.py`, if the format is new: a function of one file that returns
   `Sequences` or raises a `DataError` that names file, place, rule and remedy.
3. `raymeta/tasks/words.py`: `load_words(settings, *, seed, sealed)` returns a `TaskDistribution`.
   It reads (`read_each`), refuses copies (`refuse_copies`), deals units into splits (`deal_units`,
   and `deal_sealed` of that deal if `sealed`),
   keeps one sequence of each content (`distinct_rows`), and draws episodes (`ClassPool`,
   `ClassSampler`, `episode_of`).  `fingerprint`, `deal` and `facts` bind a network to its data;
   `warnings` tell the user what was dropped and why; `legend` says how a report draws episodes.
4. `word_inputs(settings, facts)` beside the loader: what an example is to whoever uses a trained
   network, and how it is prepared, by the same functions as in training.  What the network reads is
   named (`features`, or `words` of texts) where it is not the channels.
5. Here: one line in `SOURCES`.
6. `tests/tasks/test_contract.py`: one entry that writes a small data set; the suite does the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from raymeta.data.encoder import encoder_files
from raymeta.data.files import Stamp, stamps
from raymeta.episodes import TaskDistribution
from raymeta.errors import DataWarning, RunError
from raymeta.experiment.schema import Experiment
from raymeta.tasks.base_settings import SETTINGS, TaskSettings
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.pen import load_pen, pen_inputs
from raymeta.tasks.sentiment import load_sentiment, sentiment_inputs
from raymeta.tasks.sinusoid import load_sinusoid, sinusoid_inputs
from raymeta.tasks.table import deal_table, load_table, table_inputs
from raymeta.tasks.text import deal_text, load_text, text_inputs


@dataclass(frozen=True)
class Source:
    """The functions that serve the data of a source.

    Attributes:
        load: draws episodes: `load(settings, *, seed, sealed)`.
        inputs: what an example is, and how networks read it: `inputs(settings, facts)`; None if
            trained networks cannot be used on other data.
        deal: deals the data without drawing episodes, for `raymeta inspect`:
            `deal(settings, *, sealed)`; None where there is nothing of a user's own to look at.
    """

    load: Callable[..., TaskDistribution]
    inputs: Callable[..., Inputs] | None = None
    deal: Callable[..., Dealt] | None = None


# By the `source` of the settings.
SOURCES: dict[str, Source] = {
    "pen": Source(load_pen, pen_inputs),
    "python": Source(load_table, table_inputs, deal_table),  # a table from elsewhere
    "sentiment": Source(load_sentiment, sentiment_inputs),
    "sinusoid": Source(load_sinusoid, sinusoid_inputs),
    "table": Source(load_table, table_inputs, deal_table),
    "text": Source(load_text, text_inputs, deal_text),
}


def load_inputs(settings: TaskSettings, facts: Mapping[str, Any]) -> Inputs:
    """Gets the inputs of networks that were trained on a source.

    Args:
        settings: the `tasks` of their experiment; no data are read.
        facts: `TaskDistribution.facts` of their training, which their files keep.

    Raises:
        RunError: settings and facts do not belong together, or the source has no `inputs`.
    """
    inputs = SOURCES[settings.source].inputs
    if inputs is None:
        raise RunError(
            f"networks of the source {settings.source!r} cannot be used on other data: it has no "
            "`inputs` in raymeta.tasks.load.SOURCES"
        )
    try:
        return inputs(settings, facts)
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"the facts of the data do not fit the `tasks` settings ({str(error)[:200]}); put back "
            "the files of the run"
        ) from error


def load_tasks(experiment: Experiment) -> TaskDistribution:
    """Loads the task distribution of an experiment.

    Within a process, the same settings are loaded once while their files stay as they are.

    Args:
        experiment: whose `tasks`, `seed`, `training.seed` and `evaluation.sealed` count.

    Raises:
        DataError: the data are broken, or cannot serve such episodes.

    Warns:
        DataWarning: data were accepted but not used as they are.
    """
    tasks = experiment.tasks
    files = tasks.data_files()
    if (encoder := tasks.pretrained()) is not None:
        files += encoder_files(encoder)
    loaded = _load(
        tasks.source,
        tasks.model_dump_json(),
        experiment.seed,
        experiment.evaluation.sealed,
        stamps(files),
    )
    seed = experiment.training.seed
    return replace(loaded, training_seed=seed) if seed else loaded


@lru_cache(maxsize=8)
def _load(
    source: str, settings_json: str, seed: int, sealed: bool, _: tuple[Stamp, ...]
) -> TaskDistribution:
    settings = SETTINGS[source].model_validate_json(settings_json)
    tasks = SOURCES[source].load(settings, seed=seed, sealed=sealed)
    if settings.data_dir is not None:  # users cannot change the shipped data
        for text in tasks.warnings:
            warnings.warn(text, DataWarning, stacklevel=3)
    return tasks
