"""Token vectors of texts by a frozen encoder, computed once and kept in the user's cache.

A file's name is a digest of the encoder's files, the texts and the number of tokens.  It is written
whole or not at all, and checked when it is read.

Shape legend: S texts, U texts of different tokens, T tokens of a text, P tokens of all U, D
features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from raymeta.data.encoder import Encoder, encoder_digest
from raymeta.errors import RunError
from raymeta.storage.atomic import write_file
from raymeta.storage.cache import cache_folder, one_at_a_time

_FORMAT = "raymeta token vectors 1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenVectors:
    """Texts encoded as token vectors.

    `digest` is of the encoder's files.  `vectors` (float16 `[P, D]`, in float32 for a network) has
    one row a token; texts of equal tokens share their rows.
    """

    digest: str
    vectors: np.ndarray
    _tokens: np.ndarray  # [P]
    _ends: np.ndarray  # [U]
    _row_of: Mapping[str, int]

    def tokens(self, text: str) -> np.ndarray:
        """The token ids of a text, int32 `[T]`."""
        return self._tokens[self.rows(text)]

    def rows(self, text: str) -> slice:
        """The rows of `vectors` that a text has, T of them."""
        row = self._row_of[text]
        return slice(int(self._ends[row - 1]) if row else 0, int(self._ends[row]))


def token_vectors(encoder: str, texts: Sequence[str], max_tokens: int) -> TokenVectors:
    """Gets the token vectors of texts, from the cache if possible.

    Several processes may ask at once: one computes, the others wait and read.

    Args:
        encoder: a folder or a hub name.
        texts: in any order; the order does not count.
        max_tokens: of a text; longer ones are cut.

    Raises:
        DataError: the encoder cannot be used; see `Encoder`.
    """
    digest = encoder_digest(encoder)
    known = sorted(set(texts))
    content = json.dumps([_FORMAT, digest, max_tokens, known]).encode()
    key = hashlib.sha256(content).hexdigest()
    file = cache_folder("encoder") / f"vectors-{key[:32]}.safetensors"
    found = _read(file, key)
    if found is None:
        with one_at_a_time(file.parent):
            found = _read(file, key)
            if found is None:
                found = _encoded(Encoder(encoder, max_tokens), known)
                _keep(file, key, found)
    arrays = {name: value.numpy() for name, value in found.items()}
    row_of = dict(zip(known, arrays["row_of_text"].tolist(), strict=True))
    return TokenVectors(digest, arrays["vectors"], arrays["tokens"], arrays["ends"], row_of)


def _encoded(encoder: Encoder, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`vectors` `[P, D]`, `tokens` `[P]`, `ends` `[U]` and `row_of_text` `[S]`."""
    _log.info("the encoder reads %d texts, once", len(texts))
    row_of: dict[bytes, int] = {}
    rows: list[int] = []
    distinct: list[np.ndarray] = []
    for ids in encoder.tokenize(texts):
        row = row_of.setdefault(ids.tobytes(), len(row_of))
        if row == len(distinct):
            distinct.append(ids)
        rows.append(row)
    arrays = {
        "vectors": encoder.vectors(distinct),
        "tokens": np.concatenate(distinct),
        "ends": np.cumsum([len(ids) for ids in distinct]),
        "row_of_text": np.array(rows),
    }
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _keep(file: Path, key: str, found: Mapping[str, torch.Tensor]) -> None:
    metadata = {"key": key, "sha256": _checksum(found)}
    try:
        write_file(file, save(dict(found), metadata))
    except RunError as error:
        _log.warning("token vectors are not kept for other processes and runs: %s", error)


def _read(file: Path, key: str) -> dict[str, torch.Tensor] | None:
    """Maps a file's tensors into memory; None if it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        _log.warning("%s: cannot be read and is made anew: %s", file, error)
        return None
    if metadata.get("key") != key or metadata.get("sha256") != _checksum(found):
        _log.warning("%s: is damaged and is made anew", file)
        return None
    return found


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
