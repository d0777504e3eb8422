"""Files of kilobytes that stand for gigabytes: refused in little memory, in every format."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymeta.data.readers.arrow import read_columns
from raymeta.errors import DataError

MEMORY = 3 << 30  # addresses of a process that reads such a file; Arrow's own take 1 GiB of them
READ = f"""
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from raymeta.data.readers.arrow import read_columns
from raymeta.errors import DataError
try:
    read_columns(Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


LONG = "a" * 100_000
ROWS = 50_000  # of that text: 5 GB


def repeated() -> pa.Table:
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array([LONG]))
    return pa.table({"a": codes})


def views() -> pa.Table:
    """Texts that share their letters."""
    view = pa.py_buffer(struct.pack("<i4sii", len(LONG), b"aaaa", 0, 0) * ROWS)
    buffers = [None, view, pa.py_buffer(LONG.encode())]
    return pa.table({"a": pa.Array.from_buffers(pa.string_view(), ROWS, buffers)})


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False)  # else Arrow knows codes by itself
    return sink.getvalue()


def arrow(table: pa.Table, *, is_file: bool = False) -> bytes:
    sink = io.BytesIO()
    write = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with write(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return sink.getvalue()


def zeros(count: int = 1 << 16) -> pa.Table:
    return pa.table({"a": np.zeros(count, np.int64)})


def says_more(content: bytes) -> bytes:
    """Has the compressed zeros say that they unfold to 5 GB."""
    said = struct.pack("<q", 8 << 16)
    assert content.count(said) >= 1
    return content.replace(said, struct.pack("<q", 5_000_000_000))


STEPS = ",".join(["1"] * ROWS)
BOMBS: dict[str, Callable[[], bytes]] = {
    "a.ts": f"@classLabel true\n@data\n{STEPS}:{LONG}\n".encode,
    "a.tsf": f"@attribute a string\n@data\n{LONG}:{STEPS}\n".encode,
    "texts.parquet": lambda: parquet(repeated()),
    "codes.arrow": lambda: arrow(repeated()),
    "codes.feather": lambda: arrow(repeated(), is_file=True),
    "views.arrow": lambda: arrow(views()),
    "zeros.arrow": lambda: says_more(arrow(zeros())),
    "zeros.feather": lambda: says_more(arrow(zeros(), is_file=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unfolds_to_gigabytes_is_refused_in_little_memory(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(BOMBS[name]())
    assert (tmp_path / name).stat().st_size < 1_000_000
    command = [sys.executable, "-c", READ, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "its columns take more than 4 GiB; cut the table up" in done.stdout, done.stderr


def test_the_texts_of_one_column_have_a_limit_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.data.readers.unfolding._TEXT_BYTES", 100)
    (tmp_path / "a.csv").write_text("a,b\n" + "aaaaaa,bbbbbb\n" * 20)
    with pytest.raises(DataError, match="texts of column 'a' take more than 2 GiB; cut it up"):
        read_columns(tmp_path / "a.csv")


KINDS = {
    "texts": pa.array(["a", None, "b"]),
    "codes": pa.array(["a", None, "b"]).dictionary_encode(),
    "views": pa.array(["a", None, "b" * 20]).cast(pa.string_view()),
    "bytes": pa.array([b"a", None, b"b"]),
    "numbers": pa.array([1.5, None, 3.0]),
    "coded numbers": pa.array([1.5, None, 3.0]).dictionary_encode(),
    "truth": pa.array([True, None, False]),
    "times": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
    "ids": pa.array([b"a" * 16, None, b"b" * 16], pa.binary(16)),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_arrives_as_it_was(tmp_path: Path, kind: str, suffix: str) -> None:
    table = pa.table({"x.a": [1, 2, 3], "a": KINDS[kind], "x": [[1], [2], [3]]})
    content = parquet(table) if suffix == "parquet" else arrow(table, is_file=suffix == "feather")
    (tmp_path / f"a.{suffix}").write_bytes(content)
    found = read_columns(tmp_path / f"a.{suffix}", ["a", "x.a", "x"])
    assert found.column_names == ["a", "x.a", "x"]
    assert found["a"].to_pylist() == KINDS[kind].to_pylist()
    assert found["x.a"].to_pylist() == [1, 2, 3]
    assert found["x"].null_count == 3  # lists are not read, and are refused where one is asked for
    assert pa.types.is_list(found["x"].type)


@pytest.mark.parametrize("suffix", ["arrow", "feather"])
def test_damage_at_any_place_of_an_arrow_file_is_an_error_of_the_data(
    tmp_path: Path, suffix: str
) -> None:
    whole = arrow(pa.table({"a": ["a", "bb"] * 20}), is_file=suffix == "feather")
    for place in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / f"a.{suffix}").write_bytes(broken)
        with suppress(DataError):
            read_columns(tmp_path / f"a.{suffix}")
