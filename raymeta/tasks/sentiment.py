"""Few-shot classification of sentences as praise or blame in an unseen domain.

The data are UCI "Sentiment Labelled Sentences": 1,000 sentences each about products, films and
restaurants.  Three domains are few: results hold for the held-out one only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymeta.data.files import read_each, unread_files
from raymeta.data.readers.sentences import read_sentences
from raymeta.data.sequences import joined
from raymeta.data.splits import Deal
from raymeta.episodes import TaskDistribution
from raymeta.errors import DataError
from raymeta.storage.paths import path_at
from raymeta.tasks.domains import deal_domains, domain_tasks, text_inputs_of
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.settings import SentimentTasks

CLASSES = ("0", "1")
_CLASS_NAMES = ("0 (blame)", "1 (praise)")  # for people


def load_sentiment(
    settings: SentimentTasks, *, seed: int, sealed: bool = False
) -> TaskDistribution:
    """The task distribution over domains of sentences; see `raymeta.tasks.domains`.

    Args:
        settings: of the tasks.
        seed: of the episodes.
        sealed: whether to use the sealed deal.

    Raises:
        DataError: a file is broken, two are copies, or the data cannot serve such episodes.
    """
    held_out = settings.test_domain
    files = settings.data_files()
    domains = [path.stem for path in files]
    if held_out not in domains or len(domains) < 2:
        raise DataError(
            f"{settings.data_dir or 'shipped data'}: expected a JSON file for the held-out domain "
            f"{held_out!r:.60} and at least one more, but found: "
            f"{', '.join(domains[:10]) or 'none'}"
        )
    unread = unread_files(path_at(settings.data_dir), files) if settings.data_dir else []
    whole = joined(read_each(read_sentences, files))
    deal: Deal = {"domain": {d: "test" if d == held_out else "train" for d in domains}}
    dealt, encoded = deal_domains(whole, settings, deal, target="class", sealed=sealed)
    dealt = replace(dealt, warnings=(*unread, *dealt.warnings))
    tasks = domain_tasks("sentiment", dealt, encoded, settings, seed)
    return replace(tasks, legend=replace(tasks.legend, classes=_CLASS_NAMES))


def sentiment_inputs(settings: SentimentTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is a text; its class is 0 (blame) or 1 (praise), as in meta-training."""
    return text_inputs_of(settings, facts, text="text", target="class", classes=CLASSES)
