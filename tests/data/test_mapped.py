"""Arrays in files of the cache: checked, whole, bounded, and never of another user."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raymeta.data import mapped
from raymeta.data.mapped import keep_arrays, open_arrays

KEY, OTHER = "a" * 64, "b" * 64
ARRAYS = {
    "values": np.array([[1.5, np.nan], [-0.0, 3.0]], dtype=np.float32),
    "starts": np.array([0, 1]),
    "none": np.zeros((0, 3)),
}
FACTS = {"mean": [0.1, 1 / 3], "task": None}


def test_arrays_and_facts_come_back_as_they_were(tmp_path: Path) -> None:
    keep_arrays(tmp_path / "cache", KEY, ARRAYS, FACTS)
    found = open_arrays(tmp_path / "cache", KEY)
    assert found is not None
    arrays, facts = found
    assert facts == FACTS
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        assert arrays[name].shape == value.shape
        assert arrays[name].tobytes() == value.tobytes()
        assert not arrays[name].flags.writeable
    assert open_arrays(tmp_path / "cache", OTHER) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another key", "a link", "a folder"])
def test_a_damaged_or_foreign_file_is_removed_and_reported(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_arrays(tmp_path, KEY, ARRAYS, FACTS)
    (file,) = tmp_path.glob("*.arrow")
    content, half = file.read_bytes(), file.stat().st_size // 2
    file.unlink()
    if damage == "a link":
        (tmp_path / "elsewhere").write_bytes(content)
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "a folder":
        file.mkdir()
    elif damage == "another key":
        keep_arrays(tmp_path, OTHER, ARRAYS, FACTS)
        (other,) = tmp_path.glob("*.arrow")
        other.rename(tmp_path / other.name.replace(OTHER[:32], KEY[:32]))
    else:
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        file.write_bytes({"cut": content[:half], "flipped": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert open_arrays(tmp_path, KEY) is None
    assert "is made anew" in caplog.text
    if damage != "a folder":
        assert not list(tmp_path.glob("*.arrow"))
        keep_arrays(tmp_path, KEY, ARRAYS, FACTS)
        assert open_arrays(tmp_path, KEY) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_arrays(tmp_path, KEY, ARRAYS, FACTS)
    (file,) = tmp_path.glob("*.arrow")
    os.chown(file, 12345, -1)
    with caplog.at_level(logging.WARNING):
        assert open_arrays(tmp_path, KEY) is None
    assert "another user's file" in caplog.text


def test_files_that_were_used_longest_ago_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_arrays(tmp_path, KEY, ARRAYS, FACTS)
    (first,) = tmp_path.glob("*.arrow")
    monkeypatch.setattr(mapped, "_MOST_BYTES", 2 * first.stat().st_size + 100)
    left_over = tmp_path / ".old.1.tmp"
    left_over.touch()
    for file in (first, left_over):
        os.utime(file, (time.time() - 1e6,) * 2)
    keep_arrays(tmp_path, OTHER, ARRAYS, FACTS)
    assert not left_over.exists()
    assert first.exists()
    (second,) = set(tmp_path.glob("*.arrow")) - {first}
    os.utime(second, (time.time() - 1e5,) * 2)
    held = open_arrays(tmp_path, KEY)  # used again: the second one is older now
    keep_arrays(tmp_path, "c" * 64, ARRAYS, FACTS)
    assert first.exists()
    assert not second.exists()
    assert held is not None
    first.unlink()
    assert held[0]["values"].tobytes() == ARRAYS["values"].tobytes()  # it is mapped


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"""
import resource, signal
import numpy as np
from pathlib import Path
from raymeta.data.mapped import keep_arrays
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    keep_arrays(Path({str(tmp_path)!r}), {KEY!r}, {{"x": np.arange(10_000)}}, {{}})
except OSError as error:
    print(error.errno)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.stdout.strip() == "27", ended  # EFBIG
    assert not list(tmp_path.iterdir())
