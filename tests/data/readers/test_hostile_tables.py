"""Broken and hostile tables of every kind are refused with a message of their own, or read."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymeta.episodes import TaskDistribution
from raymeta.errors import MAX_MESSAGE, DataError
from raymeta.experiment.schema import Experiment
from raymeta.tasks.load import load_tasks

NUM_ROWS = 6 * 6 * 4


@cache
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"id": f"s{kind}-{n}", "kind": f"k{kind}", "who": f"w{n % 3}", "t": t}
            | {"x": rng.normal(), "y": rng.normal()}
            for kind in range(6)
            for n in range(6)
            for t in range(4)
        ]
    )


CSV = frame().to_csv(index=False)
JSONL = frame().to_json(orient="records", lines=True)


DIGITS = '"x":' + "9" * 400
TOKYO = pa.timestamp("ms", "Asia/Tokyo")
HEADER = len("id,kind,who,t,x,y\n")


def csv(**changes: Any) -> bytes:
    """Writes the table as CSV with other columns."""
    return frame().assign(**changes).to_csv(index=False).encode()


def arrow_stream() -> bytes:
    """Writes the table as Arrow without an index at its end."""
    table, sink = pa.Table.from_pandas(frame()), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def row_2(text: str) -> bytes:
    """Writes the table as CSV with another second row."""
    lines = CSV.splitlines()
    lines[2] = text
    return "\n".join(lines).encode()


def replaced(old: str, new: str, count: int = -1, encoding: str = "utf-8") -> bytes:
    return CSV.replace(old, new, count).encode(encoding)


def parquet(**columns: pa.Array) -> bytes:
    """Writes the table as Parquet with other columns, in types that CSV lacks."""
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def first_x(value: Any, kind: pa.DataType | None = None) -> bytes:
    rest = list(range(1, NUM_ROWS)) if kind or isinstance(value, int) else list(frame().x[1:])
    return parquet(x=pa.array([value, *rest], kind))


def load(folder: Path, name: str, content: bytes) -> TaskDistribution:
    (folder / name).write_bytes(content)
    tasks = {
        "source": "table",
        "data_dir": str(folder),
        "sequence": "id",
        "target": "kind",
        "time": "t",
        "features": ["x", "y"],
        "groups": ["who"],
        "num_ways": 2,
        "num_queries": 1,
        "val_classes": 2,
        "test_classes": 2,
    }
    tasks_of = load_tasks(Experiment.model_validate({"name": "hostile", "tasks": tasks}))
    tasks_of.episodes("test", [0])
    return tasks_of


NUL = "it holds NUL characters, as UTF-16 text and binary files do; save it as UTF-8"
IN_X = ", row 2, column x: {} is not a finite number; mend it, remove the row, or leave the column"
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("csv", b"", "cannot be read as CSV: CSV parse error: Empty CSV file"),
    "blank lines": ("csv", b"\n\n\n", "cannot be read as CSV: CSV parse error: Empty CSV file"),
    "header alone": ("csv", csv()[:HEADER], "has no rows"),
    "UTF-16": ("csv", CSV.encode("utf-16"), NUL),
    "UTF-16 without a mark": ("csv", CSV.encode("utf-16-be"), NUL),
    "UTF-32": ("csv", CSV.encode("utf-32"), NUL),
    "Latin-1": ("csv", replaced("k1", "ké", encoding="latin-1"), "row 25: CSV conversion error"),
    "Latin-1 header": ("csv", replaced("kind", "kïnd", 1, "latin-1"), "save it as UTF-8"),
    "NUL characters": ("csv", replaced("k1", "k\0", 1), NUL),
    "short row": ("csv", row_2("s0-0,k0"), "row 2: Expected 6 columns, got 2"),
    "long row": ("csv", row_2("s0-0,k0,w0,1,1,2,3"), "row 2: Expected 6 columns, got 7"),
    "open quote": ("csv", row_2('s0-0,"k0,w0,1,1,2'), "row 2: Expected 6 columns"),
    "semicolons": ("csv", replaced(",", ";"), "its columns are parted by semicolons"),
    "tabs": ("csv", replaced(",", "\t"), "its columns are parted by tabs"),
    "a column twice": ("csv", replaced("x,y", "x,x", 1), "multiple columns named x"),
    "a column with a blank": ("csv", replaced("x,y", " x,y", 1), "did you mean ' x'?"),
    "decimal comma": ("csv", row_2('s0-0,k0,w0,1,"1,5",2'), IN_X.format("'1,5'")),
    "per cent": ("csv", row_2("s0-0,k0,w0,1,15%,2"), IN_X.format("'15%'")),
    "base 16": ("csv", row_2("s0-0,k0,w0,1,0x1F,2"), IN_X.format("'0x1F'")),
    "other digits": ("csv", row_2("s0-0,k0,w0,1,١,2"), IN_X.format("'١'")),
    "number too large": ("csv", row_2("s0-0,k0,w0,1,1e400,2"), IN_X.format("'1e400'")),
    "infinity": ("csv", row_2("s0-0,k0,w0,1,-inf,2"), IN_X.format("'-inf'")),
    "truth value": ("csv", row_2("s0-0,k0,w0,1,true,2"), IN_X.format("'true'")),
    "a date for a number": ("csv", row_2("s0-0,k0,w0,1,2026-01-01,2"), "'2026-01-01' is not a fin"),
    "NA": ("csv", row_2("s0-0,k0,w0,1,NA,2"), ", row 2, column x: the value is missing"),
    "a blank": ("csv", row_2("s0-0,k0,w0,1, ,2"), ", row 2, column x: the value is missing"),
    "no such date": ("csv", row_2("s0-0,k0,w0,2026-13-45,1,2"), "column t: '2026-13-45' is no"),
    "date with points": ("csv", replaced(",0,", ",01.02.2026,"), "column t: '01.02.2026' is no"),
    "row twice": ("csv", row_2(CSV.splitlines()[1]), "row 2, column t: sequence 's0-0' has the"),
    "table twice": ("csv", (CSV + CSV.partition("\n")[2]).encode(), "row 145, column t: sequence"),
    "no id": ("csv", row_2(",k0,w0,1,1,2"), "row 2, column id: the value is missing"),
    "no group": ("csv", row_2("s0-0,k0,,1,1,2"), "row 2, column who: the value is missing"),
    "an id of two classes": ("csv", row_2("s0-0,k1,w0,1,1,2"), "row 2, column kind: must be the"),
    "one class": ("csv", csv(kind="k"), "the number of different classes in the meta-test split"),
    "one group": ("csv", csv(who="w"), "column who must have more than 2 groups"),
    "one sequence": ("csv", csv(id="s", kind="k", who="w", t=range(NUM_ROWS)), "column who must"),
    "nothing changes": ("csv", csv(x=1, y=1), "share 1 of 1 sequences: one is a copy"),
    "features of 1e306": ("csv", csv(x=frame().x * 1e306), "numbers too large to be standardised"),
    "Parquet called CSV": ("csv", parquet(), NUL),
    "CSV called Parquet": ("parquet", CSV.encode(), "Parquet magic bytes not found"),
    "truncated Parquet": ("parquet", parquet()[:-50], "Parquet magic bytes not found"),
    "empty Parquet": ("parquet", b"", "Parquet file size is 0 bytes"),
    "null": ("parquet", first_x(None), ", row 1, column x: the value is missing"),
    "NaN": ("parquet", first_x(float("nan")), ", row 1, column x: the value is missing"),
    "inf": ("parquet", first_x(float("inf")), ", row 1, column x: inf is not a finite number"),
    "all null": ("parquet", parquet(x=pa.nulls(NUM_ROWS)), "row 1, column x: the value is missing"),
    "int64 of 61 bits": ("parquet", first_x(2**60 + 1), "more digits than a float64 holds"),
    "uint64": ("parquet", first_x(2**64 - 1, pa.uint64()), "more digits than a float64 holds"),
    "lists": ("parquet", parquet(x=pa.array([[1.0]] * NUM_ROWS)), "must hold numbers, but holds"),
    "dates as features": (
        "parquet",
        parquet(x=pa.array(range(NUM_ROWS), pa.timestamp("ns"))),
        "column x: must hold numbers, but holds timestamp[ns]",
    ),
    "fractions as ids": (
        "parquet",
        parquet(id=pa.array([float(n // 4) for n in range(NUM_ROWS)])),
        "column id: must hold text or whole numbers, but holds double",
    ),
    "bytes as classes": (
        "parquet",
        parquet(kind=pa.array([b"\xff"] * NUM_ROWS)),
        "column kind: must hold text or whole numbers, but holds binary",
    ),
    "text called Feather": ("feather", CSV.encode(), "read as Feather: Not an Arrow file"),
    "text called Arrow": ("arrow", CSV.encode(), "cannot be read as Arrow"),
    "an Arrow stream cut off": ("arrow", arrow_stream()[:-300], "cannot be read as Arrow"),
    "an Arrow stream of noise": (
        "arrow",
        arrow_stream()[:100] + bytes(range(256)) * 4,
        "cannot be read as Arrow",
    ),
    "a list of JSON": ("jsonl", b"[{}]", "changed from object to array"),
    "JSON cut off": ("jsonl", (JSONL + '{"id":').encode(), "cannot be read as JSON lines"),
    "JSON of another type": ("jsonl", JSONL.replace(':0,"x"', ':"a","x"', 1).encode(), "(/t)"),
    "JSON key twice": ("jsonl", JSONL.replace('"id"', '"id":"a","id"', 1).encode(), "twice"),
    "JSON key missing": ("jsonl", JSONL.replace('"y"', '"q"', 1).encode(), "row 1, column y"),
    "JSON of 400 digits": ("jsonl", JSONL.replace('"x":', DIGITS, 1).encode(), "inf is no"),
    "JSON in Latin-1": ("jsonl", JSONL.replace("k1", "ké").encode("latin-1"), "save it as UTF-8"),
    "JSON 100,000 deep": ("jsonl", b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "brackets"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_table_is_refused_by_name_with_the_place_and_the_remedy(
    kind: str, tmp_path: Path
) -> None:
    form, content, complaint = REFUSED[kind]
    with pytest.raises(DataError) as error:
        load(tmp_path, f"rows.{form}", content)
    message = str(error.value)
    assert complaint in message
    assert "rows." in message or "column" in message or "split" in message or "share" in message
    assert len(message) <= MAX_MESSAGE


READ: dict[str, tuple[str, bytes]] = {
    "byte order mark": ("csv", b"\xef\xbb\xbf" + CSV.encode()),
    "lines that end in CR": ("csv", replaced("\n", "\r")),
    "lines that end in CR LF": ("csv", replaced("\n", "\r\n")),
    "blanks around numbers": ("csv", replaced(",0,", ", 0 ,")),
    "tabs": ("tsv", replaced(",", "\t")),
    "JSON with a byte order mark": ("jsonl", b"\xef\xbb\xbf" + JSONL.encode()),
    "categories": ("parquet", parquet(kind=pa.array(frame().kind).dictionary_encode())),
    "large strings": ("parquet", parquet(kind=pa.array(frame().kind, pa.large_string()))),
    "dates": ("parquet", parquet(t=pa.array(range(NUM_ROWS), pa.int32()).cast(pa.date32()))),
    "times of the day": ("parquet", parquet(t=pa.array(range(NUM_ROWS), pa.time32("s")))),
    "durations": ("parquet", parquet(t=pa.array(range(NUM_ROWS), pa.duration("ms")))),
    "time zones": ("parquet", parquet(t=pa.array(range(NUM_ROWS), TOKYO))),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_an_odd_but_sound_table_is_the_same_data(kind: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    expected = load(tmp_path / "plain", "rows.csv", CSV.encode())
    found = load(tmp_path, f"rows.{READ[kind][0]}", READ[kind][1])
    np.testing.assert_allclose(found.facts["mean"], expected.facts["mean"], rtol=1e-9)
    assert found.deal == expected.deal


def test_dates_with_an_offset_are_ordered_by_the_moment(tmp_path: Path) -> None:
    # Each offset is two hours more than the one before, the clock time only one.
    dates = [f"2026-01-01T{8 + t:02}:00:00+{2 * t:02}:00" for t in range(4)]
    table = frame().assign(t=[dates[t] for t in frame().t])
    found = load(tmp_path, "rows.csv", table.to_csv(index=False).encode())
    mirrored = frame().assign(t=3 - frame().t)
    (tmp_path / "plain").mkdir()
    expected = load(tmp_path / "plain", "rows.csv", mirrored.to_csv(index=False).encode())
    assert found.fingerprint == expected.fingerprint


def test_a_table_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="no regular file"):
        load(tmp_path, "other.csv", CSV.encode())


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_a_table_that_unfolds_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A Parquet file of kilobytes may stand for any number of rows."""
    for module in ("arrow", "unfolding"):
        monkeypatch.setattr(f"raymeta.data.readers.{module}.TABLE_BYTES", 1000)
    content = {"csv": CSV.encode(), "arrow": arrow_stream(), "parquet": parquet()}[suffix]
    with pytest.raises(DataError, match=r"columns take more than|and at most 1000 are read"):
        load(tmp_path, f"rows.{suffix}", content)
