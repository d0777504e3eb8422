"""JSON files of labelled sentences: one domain's list of {text, class}."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from raymeta.data.files import read_utf8, shown
from raymeta.data.sequences import Sequences
from raymeta.errors import DataError
from raymeta.storage.paths import AnyPath

# Words of a–z (contractions whole), numbers and marks; a Chinese or Japanese character each; words
# of any other letters.  An accented letter within an English word parts it: that is how the
# vocabulary of the shipped sentences was made, and it stays so.
_TOKEN = re.compile(
    r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]"
    r"|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|(?<!\w)[^\W\x00-\x7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]++(?![a-z])"
)
_PARTED = re.compile(r"[a-z][^\W\x00-\x7f]|[^\W\x00-\x7f][a-z]")
_MAX_EMPTY = 0.1  # of a file's sentences; with more, the file is not what this reader is for
_MAX_PARTED = 0.05  # of a file's sentences, before it warns


def tokenize(text: str) -> list[str]:
    """Lower-case words (contractions whole), numbers, `!` and `?`."""
    return _TOKEN.findall(text.lower())


def read_sentences(path: AnyPath) -> Sequences:
    """Reads one domain's sentences; the axis `domain` holds the file's name without its suffix.

    Rows whose text is empty are skipped.  Sentences without a token are skipped with a warning.

    Raises:
        DataError: the file cannot be read, breaks the format, or has many sentences without a
            token.
    """
    rows = _rows(path)
    x: list[np.ndarray] = []
    labels: list[str] = []
    ids: list[str] = []
    texts: list[str] = []
    empty: list[int] = []
    parted = 0
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "class" not in row:
            raise DataError(f"{path}, row {number}: expected {{text, class}}, but got {shown(row)}")
        if not row["text"].strip():
            continue
        label = row["class"]
        if type(label) is not int or label not in (0, 1):
            raise DataError(f"{path}, row {number}: class must be 0 or 1, but got {shown(label)}")
        tokens = tokenize(row["text"])
        if not tokens:
            empty.append(number)
            continue
        parted += bool(_PARTED.search(row["text"].lower()))
        x.append(np.array(tokens, dtype=object))
        texts.append(row["text"])
        labels.append(str(label))
        ids.append(f"{path.name}, row {number}")
    total = len(x) + len(empty)
    if len(empty) > _MAX_EMPTY * total:
        raise DataError(
            f"{path}: {len(empty)} of {total} sentences have no word, number, `!` or `?` (row "
            f"{empty[0]}, for one); remove them"
        )
    for label in ("0", "1"):
        if label not in labels:
            raise DataError(f"{path}: no sentence of class {label} found")
    warnings = []
    if empty:
        warnings.append(
            f"{path.name}: {len(empty)} sentences have no word, number, `!` or `?` and were "
            f"skipped (row {empty[0]}, for one)"
        )
    if parted > _MAX_PARTED * total:
        warnings.append(
            f"{path.name}: accented letters part the words of {parted} sentences; write them "
            "without accents where that matters"
        )
    return Sequences(
        x=tuple(x),
        classes=tuple(labels),
        groups={"domain": (path.stem,) * len(x)},
        ids=tuple(ids),
        warnings=tuple(warnings),
        texts=tuple(texts),
    )


def _rows(path: AnyPath) -> list[Any]:
    try:
        rows: Any = json.loads(read_utf8(path, "JSON"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path}: cannot be read as JSON: {reason[:200]}") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a list of {{text, class}}, but got {type(rows).__name__}"
        )
    return rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is given twice in {shown(found)}")
    return found
