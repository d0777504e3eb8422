"""Switches the mend of each fault off, in a copy of the code: the test of that fault must fail.

    python scripts/check_mends.py              all, one after another
    python scripts/check_mends.py --quick      those that start no Ray
    python scripts/check_mends.py NAME …       some

Prints the test's own words for each fault; the exit code is 1 if a test passes without its mend.
What is lost with hosts, drivers and disks is switched off as one, by `RAYMETA_TEST_RECOVERY=off`
(tests/cluster/onprem.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mends.inputs import INPUTS
from mends.machines import MACHINES
from mends.mend import Mend
from mends.numbers import NUMBERS
from mends.search import SEARCH
from mends.strangers import STRANGERS

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("raymeta", "tests", "cluster", "scripts", "pyproject.toml", "README.md")
TIMEOUT_S = 900

MENDS = MACHINES | STRANGERS | SEARCH | NUMBERS | INPUTS


def without(mend: Mend) -> str:
    """The text of the file without its mend.

    Raises:
        ValueError: the code of the mend is not there, or not only once.
    """
    whole = (REPOSITORY / mend.file).read_text()
    if whole.count(mend.code) != 1:
        raise ValueError(f"{mend.file} has the code of the mend {whole.count(mend.code)} times")
    text = whole.replace(mend.code, mend.instead)
    if "math." in mend.instead:
        text = text.replace("import os\n", "import math\nimport os\n", 1)
    return text


def run_without(name: str, mend: Mend, home: Path) -> bool:
    """Whether the test fails in a copy of the code without the mend; says how."""
    file = home / mend.file
    whole = file.read_text()
    file.write_text(without(mend))
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", mend.tests, "-k", mend.chosen]
    try:
        done = subprocess.run(
            command,
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        code, lines = done.returncode, done.stdout.splitlines()
    except subprocess.TimeoutExpired:
        code, lines = 124, [f"E   nothing after {TIMEOUT_S} s"]
    finally:
        file.write_text(whole)
    told = [line[1:].strip() for line in lines if line.startswith("E  ")]
    said = next((line for line in told if mend.says in line), None)
    if code != 1:
        verdict = f"does not fail (exit code {code})"
    elif said is None:
        verdict = f"fails, but does not say {mend.says!r}"
    else:
        verdict = "fails without its mend"
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{name}: {mend.tests} {verdict}, {took}: {(said or ' '.join(told))[:200]}", flush=True)
    return code == 1 and said is not None


def main() -> int:
    """Runs the chosen tests; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MENDS)}")
    parser.add_argument("--quick", action="store_true", help="only those that start no Ray")
    arguments = parser.parse_args()
    names = arguments.names or [n for n, m in MENDS.items() if m.is_quick or not arguments.quick]
    if unknown := set(names) - set(MENDS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, home / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, home / name)
        have_failed = [run_without(name, MENDS[name], home) for name in names]
    return 0 if all(have_failed) else 1


if __name__ == "__main__":
    sys.exit(main())
