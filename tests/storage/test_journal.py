"""A journal appends lines, each with a checksum."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raymeta.errors import RunError
from raymeta.storage.journal import Journal, read_journal
from raymeta.storage.paths import AnyPath, path_at

DEADLINE_S = 20
ENTRIES: list[dict[str, Any]] = [{"trial": "a", "curve": [1, 0.1, None]}, {"trial": "ä"}, {}]


@pytest.fixture(params=["folder", "bucket"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    place = tmp_path if request.param == "folder" else path_at(request.getfixturevalue("bucket"))
    return place / "journal.jsonl"


def write(file: AnyPath) -> bytes:
    journal = Journal(file, "one")
    for entry in ENTRIES:
        journal.append(entry)
    return file.read_bytes()


def test_entries_are_read_back_in_order(file: AnyPath) -> None:
    assert read_journal(file, "one").entries == []
    write(file)
    Journal(file, "one").append({"more": 1})  # of another process
    found = read_journal(file, "one")
    assert found.entries == [*ENTRIES, {"more": 1}]
    assert (found.damaged, found.cut) == ([], None)


def test_every_flipped_bit_loses_one_line_or_two_and_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    content = write(file)
    for number in range(len(content)):
        for bit in (0x01, 0x10, 0x80):
            flipped = bytearray(content)
            flipped[number] ^= bit
            file.write_bytes(flipped)
            found = read_journal(file, "one")
            assert found.damaged or found.cut
            whole = [entry for entry in ENTRIES if entry in found.entries]
            assert found.entries == whole
            assert len(whole) >= len(ENTRIES) - 2


def test_every_cut_loses_what_is_behind_it_and_an_unfinished_line_is_reported(
    tmp_path: Path,
) -> None:
    file = tmp_path / "journal.jsonl"
    content = write(file)
    for size in range(len(content)):
        file.write_bytes(content[:size])
        found = read_journal(file, "one")
        assert found.entries == ENTRIES[: len(found.entries)]
        assert found.damaged == []
        is_whole = size == 0 or content[size - 1 : size] == b"\n" or content[size:][:1] == b"\n"
        assert (found.cut is None) == is_whole


def test_an_unfinished_line_stays_and_the_next_one_is_whole(file: AnyPath) -> None:
    content = write(file)
    file.write_bytes(content[:-10])
    Journal(file, "one").append({"next": 1})
    found = read_journal(file, "one")
    assert found.entries == [*ENTRIES[:-1], {"next": 1}]
    assert len(found.damaged) == 1
    assert file.read_bytes().startswith(content[:-10])


def missing(numbers: str) -> str:
    return f"lines are missing or out of place before line {numbers} of "


def test_lines_that_are_missing_repeated_or_moved_are_reported(file: AnyPath) -> None:
    one, two, three = write(file).splitlines(keepends=True)
    for lines, complaints in [
        ([two, three], [missing("1")]),
        ([one, three], [missing("2")]),
        ([one, two, three, one], ["line 4 of", "repeats an earlier one"]),
        ([one, three, two], [missing("2"), missing("3")]),
    ]:
        file.write_bytes(b"".join(lines))
        found = read_journal(file, "one")
        assert all(complaint in "".join(found.damaged) for complaint in complaints)
        assert len(found.entries) == len({*lines})
        Journal(file, "one").append({"more": 1})  # what is told stays the same
        assert read_journal(file, "one").damaged == found.damaged


def test_a_line_that_is_written_again_at_once_counts_once(file: AnyPath) -> None:
    one, two, three = write(file).splitlines(keepends=True)
    file.write_bytes(one + two + two + three + three)
    found = read_journal(file, "one")
    assert (found.entries, found.damaged) == (ENTRIES, [])


def test_a_journal_of_another_owner_has_no_whole_line(file: AnyPath) -> None:
    write(file)
    found = read_journal(file, "two")
    assert found.entries == []
    assert len(found.damaged) == len(ENTRIES)


def test_a_pipe_in_its_place_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(RunError, match="it is not a regular file"):
        read_journal(tmp_path / "journal.jsonl", "one")


def test_a_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        Journal(tmp_path / "journal.jsonl", "one").append({})
    assert (tmp_path / "other").read_text() == "mine"


def test_a_disk_that_is_full_is_an_error_and_harms_no_other_line(tmp_path: Path) -> None:
    """A limit on file size cuts a line, as a full disk does."""
    file = tmp_path / "journal.jsonl"
    size = len(write(file))
    script = """
import resource, sys
from pathlib import Path
from raymeta.errors import RunError
from raymeta.storage.journal import Journal
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    Journal(Path(sys.argv[1]), "one").append({"long": "x" * 1000})
except OSError as error:
    print("told")
"""
    assert resource.RLIMIT_FSIZE is not None
    command = [sys.executable, "-c", script, str(file), str(size + 100)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"told\n"
    assert read_journal(file, "one").entries == ENTRIES
    Journal(file, "one").append({"next": 1})
    assert read_journal(file, "one").entries == [*ENTRIES, {"next": 1}]


@pytest.mark.parametrize("line", [b"\n", b"x\n", b'{"sha256": "' + b" " * 189 + b"\n"])
def test_a_file_of_empty_or_damaged_lines_takes_little_time_and_few_notes(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(write(path) + line * (10_000_000 // len(line)))
    began = time.monotonic()
    if line == b"x\n":
        with pytest.raises(RunError, match="more than 100,000 of its lines are damaged; put back"):
            read_journal(path, "one")
    else:
        found = read_journal(path, "one")
        assert found.entries == ENTRIES
        more = [f"and 49484 more lines of {path} are damaged"] if line.strip() else []
        assert found.damaged[20:] == more
    assert time.monotonic() - began < DEADLINE_S


def test_lines_are_counted_with_the_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(write(path).replace(b"\n", b"\n\n\n") + b"x\ny")
    found = read_journal(path, "one")
    assert found.entries == ENTRIES
    assert found.damaged == [f"line 10 of {path} is damaged: its checksum is wrong"]
    assert found.cut == f"line 11 of {path} is unfinished"


def test_whole_lines_together_have_a_limit_of_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.storage.journal.FREE_BRACKETS", 1000)
    journal = Journal(tmp_path / "journal.jsonl", "one")
    for number in range(4):
        journal.append({"trial": number, "many": [[]] * 400})
    with pytest.raises(RunError, match="more lists and mappings than are read; put back a copy"):
        read_journal(tmp_path / "journal.jsonl", "one")
