"""Few-shot judgement of sentences, praise or blame, in a domain never seen before.

The data are UCI "Sentiment Labelled Sentences": 1,000 sentences each about products, films and
restaurants.  One domain is held out whole for meta-test; of the other two, a share of the
sentences is kept back for meta-validation.  A task is a domain, an episode a sample of its
sentences.  Three domains are few: results speak of the held-out one only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.errors import DataError
from raymeta.remote import AnyPath, found_in
from raymeta.tasks.episodes import Episode, Examples, InputSpec, Split, TaskDistribution

DATA_DIR = Path(__file__).parent / "data" / "uci_sentences"
PADDING, UNKNOWN = 0, 1
NUM_WAYS = 2
VAL_SHARE = 0.2

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]")

# A domain's sentences of one class: token lists.
Sentences = list[list[str]]


def tokenize(text: str) -> list[str]:
    """Lower-case words (contractions whole), numbers, `!` and `?`."""
    return _TOKEN.findall(text.lower())


def read_domain(path: AnyPath) -> tuple[Sentences, Sentences]:
    """The tokenised sentences of blame (class 0) and praise (class 1) in a domain's file.

    Sentences without a token, and the empty last row that the original files carry, are dropped.

    Raises:
        DataError: the file cannot be read or breaks the format.
    """
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a list of {{text, class}}, but got {type(rows).__name__}"
        )
    classes: tuple[Sentences, Sentences] = ([], [])
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "class" not in row:
            raise DataError(f"{path}, row {number}: expected {{text, class}}, but got {row!r:.80}")
        if not (tokens := tokenize(row["text"])):
            continue
        if type(row["class"]) is not int or row["class"] not in (0, 1):
            raise DataError(f"{path}, row {number}: class must be 0 or 1, but got {row['class']!r}")
        classes[row["class"]].append(tokens)
    if not all(classes):
        raise DataError(f"{path}: no sentence of class {0 if not classes[0] else 1} found")
    return classes


def load_sentiment(
    *,
    num_shots: int,
    num_queries: int,
    test_domain: str,
    max_tokens: int,
    min_count: int,
    token_dropout: float,
    seed: int,
    split_seed: int,
    data_dir: AnyPath | None = None,
) -> TaskDistribution:
    """The task distribution over domains of sentences.

    Args:
        num_shots: support sentences a class.
        num_queries: query sentences a class.
        test_domain: the domain held out for meta-test.
        max_tokens: longer sentences are cut.
        min_count: tokens rarer than this in the meta-training sentences become `<unk>`.
        token_dropout: probability of a meta-training token to become `<unk>`, which trains the
            embedding that all unseen words share.
        seed: of the episodes.
        split_seed: of the deal of sentences into meta-training and meta-validation.
        data_dir: a folder with one JSON file a domain; None takes the set that is shipped.

    Raises:
        DataError: a file is broken, or the data cannot serve such episodes.
    """
    folder = data_dir or DATA_DIR
    domains = {path.stem: read_domain(path) for path in found_in(folder, "*.json")}
    if test_domain not in domains or len(domains) < 2:
        raise DataError(
            f"{folder}: expected a JSON file for the held-out domain {test_domain!r} and at least "
            f"one more, but found: {', '.join(domains) or 'none'}"
        )
    rng = np.random.default_rng(split_seed)
    text: dict[Split, list[tuple[Sentences, Sentences]]] = {"train": [], "val": [], "test": []}
    # The held-out domain first: what it shares with others leaves them.
    seen: set[tuple[str, ...]] = set()
    for name in sorted(domains, key=lambda name: name != test_domain):
        classes = _new_sentences(domains[name], seen)
        if name == test_domain:
            text["test"].append(classes)
            continue
        kept: list[Sentences] = []
        held_back: list[Sentences] = []
        for sentences in classes:
            order = [sentences[i] for i in rng.permutation(len(sentences))]
            num_val = round(len(order) * VAL_SHARE)
            held_back.append(order[:num_val])
            kept.append(order[num_val:])
        text["train"].append((kept[0], kept[1]))
        text["val"].append((held_back[0], held_back[1]))

    counts = Counter(t for classes in text["train"] for s in classes for ts in s for t in ts)
    frequent = sorted(token for token, count in counts.items() if count >= min_count)
    vocabulary = {token: number for number, token in enumerate(frequent, start=UNKNOWN + 1)}
    pools = {
        split: [[_encode(s, vocabulary, max_tokens) for s in classes] for classes in found]
        for split, found in text.items()
    }
    for split, found in pools.items():
        smallest = min(len(ids) for domain in found for ids, _ in domain)
        if num_shots + num_queries > smallest:
            raise DataError(
                f"tasks.num_shots + tasks.num_queries must be at most {smallest}, the sentences of "
                f"a class in the meta-{split} split, but got {num_shots + num_queries}"
            )

    def sample(split: Split, rng: np.random.Generator) -> Episode:
        number = int(rng.integers(len(pools[split])))
        parts: dict[str, list[np.ndarray]] = {"support": [], "query": []}
        sizes: dict[str, list[np.ndarray]] = {"support": [], "query": []}
        rows: dict[str, list[np.ndarray]] = {"support": [], "query": []}
        for label, (ids, lengths) in enumerate(pools[split][number]):
            chosen = rng.permutation(len(ids))[: num_shots + num_queries]
            for part, rows_of in (("support", chosen[:num_shots]), ("query", chosen[num_shots:])):
                parts[part].append(ids[rows_of])
                sizes[part].append(lengths[rows_of])
                rows[part].append((number * NUM_WAYS + label) * 10**6 + rows_of)
        x = {part: np.concatenate(found) for part, found in parts.items()}
        if split == "train" and token_dropout > 0:
            for part, tokens in x.items():
                dropped = (rng.random(tokens.shape) < token_dropout) & (tokens != PADDING)
                x[part] = np.where(dropped, UNKNOWN, tokens)
        labels = {
            "support": np.repeat(np.arange(NUM_WAYS), num_shots),
            "query": np.repeat(np.arange(NUM_WAYS), num_queries),
        }
        return Episode(
            support_x=x["support"],
            support_y=labels["support"],
            query_x=x["query"],
            query_y=labels["query"],
            support_lengths=np.concatenate(sizes["support"]),
            query_lengths=np.concatenate(sizes["query"]),
            support_ids=np.concatenate(rows["support"]),
            query_ids=np.concatenate(rows["query"]),
            way_classes=np.arange(NUM_WAYS),
        )

    vocabulary_size = len(vocabulary) + 2

    def bags_of_words(examples: Examples) -> Tensor:
        bags = torch.zeros(*examples.x.shape[:2], vocabulary_size, device=examples.x.device)
        bags.scatter_add_(2, examples.x, torch.ones_like(examples.x, dtype=bags.dtype))
        bags[..., PADDING] = 0.0
        return torch.nn.functional.normalize(bags, dim=-1)

    return TaskDistribution(
        name="sentiment",
        input_spec=InputSpec("classification", NUM_WAYS, vocabulary_size=vocabulary_size),
        seed=seed,
        sample_episode=sample,
        class_mean_features=bags_of_words,
        num_train_classes=NUM_WAYS,
        fixed_labels=True,
        note=f"meta-test: the domain {test_domain} whole; only {len(domains)} domains in all",
    )


def _new_sentences(
    classes: tuple[Sentences, Sentences], seen: set[tuple[str, ...]]
) -> tuple[Sentences, Sentences]:
    """The sentences not `seen` before, which they are from now on: no split shares one."""
    new: tuple[Sentences, Sentences] = ([], [])
    for label, sentences in enumerate(classes):
        for tokens in sentences:
            if tuple(tokens) not in seen:
                seen.add(tuple(tokens))
                new[label].append(tokens)
    return new


def _encode(
    sentences: Sentences, vocabulary: dict[str, int], max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[S, max_tokens]`, padded, and lengths `[S]`."""
    ids = np.full((len(sentences), max_tokens), PADDING, dtype=np.int64)
    lengths = np.empty(len(sentences), dtype=np.int64)
    for row, tokens in enumerate(sentences):
        kept = tokens[:max_tokens]
        ids[row, : len(kept)] = [vocabulary.get(token, UNKNOWN) for token in kept]
        lengths[row] = len(kept)
    return ids, lengths
