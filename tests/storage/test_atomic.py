"""Files are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raymeta.errors import RunError
from raymeta.storage.atomic import WholeFile, write_file


def test_a_written_file_holds_the_content_and_nothing_else_remains(tmp_path: Path) -> None:
    target = tmp_path / "models" / "tuned.safetensors"
    for content in (b"first", b"", b"second\x00" * 1000):
        write_file(target, content)
        assert target.read_bytes() == content
        assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    """A limit on file size fails a write half-way, as a full disk does."""
    target = tmp_path / "results.json"
    write_file(target, b"old")
    script = """
import resource, sys
from pathlib import Path
from raymeta.errors import RunError
from raymeta.storage.atomic import write_file

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_file(Path(sys.argv[1]), bytes(8192))
except RunError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith(f"{target}: cannot be written: ")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "trials.json"
    contents = [bytes([number]) * 200_000 for number in range(2)]
    write_file(target, contents[0])
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for content in contents:
                write_file(target, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = {target.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(contents)


def test_writing_below_a_file_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        write_file(tmp_path / "taken" / "results.json", b"")


def test_writing_to_a_read_only_folder_is_a_run_error(read_only_folder: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        write_file(read_only_folder / "results.json", b"")


def test_a_file_takes_its_name_when_it_is_closed(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    with WholeFile(target) as file:
        file.write(b"ne")
        file.write(memoryview(b"w"))
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_exception_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")

    def write_and_fail() -> None:
        with WholeFile(target) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_nobody_closed_does_not_take_its_name(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    file = WholeFile(target)
    file.write(b"new")
    del file
    assert list(tmp_path.iterdir()) == []


def test_a_link_planted_in_place_of_the_temporary_file_is_not_written_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(tmp_path / "other")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "other").read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()
