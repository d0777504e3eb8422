"""An append-only file of JSON lines, each with a checksum of its own.

A line names the checksum of the line before, so that lines that are missing, repeated or moved are
noticed; checksums include the name of the journal's owner, so that no line of another one counts.
Lines missing at the end are not noticed here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymeta.errors import RunError
from raymeta.storage.bounds import FREE_BRACKETS, JOURNAL_BYTES, brackets_beyond, parse_json
from raymeta.storage.paths import AnyPath, RemotePath, read_regular

UPLOAD_S = 10  # seconds between uploads of lines that may be lost
MOST_NOTES = 20  # on damage; the others are counted
_MOST_DAMAGED = 100_000  # lines, behind which a file is no journal
_START = b'{"sha256": "'  # of every line


@dataclass(frozen=True)
class JournalContent:
    """The whole lines of a journal, and descriptions of damage.

    `cut` describes a last line that a crash left unfinished; `damaged` describes other lines whose
    checksum is wrong, those that are repeated, and where lines are missing, and counts those beyond
    the first; `last` is the checksum of the last whole line, which the next one names.
    """

    entries: list[dict[str, Any]]
    damaged: list[str]
    cut: str | None = None
    last: str = ""


def read_journal(path: AnyPath, owner: str) -> JournalContent:
    """Reads the journal of `owner`; an absent one is empty.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return _read(path, owner)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(path: AnyPath, owner: str) -> JournalContent:
    try:
        content = read_regular(path, most=JOURNAL_BYTES)
    except FileNotFoundError:
        return JournalContent([], [])
    entries: list[dict[str, Any]] = []
    damage = _Damage()
    cut = None
    last, seen, is_behind_damage = "", set[str](), False
    number, end, free_brackets = 1, 0, FREE_BRACKETS
    for found in re.finditer(rb"[^\n]+", content):
        number += content.count(b"\n", end, found.start())
        line, end = found[0], found.end()
        whole = _whole(line, owner)
        if whole is not None and whole.digest == last:
            continue  # a repeated write after the disk refused the first
        if whole is not None and whole.digest in seen:
            damage.note(f"line {number} of {path} repeats an earlier one and is passed over")
        elif whole is not None:
            free_brackets -= brackets_beyond(line)
            if free_brackets < 0:
                reason = "it has more lists and mappings than are read; put back a copy of it"
                raise OSError(errno.EFBIG, reason)
            if whole.after != last and not is_behind_damage:
                damage.note(f"lines are missing or out of place before line {number} of {path}")
            entries.append(whole.entry)
            last, is_behind_damage = whole.digest, False
            seen.add(last)
        elif end == len(content):
            cut = f"line {number} of {path} is unfinished"
        else:
            damage.note(f"line {number} of {path} is damaged: its checksum is wrong")
            is_behind_damage = True
    return JournalContent(entries, damage.notes(path), cut, last)


class _Damage:
    """The first notes on damage, and how many there are."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def note(self, text: str) -> None:
        """Adds a note.

        Raises:
            OSError: there are so many that the file is no journal.
        """
        self._count += 1
        if self._count <= MOST_NOTES:
            self._first.append(text)
        if self._count > _MOST_DAMAGED:
            reason = f"more than {_MOST_DAMAGED:,} of its lines are damaged; put back a copy of it"
            raise OSError(errno.EINVAL, reason)

    def notes(self, path: AnyPath) -> list[str]:
        """The first notes, and the number of the others."""
        more = self._count - len(self._first)
        return [*self._first, *[f"and {more} more lines of {path} are damaged"] * (more > 0)]


class Journal:
    """Appends entries to a journal, each safe on disk when `append` returns.

    In storage without an append, as buckets are, the whole file is uploaded anew.

    Args:
        path: of the file.
        owner: the id of the run; only its lines are valid.
    """

    def __init__(self, path: AnyPath, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._last: str | None = None  # checksum of the last whole line, once it is known
        self._uploaded_at = -float(UPLOAD_S)
        self._content = b""
        if isinstance(path, RemotePath) and path.is_file():
            self._content = path.read_bytes()

    def append(self, entry: Mapping[str, Any], *, safe: bool = True) -> None:
        """Adds a line.

        Args:
            entry: plain JSON values.
            safe: the line survives a power failure from now on; otherwise it may be lost.

        Raises:
            OSError: the file cannot be written.
        """
        if self._last is None:
            self._last = _read(self._path, self._owner).last
        text = _text(entry)
        digest = _digest(self._owner, self._last, text)
        line = f'{{"sha256": "{digest}", "after": "{self._last}", "entry": {text}}}\n'.encode()
        if not isinstance(self._path, RemotePath):
            _append(self._path, line, safe)
            self._last = digest
            return
        ended = not self._content or self._content.endswith(b"\n")
        content = self._content + (line if ended else b"\n" + line)
        if safe or time.monotonic() > self._uploaded_at + UPLOAD_S:
            self._path.write_bytes(content)
            self._uploaded_at = time.monotonic()
        self._content = content
        self._last = digest


def _append(path: Path, line: bytes, safe: bool) -> None:
    is_new = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o644)
    try:
        size = os.fstat(file).st_size
        # An unfinished line stays as it is, and ends here.
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) < len(line):  # an almost full disk takes only a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if safe:
            os.fsync(file)
    finally:
        os.close(file)
    if is_new and safe:  # the folder, which holds the name, must be synced too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@dataclass(frozen=True)
class _Whole:
    """A line whose checksum is right."""

    digest: str
    after: str
    entry: dict[str, Any]


def _whole(line: bytes, owner: str) -> _Whole | None:
    """Parses a line; None if it is damaged or of another owner."""
    if not line.startswith(_START):  # without a parser's time
        return None
    try:
        content = parse_json(line)
        digest, after, entry = content["sha256"], content["after"], content["entry"]
        is_whole = digest == _digest(owner, after, _text(entry))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return _Whole(digest, after, entry) if is_whole and isinstance(entry, dict) else None


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)


def _digest(owner: str, after: str, text: str) -> str:
    return hashlib.sha256(f"{owner}\n{after}\n{text}".encode()).hexdigest()
