"""Few-shot classification of texts from a table, in unseen domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymeta.data.files import read_each
from raymeta.data.readers.sentences import TextReader
from raymeta.data.sequences import joined
from raymeta.data.splits import deal_units
from raymeta.data.token_vectors import TokenVectors
from raymeta.episodes import TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.domains import deal_domains, domain_tasks, text_inputs_of
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.settings import TextTasks


def load_text(settings: TextTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution over the domains of a table of texts; see `raymeta.tasks.domains`.

    Args:
        settings: of the tasks.
        seed: of the episodes.
        sealed: whether to use the sealed deal.

    Raises:
        DataError: a file is broken, two domains are copies, or the data cannot serve such episodes.
    """
    dealt, encoded = _dealt(settings, sealed)
    if settings.num_ways != len(dealt.classes):
        raise DataError(
            f"tasks.num_ways must be {len(dealt.classes)}, the number of labels in column "
            f"{settings.label}, but got {settings.num_ways}"
        )
    tasks = domain_tasks("text", dealt, encoded, settings, seed)
    return replace(tasks, facts={**tasks.facts, "classes": list(dealt.classes)})


def text_inputs(settings: TextTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is a text of the column `tasks.text`; its classes are those of meta-training."""
    return text_inputs_of(
        settings,
        facts,
        text=settings.text,
        target=settings.label,
        classes=tuple(map(str, facts["classes"])),
    )


def deal_text(settings: TextTasks, *, sealed: bool = False) -> Dealt:
    """Reads the texts and deals them into splits, whether or not they serve any episodes.

    Raises:
        DataError: a file is broken, two domains are copies, or there are too few domains.
    """
    return _dealt(settings, sealed)[0]


def _dealt(settings: TextTasks, sealed: bool) -> tuple[Dealt, TokenVectors | None]:
    files = settings.data_files()
    if not files:
        raise DataError(
            f"{settings.data_dir}: no file of a table found; set tasks.data_dir and tasks.files"
        )
    reader = TextReader(settings.text, settings.label, settings.domain)
    whole = joined(read_each(reader, files))
    domains = set(whole.groups[settings.domain])
    if len(domains) <= settings.test_domains:
        raise DataError(
            f"column {settings.domain} must have more than {settings.test_domains} domains, since "
            f"as many are held out (tasks.test_domains), but it has {len(domains)}"
        )
    deal = {
        settings.domain: deal_units(
            domains,
            num_test=settings.test_domains,
            num_val=0,
            salt=f"{settings.domain}-{settings.split_seed}",
        )
    }
    return deal_domains(whole, settings, deal, target=settings.label, sealed=sealed)
