"""`raymeta new` on a table of texts: its guesses, the file it writes, and its refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raymeta.errors import DataError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.draft import draft
from raymeta.tasks.guess import guess_tasks
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import load_tasks
from raymeta.tasks.settings import TextTasks
from tests.tasks.test_text import rows


def written(folder: Path, frame: pd.DataFrame) -> str:
    frame.to_csv(folder / "texts.csv", index=False)
    return str(folder / "texts.csv")


def test_texts_labels_and_domains_are_found_and_the_file_is_read_as_it_is(tmp_path: Path) -> None:
    frame = rows().assign(number=range(len(rows())))
    guess = guess_tasks(written(tmp_path, frame))
    found = guess.settings
    assert isinstance(found, TextTasks)
    assert (found.text, found.label, found.domain) == ("sentence", "intent", "language")
    assert (found.num_ways, found.num_shots, found.test_domains) == (3, 1, 1)
    assert {f.subject: f.text for f in guess.findings}["number"] == "not used"
    (tmp_path / "mine.yaml").write_text(draft("mine", found, "raymeta new", "mine.yaml"))
    experiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert experiment.tasks == found
    assert experiment.search.space
    load_tasks(experiment).episodes("test", range(3))
    inspection = inspect_tasks(experiment)
    assert inspection.is_sound
    assert inspection.findings[0].text.startswith("no equal sequence is in two splits")


def test_options_settle_open_roles(tmp_path: Path) -> None:
    frame = rows().rename(columns={"intent": "what", "language": "where"})
    location = written(tmp_path, frame)
    with pytest.raises(DataError, match=r"which column is the class of a text.*--target"):
        guess_tasks(location)
    with pytest.raises(DataError, match=r"the domain, which is a task\? no column .* --task"):
        guess_tasks(location, target="what")
    found = guess_tasks(location, target="what", task=["where"]).settings
    assert isinstance(found, TextTasks)
    assert (found.label, found.domain) == ("what", "where")


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        (lambda f: f, {"target": "sentence"}, "has another role already"),
        (lambda f: f, {"target": "intents"}, "did you mean 'intent'"),
        (lambda f: f, {"task": ["language", "intent"]}, "one column of domains, but got language"),
        (lambda f: f.assign(topic=f.language), {}, "several could be: topic, language"),
        (lambda f: f.assign(language=f.index), {}, "the domain, which is a task"),
        (lambda f: f.assign(intent=f.index), {"target": "intent"}, "--target intent must hold"),
        (
            lambda f: f[(f.language != "language 1") | (f.intent != "cancel")],
            {},
            "'language 1' has 0 of label 'cancel'",
        ),
    ],
)
def test_what_cannot_be_guessed_is_refused_with_the_option_that_tells_it(
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    options: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(DataError, match=complaint) as error:
        guess_tasks(written(tmp_path, change(rows())), **options)
    assert len(str(error.value)) < 1500
