"""Few-shot classification of sentences in unseen domains, from any file format.

Some domains are held out whole for meta-test; of the others, a share of the sentences is kept back
for meta-validation.  A task is a domain, an episode a sample of its sentences.

The network reads words, or with `tasks.encoder` the token vectors of a frozen pretrained
Transformer.  The encoder is a setting of the tasks: it decides what an example is.

Shape legend: W ways, M examples of a class, T tokens, S sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.encoder import encoder_digest, open_encoder
from raymeta.data.readers.sentences import tokenize
from raymeta.data.sequences import Sequences
from raymeta.data.splits import Deal, deal_sealed, is_held_back
from raymeta.data.token_vectors import TokenVectors, token_vectors
from raymeta.episodes import SPLITS, Episode, Examples, InputSpec, Legend, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.inputs import Inputs, Prepare, Words, check_facts
from raymeta.tasks.sampling import GroupPool, episode_of, fingerprint, unit_ids, unit_names
from raymeta.tasks.settings import SentenceTasks

PADDING, UNKNOWN = 0, 1
VAL_SHARE = 0.2
# Domains share short sentences such as "Works great." without being copies.
_MAX_SHARED = 0.5
_FEW = 10  # with fewer domains the results carry a note


def deal_domains(
    whole: Sequences, settings: SentenceTasks, deal: Deal, *, target: str, sealed: bool
) -> tuple[Dealt, TokenVectors | None]:
    """Deals sentences into splits, whether or not they serve any episodes.

    A hash of a sentence's words decides whether it is kept for meta-validation, so that other
    sentences never move it.

    Args:
        whole: all sentences.
        settings: of the tasks.
        deal: which domains are held out, on the one axis of the domains.
        target: what the classes are called.
        sealed: whether to use the sealed deal: other domains are held out, without the sentences
            that meta-validation of the ordinary deal has.

    Returns:
        The dealt sentences, cut to `max_tokens`, and their token vectors with an encoder.

    Raises:
        DataError: two domains are copies of each other.
    """
    (axis,) = deal
    refuse_copies(whole, whole.contents, axis, _MAX_SHARED)
    num_read, warnings, left_out = len(whole), whole.warnings, Counter[str]()
    classes = tuple(sorted(set(whole.classes)))

    # Encode all texts, so that both deals share the cache.
    encoded = (
        token_vectors(settings.encoder, whole.texts, settings.max_tokens)
        if settings.encoder is not None
        else None
    )
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
        # The ordinary deal's meta-validation has seen them.
        whole = whole.select(
            row
            for row, tokens in enumerate(whole.x)
            if deal[axis][whole.groups[axis][row]] != "test"
            or not _is_for_validation(" ".join(tokens), settings.split_seed)
        )
        left_out["seen by meta-validation of the ordinary deal"] = num_read - len(whole)
    splits = [
        _split(deal[axis][domain], " ".join(tokens), settings.split_seed)
        for domain, tokens in zip(whole.groups[axis], whole.x, strict=True)
    ]
    # To the network, sentences that are equal after the cut are the same.
    sentences = replace(
        whole,
        x=tuple(
            tokens[: settings.max_tokens] if encoded is None else encoded.tokens(text)
            for tokens, text in zip(whole.x, whole.texts, strict=True)
        ),
    )
    rows, dropped = distinct_rows(
        sentences,
        sentences.contents,
        [-SPLITS.index(split) for split in splits],
    )
    left_out["copies of others, or of equal content and different classes"] = len(whole) - len(rows)
    dealt = Dealt(
        chosen={
            split: sentences.select(row for row in rows if splits[row] == split) for split in SPLITS
        },
        deal=deal,
        num_read=num_read,
        left_out={reason: count for reason, count in left_out.items() if count},
        target=target,
        task=axis,
        groups=(),
        classes=classes,
        warnings=(*warnings, *dropped),
    )
    return dealt, encoded


def domain_tasks(
    name: str, dealt: Dealt, encoded: TokenVectors | None, settings: SentenceTasks, seed: int
) -> TaskDistribution:
    """The task distribution over domains of sentences.

    Args:
        name: of the source.
        dealt: what `deal_domains` made of the sentences.
        encoded: their token vectors, with an encoder.
        settings: of the tasks.
        seed: of the episodes.

    Raises:
        DataError: the data cannot serve such episodes.
    """
    chosen, axis, classes = dealt.chosen, dealt.task, dealt.classes
    assert axis is not None, "domains are tasks"
    pools = {s: GroupPool.build(c.groups[axis], c.classes, classes) for s, c in chosen.items()}
    for split in reversed(SPLITS):
        pools[split].check(split, settings.num_shots + settings.num_queries)
    facts: dict[str, Any]
    class_mean_features: Callable[[Examples], Tensor]
    if encoded is None:
        vocabulary = _vocabulary(chosen["train"], settings.min_count)
        vocabulary_size = UNKNOWN + 1 + len(vocabulary)
        tokens = {s: _encode(chosen[s], vocabulary, settings.max_tokens) for s in SPLITS}
        input_spec = InputSpec("classification", len(classes), vocabulary_size=vocabulary_size)
        class_mean_features = partial(_bags_of_words, vocabulary_size)
        facts = {"vocabulary": vocabulary, "max_tokens": settings.max_tokens}
    else:
        tokens = {s: _places(chosen[s], encoded, settings.max_tokens) for s in SPLITS}
        num_features = encoded.vectors.shape[1]
        input_spec = InputSpec("classification", len(classes), num_features=num_features)
        class_mean_features = _mean_vectors
        facts = {"encoder": encoded.digest, "max_tokens": settings.max_tokens}
    sampler = _Sampler(
        settings=settings,
        pools=pools,
        tokens=tokens,
        vectors=None if encoded is None else encoded.vectors,
        lengths={s: chosen[s].lengths for s in SPLITS},
        units={
            s: {
                "sentence": np.arange(len(chosen[s])),
                axis: unit_ids(chosen[s].groups[axis]),
            }
            for s in SPLITS
        },
    )
    return TaskDistribution(
        name=name,
        input_spec=input_spec,
        seed=seed,
        sample_episode=sampler,
        class_mean_features=class_mean_features,
        num_train_classes=len(classes),
        fixed_labels=True,
        note=_note(dealt, axis),
        fingerprint=fingerprint(chosen, facts),
        deal=dealt.deal,
        facts=facts,
        warnings=dealt.warnings,
        encoded=encoded is not None,
        legend=Legend(
            classes=classes,
            units=unit_names({axis: chosen["test"].groups[axis]}),
            texts=chosen["test"].texts,
        ),
    )


def text_inputs_of(
    settings: SentenceTasks,
    facts: Mapping[str, Any],
    *,
    text: str,
    target: str,
    classes: tuple[str, ...],
) -> Inputs:
    """Describes the inputs of networks of sentences.

    Args:
        settings: of the tasks.
        facts: that the networks were trained with.
        text: the column of texts.
        target: the column of classes.
        classes: the meanings of the ways.

    Raises:
        ValueError: settings and facts do not belong together.
    """
    check_facts(settings, facts, "max_tokens")
    if settings.encoder is None:
        prepare: Prepare = partial(_prepared, number_of(facts["vocabulary"]), settings.max_tokens)
        words: Words = partial(_words, settings.max_tokens)
    else:
        prepare = partial(_prepared_by_encoder, settings, str(facts["encoder"]))
        words = partial(_encoder_words, settings, str(facts["encoder"]))
    return Inputs(
        channels=(),
        prepare=prepare,
        sequence=None,
        target=target,
        text=text,
        classes=classes,
        words=words,
    )


def _prepared(
    numbers: Mapping[str, int], max_tokens: int, texts: Sequence[str], names: Sequence[str]
) -> list[np.ndarray]:
    found = []
    for name, text in zip(names, texts, strict=True):
        tokens = tokenize(text)[:max_tokens]
        if not tokens:
            raise DataError(f"{name}: has no word, number, `!` or `?`; remove it")
        found.append(np.array([numbers.get(token, UNKNOWN) for token in tokens], dtype=np.int64))
    return found


def _words(max_tokens: int, texts: Sequence[str]) -> list[list[str]]:
    return [tokenize(text)[:max_tokens] for text in texts]


def _encoder_words(settings: SentenceTasks, digest: str, texts: Sequence[str]) -> list[list[str]]:
    assert settings.encoder is not None, "there is an encoder"
    return open_encoder(settings.encoder, settings.max_tokens, digest).words(texts)


def _prepared_by_encoder(
    settings: SentenceTasks, digest: str, texts: Sequence[str], names: Sequence[str]
) -> list[np.ndarray]:
    del names
    assert settings.encoder is not None, "there is an encoder"
    now = encoder_digest(settings.encoder)
    if now != digest:
        raise DataError(
            f"tasks.encoder {settings.encoder}: its files are not those that the network was "
            f"trained with (digest {now[:12]}, in training {digest[:12]}); put those back"
        )
    encoder = open_encoder(settings.encoder, settings.max_tokens, digest)
    tokens = encoder.tokenize(texts)
    vectors = encoder.vectors(tokens).astype(np.float32)
    return np.split(vectors, np.cumsum([len(ids) for ids in tokens])[:-1])


def _note(dealt: Dealt, axis: str) -> str:
    domains = dealt.deal[axis]
    tested = [domain for domain, split in domains.items() if split == "test"]
    named = f"the {axis} {tested[0]}" if len(tested) == 1 else f"{len(tested)} × {axis}"
    only = "only " if len(domains) < _FEW else ""
    return f"meta-test: {named} whole; {only}{len(domains)} {axis}s in all"


def _split(of_domain: Split, text: str, split_seed: int) -> Split:
    """Decides the split of a sentence whose domain is dealt to `of_domain`."""
    is_val = of_domain == "train" and _is_for_validation(text, split_seed)
    return "val" if is_val else of_domain


def _is_for_validation(text: str, split_seed: int) -> bool:
    return is_held_back(text, share=VAL_SHARE, salt=f"sentences-{split_seed}")


def _vocabulary(sentences: Sequences, min_count: int) -> list[str]:
    """Lists the tokens that occur at least `min_count` times, alphabetically."""
    counts = Counter(token for tokens in sentences.x for token in tokens)
    return sorted(token for token, count in counts.items() if count >= min_count)


def number_of(vocabulary: Sequence[str]) -> dict[str, int]:
    """Maps each known word to its token id."""
    return {token: number for number, token in enumerate(vocabulary, start=UNKNOWN + 1)}


def _encode(sentences: Sequences, vocabulary: Sequence[str], max_tokens: int) -> np.ndarray:
    """Token ids int64 `[S, max_tokens]`, padded."""
    numbers = number_of(vocabulary)
    ids = np.full((len(sentences), max_tokens), PADDING, dtype=np.int64)
    for row, tokens in enumerate(sentences.x):
        ids[row, : len(tokens)] = [numbers.get(token, UNKNOWN) for token in tokens]
    return ids


def _places(sentences: Sequences, encoded: TokenVectors, max_tokens: int) -> np.ndarray:
    """Token ids int64 `[S, max_tokens]`, padded, that number the token vectors in their order."""
    ids = np.full((len(sentences), max_tokens), PADDING, dtype=np.int64)
    for row, text in enumerate(sentences.texts):
        rows = encoded.rows(text)
        ids[row, : rows.stop - rows.start] = UNKNOWN + 1 + np.arange(rows.start, rows.stop)
    return ids


@dataclass(frozen=True)
class _Sampler:
    """Draws episodes; `tokens` `[S, T]`, `lengths` and `units` `[S]` of each split.

    With `vectors` `[P, D]` of an encoder, an example has those of its tokens.
    """

    settings: SentenceTasks
    pools: Mapping[Split, GroupPool]
    tokens: Mapping[Split, np.ndarray]
    lengths: Mapping[Split, np.ndarray]
    units: Mapping[Split, Mapping[str, np.ndarray]]
    vectors: np.ndarray | None = None

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode."""
        num_shots, dropout = self.settings.num_shots, self.settings.token_dropout
        rows = self.pools[split].draw(num_shots + self.settings.num_queries, rng)
        tokens, lengths = self.tokens[split][rows], self.lengths[split][rows]
        if split == "train" and dropout > 0:
            dropped = (rng.random(tokens.shape) < dropout) & (tokens != PADDING)
            tokens = np.where(dropped, UNKNOWN, tokens)
        classes, units = np.arange(len(rows)), self.units[split]
        x = tokens if self.vectors is None else self._looked_up(tokens[..., : lengths.max()])
        return episode_of(x, rows, classes, num_shots, units=units, lengths=lengths)

    def _looked_up(self, tokens: np.ndarray) -> np.ndarray:
        """The token vectors, float32 `[W, M, T, D]`; zeros for what is padded or dropped."""
        assert self.vectors is not None, "there is an encoder"
        x = np.zeros((*tokens.shape, self.vectors.shape[1]), dtype=np.float32)
        is_known = tokens > UNKNOWN
        x[is_known] = self.vectors[tokens[is_known] - UNKNOWN - 1]
        return x


def _bags_of_words(vocabulary_size: int, examples: Examples) -> Tensor:
    """Counts of tokens without padding, of unit length `[E, N, vocabulary_size]`."""
    bags = torch.zeros(*examples.x.shape[:2], vocabulary_size, device=examples.x.device)
    bags.scatter_add_(2, examples.x, torch.ones_like(examples.x, dtype=bags.dtype))
    bags[..., PADDING] = 0.0
    return torch.nn.functional.normalize(bags, dim=-1)


def _mean_vectors(examples: Examples) -> Tensor:
    """The mean vector over the valid time steps, of unit length `[E, N, D]`."""
    x, lengths = examples.x, examples.lengths
    if lengths is not None:
        steps = torch.arange(x.shape[2], device=x.device)
        x = x.masked_fill((steps >= lengths.unsqueeze(-1)).unsqueeze(-1), 0.0)
    return torch.nn.functional.normalize(x.sum(dim=2), dim=-1)
