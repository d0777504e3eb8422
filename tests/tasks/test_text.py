"""Tables of texts give the tasks that `sentiment` makes of the same sentences, with any labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raymeta.episodes import SPLITS, TaskDistribution
from raymeta.errors import DataError, ExperimentError
from raymeta.experiment.schema import Experiment
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import load_tasks
from raymeta.tasks.settings import SENTENCES_DIR

LABELS = ("book a table", "cancel", "ask for help")
SIZES = {"num_shots": 1, "num_queries": 2}
WORDS = ("red", "green", "blue", "grey")


def rows(num_domains: int = 4, repeats: int = 40) -> pd.DataFrame:
    """Makes distinct requests in several made-up languages."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "sentence": f"{label} d{'abcd'[domain]} " + " ".join(rng.choice(WORDS, 12)),
                "intent": label,
                "language": f"language {domain}",
            }
            for domain in range(num_domains)
            for label in LABELS
            for _ in range(repeats)
        ]
    )


Load = Callable[..., TaskDistribution]


def experiment(folder: Path, **changes: Any) -> Experiment:
    columns = {"text": "sentence", "label": "intent", "domain": "language"}
    tasks = {"source": "text", "data_dir": str(folder), "num_ways": 3, **SIZES, **columns} | changes
    return Experiment.model_validate({"name": "own", "tasks": tasks})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(table: pd.DataFrame, **changes: Any) -> TaskDistribution:
        table.to_csv(tmp_path / "texts.csv", index=False)
        return load_tasks(experiment(tmp_path, **changes))

    return load


def test_a_table_of_the_shipped_sentences_is_the_same_data(load: Load) -> None:
    parts = [
        pd.DataFrame(json.loads(path.read_text())).assign(domain=path.stem)
        for path in sorted(SENTENCES_DIR.glob("*.json"))
    ]
    table = pd.concat(parts)
    table = table[table.text.str.strip() != ""].rename(columns={"class": "label"})
    table = table.astype({"label": int})
    names: dict[str, Any] = {"text": "text", "label": "label", "domain": "domain", "num_ways": 2}
    found = load(table, **names)
    (held_out,) = (d for d, split in found.deal["domain"].items() if split == "test")
    tasks = {"source": "sentiment", "test_domain": held_out, **SIZES}
    expected = load_tasks(Experiment.model_validate({"name": "shipped", "tasks": tasks}))
    assert found.fingerprint == expected.fingerprint
    assert found.facts == {**expected.facts, "classes": ["0", "1"]}
    for split in SPLITS:
        one, other = (t.episodes(split, range(5)) for t in (found, expected))
        assert torch.equal(one.query.x, other.query.x)


def test_any_labels_are_classes_and_a_domain_is_held_out(load: Load) -> None:
    tasks = load(rows(), test_domains=2)
    splits = list(tasks.deal["language"].values())
    assert sorted(splits) == ["test", "test", "train", "train"]
    episode = tasks.episode("test", 0)
    assert sorted(set(episode.query_y.tolist())) == [0, 1, 2]
    assert tasks.fixed_labels


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_every_format_is_the_same_data(load: Load, tmp_path: Path, form: str) -> None:
    expected = load(rows())
    if form == "jsonl":
        rows().to_json(tmp_path / "texts.jsonl", orient="records", lines=True)
    else:
        rows().to_parquet(tmp_path / "texts.parquet")
    found = load_tasks(experiment(tmp_path, files=[f"texts.{form}"]))
    assert found.fingerprint == expected.fingerprint


def test_inspect_counts_sentences_and_shows_an_episode(load: Load, tmp_path: Path) -> None:
    load(rows())
    found = inspect_tasks(experiment(tmp_path))
    assert found.is_sound
    assert "one language that no network has seen" in found.task
    assert [way.label for way in found.ways] == sorted(LABELS)
    used = sum(len(own) for own in found.dealt.chosen.values())
    assert used == found.dealt.num_read == len(rows())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_ways": 2}, "tasks.num_ways must be 3, the number of labels in column intent"),
        ({"test_domains": 4}, "column language must have more than 4 domains"),
        ({"text": "sentense"}, "has no column 'sentense'; did you mean 'sentence'?"),
        ({"num_shots": 50}, "must be at most"),
    ],
)
def test_unusable_text_tables_are_refused(
    load: Load, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint.replace("?", r"\?")):
        load(rows(), **changes)


def test_a_missing_text_or_label_is_refused_with_its_row(load: Load) -> None:
    for column in ("sentence", "intent", "language"):
        table = rows().astype(object)
        table.loc[6, column] = None
        with pytest.raises(DataError, match=f"row 7, column {column}: the value is missing"):
            load(table)


def test_texts_without_a_word_are_skipped_with_a_warning(load: Load) -> None:
    table = rows()
    table.loc[6, "sentence"] = "…"
    with pytest.warns(UserWarning, match=r"1 sentences have no word.*row 7"):
        load(table)


def test_one_column_in_two_roles_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ExperimentError, ValueError), match="must be three columns"):
        experiment(tmp_path, label="sentence")
