"""Sentences: the held-out domain stays out; the vocabulary is of training sentences only.

The property of each test shows in the tokens, so most domains here are written for it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymeta.data.readers.sentences import read_sentences, tokenize
from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Examples, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.domains import PADDING, UNKNOWN, VAL_SHARE
from raymeta.tasks.sentiment import load_sentiment
from raymeta.tasks.settings import SENTENCES_DIR, SentimentTasks

SHIPPED = ("amazon", "imdb", "yelp")
DOMAINS = ("books", "films", "phones")
NUM_SENTENCES = 60  # of a class in a domain
# Every sentence has a code of its own, of words that all sentences share.
CODES = list(product(("red", "green", "blue"), repeat=4))[:NUM_SENTENCES]

Tokens = tuple[int, ...]
Write = Callable[[str, int, int], str]


def write_domains(folder: Path, text: Write, names: Sequence[str] = DOMAINS) -> Path:
    """Writes a file for each domain; `text(domain, class, number)` makes a sentence."""
    for name in names:
        rows = [
            {"text": text(name, label, number), "class": label}
            for number in range(NUM_SENTENCES)
            for label in (0, 1)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def marked(domain: str, label: int, number: int) -> str:
    return f"{domain} {('bad', 'good')[label]} {' '.join(CODES[number])}"


def own_word(domain: str, label: int, number: int) -> str:
    """Returns a word that occurs in one sentence only."""
    tens, ones = divmod(number, 10)
    return f"{domain}{'ab'[label]}{'abcdef'[tens]}{'abcdefghij'[ones]}"


def load(data_dir: Path | None, **changes: Any) -> TaskDistribution:
    settings: dict[str, Any] = {
        "source": "sentiment",
        "num_shots": 1,
        "num_queries": 3,
        "test_domain": "phones" if data_dir else "yelp",
        "max_tokens": 32,
        "min_count": 1,
        "token_dropout": 0.0,
        "split_seed": 3,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    seed = changes.pop("seed", 0)
    return load_sentiment(SentimentTasks.model_validate(settings | changes), seed=seed)


def sentences(tasks: TaskDistribution, split: Split, num_episodes: int = 150) -> list[Tokens]:
    """Returns the token ids, without padding, of all sentences in many episodes."""
    episodes = tasks.episodes(split, range(num_episodes))
    found: list[Tokens] = []
    for part in (episodes.support, episodes.query):
        assert part.lengths is not None
        rows = zip(part.x.flatten(0, 1).tolist(), part.lengths.flatten().tolist(), strict=True)
        found += [tuple(row[:length]) for row, length in rows]
    return found


@pytest.mark.parametrize("test_domain", DOMAINS)
def test_held_out_domain_occurs_in_meta_test_only(tmp_path: Path, test_domain: str) -> None:
    tasks = load(write_domains(tmp_path, marked), test_domain=test_domain)
    first = {split: {tokens[0] for tokens in sentences(tasks, split)} for split in SPLITS}
    # Its name, the first word of its sentences, was never seen in training.
    assert first["test"] == {UNKNOWN}
    assert len(first["train"]) == 2
    assert first["val"] == first["train"]
    assert UNKNOWN not in first["train"]


def test_a_held_out_domain_keeps_sentences_that_others_share(tmp_path: Path) -> None:
    def half_shared(domain: str, label: int, number: int) -> str:
        return marked(domain if number % 2 else "everywhere", label, number)

    tasks = load(write_domains(tmp_path, half_shared), num_queries=1)
    num_distinct = {split: len(set(sentences(tasks, split, 600))) for split in SPLITS}
    assert num_distinct["test"] == 2 * NUM_SENTENCES
    assert num_distinct["train"] + num_distinct["val"] == 2 * 2 * NUM_SENTENCES // 2


@pytest.mark.parametrize("split_seed", [1, 2, 3])
def test_validation_sentences_are_kept_out_of_training(tmp_path: Path, split_seed: int) -> None:
    tasks = load(write_domains(tmp_path, marked), split_seed=split_seed)
    train, val = (set(sentences(tasks, split, 500)) for split in ("train", "val"))
    assert not train & val
    total = 2 * 2 * NUM_SENTENCES
    assert len(train) + len(val) == total
    # Each sentence is kept back with this probability: three standard deviations of their number.
    deviation = 3 * np.sqrt(total * VAL_SHARE * (1 - VAL_SHARE))
    assert len(val) == pytest.approx(total * VAL_SHARE, abs=deviation)


def test_split_seed_deals_the_sentences_and_seed_does_not(tmp_path: Path) -> None:
    folder = write_domains(tmp_path, marked)
    val = [
        set(sentences(load(folder, seed=seed, split_seed=split_seed), "val"))
        for seed, split_seed in ((0, 2), (1, 2), (0, 3))
    ]
    assert val[0] == val[1] != val[2]


@pytest.mark.slow
@pytest.mark.parametrize("test_domain", SHIPPED)
def test_no_shipped_sentence_is_in_two_splits(test_domain: str) -> None:
    tasks = load(None, test_domain=test_domain, max_tokens=512, num_queries=50)
    found = [
        {tokens for tokens in sentences(tasks, split) if UNKNOWN not in tokens} for split in SPLITS
    ]
    assert len(found[0]) > 1000
    for one, other in combinations(found, 2):
        assert not one & other


def test_vocabulary_comes_from_training_sentences_only(tmp_path: Path) -> None:
    folder = write_domains(tmp_path, lambda *key: f"the {own_word(*key)} {own_word(*key)}")
    tasks = load(folder, min_count=2)
    known = set(tasks.facts["vocabulary"])
    assert tasks.input_spec.vocabulary_size == len({"<pad>", "<unk>"} | known)
    own = known - {"the"}
    assert len(known) == len(own) + 1
    assert not any(word.startswith("phones") for word in own)
    assert 2 * 2 * NUM_SENTENCES * 0.7 < len(own) < 2 * 2 * NUM_SENTENCES * 0.9
    assert not any(UNKNOWN in tokens for tokens in sentences(tasks, "train"))
    for split in ("val", "test"):
        assert {tokens[1:] for tokens in sentences(tasks, split)} == {(UNKNOWN, UNKNOWN)}


@pytest.mark.parametrize(("min_count", "is_known"), [(1, True), (2, False)])
def test_tokens_rarer_than_min_count_are_unknown(
    tmp_path: Path, min_count: int, is_known: bool
) -> None:
    folder = write_domains(tmp_path, lambda *key: f"common {own_word(*key)}")
    tasks = load(folder, min_count=min_count)
    found = sentences(tasks, "train")
    assert all(common > UNKNOWN for common, _ in found)
    assert all((rare > UNKNOWN) == is_known for _, rare in found)


def test_long_sentences_are_cut_and_short_ones_padded(tmp_path: Path) -> None:
    folder = write_domains(tmp_path, lambda *key: " ".join([own_word(*key)] * (key[2] + 1)))
    tasks = load(folder, max_tokens=7)
    for split in SPLITS:
        episodes = tasks.episodes(split, range(50))
        for part in (episodes.support, episodes.query):
            assert part.lengths is not None
            assert part.x.shape[2] == int(part.lengths.max()) == 7
            is_token = np.arange(7) < part.lengths[..., None].numpy()
            assert np.array_equal(part.x.numpy() != PADDING, is_token)
    # Of 1 to 20 words, each length below the limit occurs as it is, and none above it.
    lengths = {len(tokens) for tokens in sentences(tasks, "test")}
    assert lengths == set(range(1, 8))


def test_labels_are_the_classes_of_the_sentences(tmp_path: Path) -> None:
    folder = write_domains(tmp_path, lambda *key: f"{('bad', 'good')[key[1]]} {own_word(*key)}")
    tasks = load(folder, min_count=2)
    bad, good = (UNKNOWN + 1, UNKNOWN + 2)  # in alphabetical order
    for split in SPLITS:
        episodes = tasks.episodes(split, range(20))
        for part, num_examples in ((episodes.support, 1), (episodes.query, 3)):
            assert np.array_equal(part.x[..., 0] == good, part.y == 1)
            assert np.array_equal(part.x[..., 0] == bad, part.y == 0)
            assert (part.y == 1).sum(dim=1).tolist() == [num_examples] * 20


@pytest.mark.parametrize("split", SPLITS)
def test_support_and_query_share_no_sentence(tmp_path: Path, split: Split) -> None:
    tasks = load(write_domains(tmp_path, marked), num_shots=2, num_queries=2)
    for index in range(100):
        episode = tasks.episode(split, index)
        rows = np.concatenate([episode.support_x, episode.query_x])
        assert len(np.unique(rows, axis=0)) == 8
        assert episode.support_ids is not None
        assert episode.query_ids is not None
        assert len(set(episode.support_ids) | set(episode.query_ids)) == 8


def test_token_dropout_hides_training_tokens_only() -> None:
    whole, dropped = load(None), load(None, token_dropout=0.3)
    for split in SPLITS:
        before, after = (tasks.episodes(split, range(50)) for tasks in (whole, dropped))
        for old, new in ((before.support.x, after.support.x), (before.query.x, after.query.x)):
            if split != "train":
                assert old.equal(new)
                continue
            changed = old != new
            assert (new[changed] == UNKNOWN).all()
            assert (new[old == PADDING] == PADDING).all()
            known = old > UNKNOWN
            assert changed[known].float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_class_mean_features_count_words_and_ignore_padding() -> None:
    tasks = load(None)
    assert tasks.class_mean_features is not None
    assert tasks.input_spec.vocabulary_size is not None
    x = torch.tensor([[[7, 7, 3, PADDING], [UNKNOWN, PADDING, PADDING, PADDING]]])
    found = tasks.class_mean_features(Examples(x=x, y=torch.tensor([[0, 1]])))
    expected = np.zeros((1, 2, tasks.input_spec.vocabulary_size))
    expected[0, 0, [7, 3]] = np.array([2.0, 1.0]) / np.sqrt(5.0)
    expected[0, 1, UNKNOWN] = 1.0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_tokens_are_words_contractions_numbers_and_marks() -> None:
    text = "Didn't like it -- 10/10 WASTE, really?!"
    assert tokenize(text) == ["didn't", "like", "it", "10", "10", "waste", "really", "?", "!"]


@pytest.mark.parametrize("domain", SHIPPED)
def test_shipped_domains_have_500_sentences_of_each_class(domain: str) -> None:
    found = read_sentences(SENTENCES_DIR / f"{domain}.json")
    assert Counter(found.classes) == {"0": 500, "1": 500}
    assert found.lengths.min() > 0
    assert found.warnings == ()


GOOD_ROWS: list[dict[str, Any]] = [
    {"text": "well made", "class": 1},
    {"text": "too dear", "class": 0},
]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("", "cannot be read as JSON: the file is empty", id="empty file"),
        pytest.param("9" * 5000, "cannot be read as JSON: Exceeds the limit", id="huge integer"),
        pytest.param("[" * 10**5, "cannot be read as JSON: it is nested too deeply", id="deep"),
        pytest.param(
            '[{"text": "a", "text": "b", "class": 0}]', "a key is given twice", id="key twice"
        ),
        pytest.param('[{"text": "well made", "cla', "cannot be read as JSON", id="broken JSON"),
        pytest.param(b"\xff\xfe", "cannot be read as JSON", id="not UTF-8"),
        pytest.param('{"text": "a"}', "expected a list of {text, class}, but got dict", id="dict"),
        pytest.param("[]", "no sentence of class 0", id="no rows"),
        pytest.param(json.dumps(GOOD_ROWS[:1]), "no sentence of class 0", id="no blame"),
        pytest.param(json.dumps(GOOD_ROWS[1:]), "no sentence of class 1", id="no praise"),
        pytest.param(
            json.dumps([*GOOD_ROWS, {"text": "fine"}]),
            "row 3: expected {text, class}, but got {'text': 'fine'}",
            id="missing class",
        ),
        pytest.param(
            json.dumps([{"class": 1}, *GOOD_ROWS]),
            "row 1: expected {text, class}, but got {'class': 1}",
            id="missing text",
        ),
        pytest.param(
            json.dumps([*GOOD_ROWS, {"text": 5, "class": 1}]),
            "row 3: expected {text, class}, but got {'text': 5, 'class': 1}",
            id="text is a number",
        ),
        pytest.param(
            json.dumps([*GOOD_ROWS, {"text": "fine", "class": 2}]),
            "row 3: class must be 0 or 1, but got 2",
            id="wrong class",
        ),
        pytest.param(
            json.dumps([*GOOD_ROWS, {"text": "fine", "class": "1"}]),
            "row 3: class must be 0 or 1, but got '1'",
            id="class is text",
        ),
        pytest.param(
            json.dumps([*GOOD_ROWS, {"text": "fine", "class": 1.0}]),
            "row 3: class must be 0 or 1, but got 1.0",
            id="class is not whole",
        ),
    ],
)
def test_broken_file_is_refused_with_its_name_and_row(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    folder = write_domains(tmp_path, marked)
    broken = folder / "films.json"
    broken.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        load(folder)
    assert str(broken) in str(error.value)
    assert complaint in str(error.value)


def read_rows(folder: Path, *rows: dict[str, Any]) -> Sequences:
    path = folder / "films.json"
    path.write_text(json.dumps(rows))
    return read_sentences(path)


def test_sentences_without_a_token_are_counted(tmp_path: Path) -> None:
    empty: list[dict[str, Any]] = [{"text": "", "class": None}, {"text": "…", "class": 1}]
    found = read_rows(tmp_path, *GOOD_ROWS * 5, *empty)
    assert [x.tolist() for x in found.x[:2]] == [["well", "made"], ["too", "dear"]]
    assert len(found) == 10
    (warning,) = found.warnings
    assert warning.startswith("films.json: 1 sentences have no word, number, `!` or `?`")
    assert "(row 12, for one)" in warning


def test_many_sentences_without_a_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"films.json: 2 of 4 sentences have no word.*\(row 3, for"):
        read_rows(tmp_path, *GOOD_ROWS, {"text": "…", "class": 1}, {"text": "--", "class": 0})


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Очень плохо!", ["очень", "плохо", "!"]),
        ("Δεν μου αρέσει", ["δεν", "μου", "αρέσει"]),
        ("很好吃 5", ["很", "好", "吃", "5"]),
        ("すごい", ["す", "ご", "い"]),
        ("جيد جدا", ["جيد", "جدا"]),
        # As in the vocabulary of version 0.1.
        ("The Café's clichés: crêpe", ["the", "caf", "s", "clich", "s", "cr", "pe"]),
    ],
)
def test_words_of_any_script_are_tokens(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_accents_that_part_words_are_reported(tmp_path: Path) -> None:
    rows = [{"text": f"très bon {n}", "class": n % 2} for n in range(10)]
    (warning,) = read_rows(tmp_path, *rows).warnings
    assert warning.startswith("films.json: accented letters part the words of 10 sentences")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "films.json"
    path.write_text(json.dumps(GOOD_ROWS), encoding="utf-8-sig")
    assert len(read_sentences(path)) == 2


def test_sentences_that_are_equal_once_cut_are_in_one_split_only(tmp_path: Path) -> None:
    def alike(domain: str, label: int, number: int) -> str:
        word = ("bad", "good")[label]
        return f"{domain} {number // 2} {word} really {own_word(domain, label, number)}"

    tasks = load(write_domains(tmp_path, alike), max_tokens=4, num_queries=1)
    found = {split: set(sentences(tasks, split)) for split in SPLITS}
    assert not found["train"] & found["val"]
    (warning,) = tasks.warnings
    assert "sequences are copies of others and were dropped" in warning


def test_one_text_with_both_labels_is_dropped_and_counted(tmp_path: Path) -> None:
    def contradictory(domain: str, label: int, number: int) -> str:
        if number == 7 and domain == "phones":
            return "neither good nor bad"
        return marked(domain, label, number)

    tasks = load(write_domains(tmp_path, contradictory), num_queries=1)
    (warning,) = tasks.warnings
    assert warning == (
        "2 sequences of equal content have different classes and were dropped: phones.json, row 15 "
        "is of class 0, phones.json, row 16 of class 1, for one"
    )
    assert len(set(sentences(tasks, "test", 500))) == 2 * NUM_SENTENCES - 2


def test_a_contradiction_in_training_leaves_the_test_as_it_is(tmp_path: Path) -> None:
    def contradicting(domain: str, label: int, number: int) -> str:
        if number == 7 and domain != "phones":
            return marked("phones", 1 - label, number)
        return marked(domain, label, number)

    alone = load(write_domains(tmp_path, marked), num_queries=1)
    beside = load(write_domains(tmp_path, contradicting), num_queries=1)
    assert len(set(sentences(alone, "test", 500))) == 2 * NUM_SENTENCES
    assert len(set(sentences(beside, "test", 500))) == 2 * NUM_SENTENCES


def test_a_domain_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = write_domains(tmp_path, marked)
    (folder / "tablets.json").write_bytes((folder / "phones.json").read_bytes())
    with pytest.raises(
        DataError, match="domain phones and domain tablets share 120 of 120 sequences"
    ):
        load(folder)


@pytest.mark.parametrize("link", [True, False])
def test_a_link_to_nothing_or_a_folder_is_refused(tmp_path: Path, link: bool) -> None:
    folder = write_domains(tmp_path, marked)
    other = folder / "books2.json"
    if link:
        other.symlink_to(tmp_path / "nowhere")
    else:
        other.mkdir()
    with pytest.raises(DataError, match=re.escape(str(other))):
        load(folder)


@pytest.mark.parametrize(
    ("names", "changes", "complaint"),
    [
        pytest.param(
            DOMAINS,
            {"test_domain": "phone"},
            "a JSON file for the held-out domain 'phone' and at least one more, but found: books, "
            "films, phones",
            id="absent domain",
        ),
        pytest.param(
            ("phones",), {}, "at least one more, but found: phones", id="nothing to train on"
        ),
        pytest.param((), {}, "but found: none", id="empty folder"),
        pytest.param(
            DOMAINS,
            {"num_shots": 2, "num_queries": 31},
            "tasks.num_shots + tasks.num_queries must be at most 10, the examples of a class in "
            "the meta-val split, but got 33",
            id="more sentences than there are",
        ),
    ],
)
def test_impossible_request_is_refused(
    tmp_path: Path, names: Sequence[str], changes: Mapping[str, Any], complaint: str
) -> None:
    folder = write_domains(tmp_path, marked, names)
    with pytest.raises(DataError) as error:
        load(folder, **changes)
    assert complaint in str(error.value)
    assert complaint.startswith("tasks.") or str(folder) in str(error.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: expected a JSON file"):
        load(tmp_path / "nowhere")
