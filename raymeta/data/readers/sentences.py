"""Reads labelled texts: JSON files with one domain's list of {text, class}, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymeta.data.files import read_utf8
from raymeta.data.readers.arrow import read_columns
from raymeta.data.readers.values import labels
from raymeta.data.sequences import Sequences
from raymeta.errors import DataError, shown
from raymeta.storage.bounds import parse_json
from raymeta.storage.paths import AnyPath

# Words of a–z (contractions whole), numbers and marks; a Chinese or Japanese character each; words
# of any other letters.  An accented letter within an English word parts it: that is how the
# vocabulary of the shipped sentences was made, and it stays so.
TOKEN = re.compile(
    r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]"
    r"|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|(?<!\w)[^\W\x00-\x7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]++(?![a-z])"
)
_PARTED = re.compile(r"[a-z][^\W\x00-\x7f]|[^\W\x00-\x7f][a-z]")
_MAX_EMPTY = 0.1  # of a file's sentences; with more, the file is not what this reader is for
_MAX_PARTED = 0.05  # of a file's sentences, before it warns


def tokenize(text: str) -> list[str]:
    """Lower-case words (contractions whole), numbers, `!` and `?`."""
    return TOKEN.findall(text.lower())


def read_sentences(path: AnyPath) -> Sequences:
    """Reads one domain's sentences; the axis `domain` holds the file's name without its suffix.

    Rows whose text is empty are skipped.

    Raises:
        DataError: the file cannot be read, breaks the format, or has many sentences without a
            token.
    """
    found = list(_labelled(path))
    sentences = sentences_of(path, found, "domain")
    for label in ("0", "1"):
        if label not in sentences.classes:
            raise DataError(f"{path}: no sentence of class {label} found")
    return sentences


@dataclass(frozen=True)
class TextReader:
    """Reads a table with a row a text; see `raymeta.tasks.settings.TextTasks`."""

    text: str
    label: str
    domain: str

    def __call__(self, path: AnyPath) -> Sequences:
        """Reads one file; the axis of the domains has the name of their column.

        Raises:
            DataError: naming the file, and column and row where there is one.
        """
        table = read_columns(path, (self.text, self.label, self.domain))
        columns = []
        for name in (self.text, self.label, self.domain):
            codes, values = labels(path, table, name)
            columns.append([values[code] for code in codes])
        rows = [(n, *row) for n, row in enumerate(zip(*columns, strict=True), start=1)]
        return sentences_of(path, rows, self.domain)


def sentences_of(path: AnyPath, rows: Sequence[tuple[int, str, str, str]], axis: str) -> Sequences:
    """Tokenises texts; texts without a token are skipped with a warning.

    Args:
        path: of the file.
        rows: number, text, label and domain of each.
        axis: of the domains.

    Raises:
        DataError: many texts have no token.
    """
    x: list[np.ndarray] = []
    kept: list[tuple[int, str, str, str]] = []
    empty: list[int] = []
    parted = 0
    for row in rows:
        number, text = row[:2]
        tokens = tokenize(text)
        if not tokens:
            empty.append(number)
            continue
        parted += bool(_PARTED.search(text.lower()))
        x.append(np.array(tokens, dtype=object))
        kept.append(row)
    total = len(x) + len(empty)
    if len(empty) > _MAX_EMPTY * total:
        raise DataError(
            f"{path}: {len(empty)} of {total} sentences have no word, number, `!` or `?` (row "
            f"{empty[0]}, for one); remove them"
        )
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
        classes=tuple(label for _, _, label, _ in kept),
        groups={axis: tuple(domain for _, _, _, domain in kept)},
        ids=tuple(f"{path.name}, row {number}" for number, *_ in kept),
        warnings=tuple(warnings),
        texts=tuple(text for _, text, _, _ in kept),
    )


def _labelled(path: AnyPath) -> Iterator[tuple[int, str, str, str]]:
    """Yields number, text, class and domain of the rows of a JSON file that have a text."""
    for number, row in enumerate(_rows(path), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "class" not in row:
            raise DataError(f"{path}, row {number}: expected {{text, class}}, but got {shown(row)}")
        if not row["text"].strip():
            continue
        label = row["class"]
        if type(label) is not int or label not in (0, 1):
            raise DataError(f"{path}, row {number}: class must be 0 or 1, but got {shown(label)}")
        yield number, row["text"], str(label), path.stem


def _rows(path: AnyPath) -> list[Any]:
    try:
        rows: Any = parse_json(read_utf8(path, "JSON").encode(), _unique)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as JSON: {str(error)[:200]}") from error
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
