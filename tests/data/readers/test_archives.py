"""Text files of the archives: every number arrives in its place, and errors name theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymeta.data.readers.arrow import read_columns
from raymeta.errors import MAX_MESSAGE, DataError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.base_settings import SHIPPED_DATA
from raymeta.tasks.guess import guess_tasks
from raymeta.tasks.load import load_tasks

TS = """# A comment
@problemName demo
@timeStamps false
@missing true
@classLabel true up down
@data
1,2,?:4,5,6:up
7.5,-8:9e1,10:down
"""
STAMPED = """@timeStamps true
@targetLabel true
@data
(0,1.5),(3,2.5):(0,?),(3,4):0.25
"""
TSF = """% Monash
@relation demo
@attribute series_name string
@attribute start_timestamp date
@attribute size numeric
@frequency monthly
@horizon 12
@missing true
@equallength false
@data
T1:1979-01-01 00-00-00:3:1,2.5,?
T2:1980-02-01 00-00-00:4:-7
"""


def table_of(folder: Path, name: str, text: str | bytes) -> pa.Table:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_columns(path)


def test_cases_become_rows_with_their_class_and_every_dimension(tmp_path: Path) -> None:
    found = table_of(tmp_path, "demo.ts", TS).to_pydict()
    assert found == {
        "case_id": ["demo-1"] * 3 + ["demo-2"] * 2,
        "timepoint": [0, 1, 2, 0, 1],
        "class": ["up"] * 3 + ["down"] * 2,
        "dim_0": [1, 2, None, 7.5, -8],
        "dim_1": [4, 5, 6, 90, 10],
    }


def test_time_stamps_and_numeric_targets_are_kept(tmp_path: Path) -> None:
    found = table_of(tmp_path, "demo.ts", STAMPED).to_pydict()
    assert found["timepoint"] == [0, 3]
    assert found["target"] == [0.25, 0.25]
    assert (found["dim_0"], found["dim_1"]) == ([1.5, 2.5], [None, 4])


def test_series_become_rows_with_their_attributes(tmp_path: Path) -> None:
    assert table_of(tmp_path, "demo.tsf", TSF).to_pydict() == {
        "series_id": ["demo-1"] * 3 + ["demo-2"],
        "series_name": ["T1"] * 3 + ["T2"],
        "start_timestamp": ["1979-01-01 00-00-00"] * 3 + ["1980-02-01 00-00-00"],
        "size": [3, 3, 3, 4],
        "time_idx": [0, 1, 2, 0],
        "target": [1, 2.5, None, -7],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ts", "", "a.ts: cannot be read as a .ts file: the file is empty"),
        ("a.ts", b"\xff\xfe1", "not UTF-8"),
        ("a.ts", "import x from 'y'", r"line 1: must be @data or a key before it.*is this a .ts"),
        ("a.ts", "@problemName x\n", "has no line @data"),
        ("a.ts", "@data\n\n# none\n", "has no rows after @data"),
        (
            "a.ts",
            "@classLabels true\n@data\n1",
            "line 1: '@classLabels' is not a key of a .ts file",
        ),
        ("a.ts", TS.replace("Label true", "Label yes"), "@classlabel must be true or false"),
        ("a.ts", TS.replace("Stamps false", "Stamps 0"), "@timestamps must be true or false"),
        ("a.ts", TS.replace(":up", ":"), "line 7: has no class after the last :"),
        ("a.ts", TS.replace(":up", ":?"), "line 7: has no class after the last :"),
        ("a.ts", TS.replace("4,5,6", "4,5"), "line 7: dimension 1 has 2 steps, but dimension 0"),
        ("a.ts", TS.replace("9e1,10:", ""), "line 8: must have 2 dimensions .* but has 1"),
        ("a.ts", TS.replace("7.5", "7,5"), "line 8: dimension 1 has 2 steps"),
        (
            "a.ts",
            TS.replace("7.5", "seven"),
            "dimension 0 has 'seven', not a number",
        ),
        ("a.ts", TS.replace("7.5", ""), "line 8: dimension 0 has '', not a number"),
        ("a.ts", TS.replace("7.5", "-inf"), "line 8: dimension 0 has '-inf'"),
        ("a.ts", TS.replace("7.5", "1e999"), "line 8: dimension 0 has '1e999'"),
        ("a.ts", TS.replace("7.5", "x" * 9000), "line 8: dimension 0 has 'xxx"),
        ("a.ts", STAMPED.replace("(3,2.5)", "(3"), r"line 4: dimension 0 must be pairs such as"),
        ("a.ts", STAMPED.replace("(3,2.5)", "(4,2.5)"), "or they are at other times"),
        ("a.ts", STAMPED.replace("0.25", "?"), "line 4: the target is missing"),
        ("a.ts", STAMPED.replace("0.25", "high"), "line 4: @targetLabel has 'high'"),
        ("a.tsf", "@frequency daily\n", "has no line @data, .* is this a .tsf file"),
        (
            "a.tsf",
            TSF.replace("size numeric", "size number"),
            "line 5: @attribute must have",
        ),
        ("a.tsf", TSF.replace("size", "target"), "'target' is declared twice, or is the name"),
        ("a.tsf", TSF.replace("size", "series_name"), "'series_name' is declared twice"),
        ("a.tsf", TSF.replace("00-00-00:3", "00:00:00:3"), "line 11: must have 3 attributes"),
        ("a.ts", TS.replace("7.5,-8:9e1,10:", ""), "line 8: has no : between the values and"),
        (
            "a.ts",
            TS.replace("10:down", "10:dwon"),
            "line 8: has the class 'dwon', which @classLabel",
        ),
        ("a.ts", STAMPED.replace("0.25", "0.25,3"), "line 4: @targetLabel must be one number"),
        ("a.tsf", TSF.replace(":3:", ":3,4:"), "line 11: attribute 'size' must be one number"),
        ("a.tsf", TSF.replace(":3:", ":three:"), "line 11: attribute 'size' has 'three'"),
        ("a.tsf", TSF.replace("2.5", "2.5;3"), "line 11: the series has '2.5;3'"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        table_of(tmp_path, name, text)
    assert len(str(refused.value)) <= MAX_MESSAGE


def test_missing_columns_are_reported_with_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "demo.ts").write_text(TS)
    with pytest.raises(DataError, match="has no column 'dim0'; did you mean 'dim_0'"):
        read_columns(tmp_path / "demo.ts", ["case_id", "dim0"])


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the shipped vowels as a `.ts` file in the archive's form."""
    (shipped,) = (SHIPPED_DATA / "japanese_vowels").glob("*.parquet")
    rows = pq.read_table(shipped).to_pandas()
    dims = [name for name in rows if name.startswith("lpc_")]
    lines = ["@timeStamps false", "@classLabel true " + " ".join(map(str, rows.speaker.unique()))]
    for _, case in rows.groupby("utterance", sort=False):
        values = [",".join(map(repr, case[name].astype(float).tolist())) for name in dims]
        lines.append(":".join([*values, str(case.speaker.iloc[0])]))
    folder = tmp_path_factory.mktemp("ts")
    lines.insert(2, "@data")
    (folder / "vowels.ts").write_text("\n".join(lines))
    return folder


def test_a_ts_file_gives_the_episodes_of_the_same_table(vowels: Path) -> None:
    settings: dict[str, Any] = {"tasks.sequence": "case_id", "tasks.target": "class"}
    dims = [f"dim_{n}" for n in range(12)]
    shipped = load_experiment("vowels")
    changed = [
        *(f"{key}={value}" for key, value in settings.items()),
        f"tasks.data_dir={vowels}",
        "tasks.files=[]",
        "tasks.time=timepoint",
        f"tasks.features=[{', '.join(dims)}]",
    ]
    one = load_tasks(shipped).episodes("train", range(5))
    other = load_tasks(load_experiment("vowels", changed)).episodes("train", range(5))
    assert torch.equal(one.support.x, other.support.x)
    assert one.support.lengths is not None
    assert other.support.lengths is not None
    assert torch.equal(one.support.lengths, other.support.lengths)
    assert torch.equal(one.query.y, other.query.y)


def test_new_understands_a_ts_file_without_a_word_about_its_columns(vowels: Path) -> None:
    settings = guess_tasks(str(vowels)).settings
    assert (settings.sequence, settings.target, settings.time) == ("case_id", "class", "timepoint")
    assert len(settings.features) == 12
