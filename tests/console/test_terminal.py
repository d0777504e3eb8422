"""Output on a terminal whose encoding lacks signs, and warnings about data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from raymeta.console.terminal import SPELLED, Terminal, show_data_warnings
from raymeta.errors import DataWarning

SIGNS = "".join(SPELLED) + "é \u4e2d \U0001f600 \udcff"


def terminal(encoding: str) -> tuple[Terminal, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="raymeta.spelled")
    return Terminal(file=file, width=60), raw


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_sign_can_be_printed_in_every_encoding(encoding):
    console, raw = terminal(encoding)
    table = Table(title=f"title {SIGNS}", box=None)
    table.add_column(f"head ± {SIGNS[:3]}")
    table.add_row("0.5 ± 0.1", style="bold")
    for thing in (table, SIGNS, Text(SIGNS)):
        console.print(thing)
    console.file.flush()
    text = raw.getvalue().decode(encoding, "surrogateescape")
    assert ("0.5 ± 0.1" if encoding != "ascii" else "0.5 +/- 0.1") in text


def test_columns_stay_aligned_where_signs_are_spelled_out():
    console, raw = terminal("ascii")
    table = Table(box=None, show_header=False)
    table.add_row("1.000 ± 0.100", "here")
    table.add_row("without", "here")
    console.print(table)
    console.file.flush()
    first, second = raw.getvalue().decode("ascii").splitlines()
    assert first.index("here") == second.index("here")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["tune", "--help"], ["list"], ["tune", "pén…"]])
def test_commands_work_on_an_ascii_terminal(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "raymeta", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict", "LANG": "C", "LC_ALL": "C"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if arguments[-1] == "pén…" else 0)
    assert (done.stdout + done.stderr).isascii()


def test_a_warning_about_data_is_one_line_and_printed_once(capsys, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        show_data_warnings()
        for _ in range(3):
            warnings.warn("21 sequences are copies", DataWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["warning: 21 sequences are copies"]
