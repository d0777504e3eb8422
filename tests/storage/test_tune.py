"""The file system that Tune writes run folders through."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, LocalFileSystem, copy_files

from raymeta.storage.paths import path_at
from raymeta.storage.tune import run_storage, usable_checkpoint


def test_folders_are_copied_in_and_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "trial").mkdir(parents=True)
    contents = {"state.json": b"{}", "trial/result.json": b"x" * 3_000_000, "trial/empty": b""}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    storage, _ = run_storage(tmp_path)
    inside, outside = tmp_path / "run", tmp_path / "outside"
    copy_files(str(source), str(inside), destination_filesystem=storage)
    copy_files(str(inside), str(outside), source_filesystem=storage)
    for folder in (inside, outside):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in files} == contents
    found = storage.get_file_info(FileSelector(str(inside), recursive=True))
    assert {Path(info.path).name for info in found if info.is_file} == {
        Path(name).name for name in contents
    }


def test_it_reaches_the_trials_by_pickle() -> None:
    storage = run_storage(Path("runs"))
    assert pickle.loads(pickle.dumps(storage)) == storage  # noqa: S301  (our own)


def test_a_file_is_whole_even_if_its_writer_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    script = """
import os, signal, sys
from raymeta.storage.tune import run_storage

storage, path = run_storage(sys.argv[1])
stream = storage.open_output_stream(path)
stream.write(b"new")
stream.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert target.read_bytes() == b"old"


def test_a_copy_that_fails_half_way_leaves_the_old_content(tmp_path: Path) -> None:
    """A limit on file size fails a write half-way, as a full disk does."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(8192))
    target.write_bytes(b"old")
    script = """
import resource, sys
from pyarrow.fs import copy_files
from raymeta.storage.tune import run_storage

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    copy_files(*sys.argv[1:], destination_filesystem=run_storage(sys.argv[2])[0])
except OSError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(source), str(target)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "File too large" in told
    assert target.read_bytes() == b"old"
    assert set(tmp_path.iterdir()) == {source, target}


def test_the_plain_file_system_would_not_keep_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    stream = LocalFileSystem().open_output_stream(str(target))
    assert target.read_bytes() == b""  # if this fails, ours is no longer needed
    stream.close()
    with pytest.raises(FileNotFoundError):
        run_storage(tmp_path)[0].open_input_stream(str(tmp_path / "absent"))


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_removed_or_damaged_checkpoint_is_replaced_by_the_nearest_that_is_whole(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = tmp_path if place == "folder" else path_at(request.getfixturevalue("bucket"))
    storage, folder = run_storage(root / "trial")
    contents = {2: b"whole", 3: b"whole", 4: None, 6: b"whole", 7: b"damaged"}
    for number, content in contents.items():
        # Of a removal under way, another file may be left.
        file = f"{folder}/checkpoint_{number:06}/{'state' if content else 'other'}"
        storage.create_dir(file.rpartition("/")[0])
        with storage.open_output_stream(file) as stream:
            stream.write(content or b"x")

    def used(number: int) -> str:
        checkpoint = f"{folder}/checkpoint_{number:06}"
        return usable_checkpoint(storage, checkpoint, "state", lambda state: state == b"whole")

    assert used(3) == f"{folder}/checkpoint_000003"
    assert used(4) == used(5) == f"{folder}/checkpoint_000006"  # the next later one
    assert used(7) == used(8) == f"{folder}/checkpoint_000006"  # the one before
    absent = f"{folder}/none/checkpoint_000001"
    assert usable_checkpoint(storage, absent, "state", bool) == absent  # Tune says so
