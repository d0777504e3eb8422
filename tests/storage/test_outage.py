"""A search waits for absent storage, but not for a removed folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from raymeta.errors import RunError
from raymeta.storage import outage
from raymeta.storage.outage import FolderGoneError, StorageWatch
from raymeta.storage.paths import path_at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Makes a run folder in a share of its own."""
    folder = tmp_path / "share" / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    return folder


def take_away(share: Path, seconds: float) -> threading.Thread:
    """Leaves an empty mount point for a time."""
    share.rename(share.with_name("away"))
    share.mkdir()

    def bring_back() -> None:
        time.sleep(seconds)
        # A mount hides what was written in its place meanwhile, at any moment.
        while share.with_name("away").exists():
            shutil.rmtree(share, ignore_errors=True)
            with contextlib.suppress(OSError):
                share.with_name("away").rename(share)

    thread = threading.Thread(target=bring_back)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_share_that_is_away_is_waited_for_and_said_once(tmp_path: Path, folder: Path) -> None:
    said: list[str] = []
    watch = StorageWatch(folder, "file", said.append)
    thread = take_away(tmp_path / "share", 2)
    began = time.monotonic()
    watch.outlast(lambda: (folder / "written").write_text("x"))
    assert time.monotonic() - began >= 1.9
    thread.join()
    assert (folder / "written").read_text() == "x"
    (once,) = said
    assert once.startswith(f"{folder}: its storage is away")
    assert "waiting 300 s at most" in once


@pytest.mark.slow
def test_storage_that_stays_away_is_given_up_with_the_remedy(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_S", 1.0)
    watch = StorageWatch(folder, "file")
    shutil.rmtree(tmp_path / "share")
    with pytest.raises(RunError, match=r"was away for 1 s: .* resume the run"):
        watch.check()


def test_a_removed_folder_is_reported_at_once(folder: Path) -> None:
    watch = StorageWatch(folder, "file")
    watch.check()
    shutil.rmtree(folder)
    began = time.monotonic()
    with pytest.raises(FolderGoneError, match=rf"^{folder}: the run folder is gone"):
        watch.outlast(lambda: (folder / "x").write_text("x"))
    assert time.monotonic() - began < outage.FIRST_PAUSE_S


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EHOSTUNREACH])
def test_an_error_of_a_share_is_tried_again_with_growing_pauses(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("raymeta.storage.outage.time.sleep", pauses.append)
    failures = [OSError(number, os.strerror(number))] * 8

    def action() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert StorageWatch(folder, "file").outlast(action) == "done"
    assert pauses == [0.5, 1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_other_errors_are_raised_at_once(folder: Path, number: int) -> None:
    def action() -> None:
        raise OSError(number, os.strerror(number))

    began = time.monotonic()
    with pytest.raises(OSError, match=os.strerror(number)):
        StorageWatch(folder, "file").outlast(action)
    assert time.monotonic() - began < outage.FIRST_PAUSE_S


def test_a_missing_file_in_a_folder_that_is_there_is_no_outage(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StorageWatch(folder, "file").outlast((folder / "absent").read_bytes)


def test_a_removed_folder_in_a_bucket_is_reported(bucket: str) -> None:
    folder = path_at(bucket) / "one"
    (folder / "file").write_bytes(b"")
    watch = StorageWatch(folder, "file")
    watch.check()
    folder.filesystem.delete_file((folder / "file").path)  # type: ignore[union-attr]
    with pytest.raises(FolderGoneError):
        watch.check()
