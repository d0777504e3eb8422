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
from mends.mend import Mend
from mends.numbers import NUMBERS
from mends.search import SEARCH

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("raymeta", "tests", "cluster", "scripts", "pyproject.toml", "README.md")
TIMEOUT_S = 900


_WATCHDOG = "raymeta/search/watchdog.py"
_DEADLINE = "            if silent_s > limit_s:\n"
_SIGNALS = "    signals = (signal.SIGTERM, signal.SIGHUP)\n"
_ON_PROCESSES = "tests/search/test_watchdog.py"
_REFUSED = "tests/test_refused_resume.py"
_DAMAGED = "tests/test_damaged_runs.py"

MENDS = {
    "hung-trial": Mend(
        _WATCHDOG, _DEADLINE, "            if False:\n", _ON_PROCESSES, "last_checkpoint and trial"
    ),
    "hung-worker": Mend(
        _WATCHDOG, _DEADLINE, "            if False:\n", _ON_PROCESSES, "last_checkpoint and rank"
    ),
    "hung-start": Mend(
        "raymeta/trial/actor.py",
        "        self._to_start: dict[str, Any] | None = config\n",
        "        self._to_start: dict[str, Any] | None = config\n        self._workers()\n",
        _ON_PROCESSES,
        "hangs_at_its_start and rank",
    ),
    "hung-ax": Mend(
        "raymeta/search/ax_process.py",
        "            ray.kill(self._actor)",
        "            pass",
        "tests/search/test_searcher.py",
        "ax_process_that_hangs",
        says="no point came",
    ),
    "own-wait": Mend(
        _WATCHDOG,
        "self._called_at > OWN_WAIT_S:",
        "self._called_at > math.inf:",
        "tests/search/test_silence.py",
        "wait_of_the_driver",
        is_quick=True,
        says="assert ['the actor'] == []",
    ),
    "damaged-record": Mend(
        "raymeta/storage/journal.py",
        "        is_whole = digest == _digest(owner, after, _text(entry))\n",
        "        is_whole = True\n",
        "tests/storage/test_journal.py",
        "every_flipped_bit",
        is_quick=True,
    ),
    "damaged-state": Mend(
        "raymeta/search/tuner.py",
        "    trials = logged_trials(run)\n    unfinished =",
        "    trials = LoggedTrials()\n    unfinished =",
        _DAMAGED,
        "missing_state_of_tune",
    ),
    "damaged-checkpoint": Mend(
        "raymeta/training/checkpoint.py",
        '    if metadata.pop("sha256", None) != _checksum(tensors, metadata):\n',
        '    if metadata.pop("sha256", None) is None:\n',
        _DAMAGED,
        "checkpoint_before and flipped",
    ),
    "damaged-results": Mend(
        "raymeta/storage/checksum.py",
        "        is_whole = found == _checksum(content)\n",
        "        is_whole = True\n",
        "tests/test_run_folder.py",
        "changed_number",
        is_quick=True,
    ),
    "damaged-table": Mend(
        "raymeta/data/mapped.py",
        '    if hashlib.sha256(content).hexdigest()[:_DIGITS] != file.stem.rpartition("-")[2]:\n',
        "    if False:\n",
        "tests/data/test_mapped.py",
        "flipped",
        is_quick=True,
    ),
    "dead-raylet": Mend(
        _WATCHDOG, "    thread.start()\n    try:\n", "    try:\n", _ON_PROCESSES, "raylet_dies"
    ),
    "folder-gone": Mend(
        "raymeta/storage/outage.py",
        "    def _refuse_absence(self) -> None:\n",
        "    def _refuse_absence(self) -> None:\n        return\n",
        _ON_PROCESSES,
        "folder_is_deleted",
    ),
    "other-owner": Mend(
        "raymeta/run_guard.py",
        "        if owner != own:\n",
        "        if False:\n",
        _REFUSED,
        "command_line and owner",
        is_quick=True,
        says="Ray was asked for",
    ),
    "fetched-links": Mend(
        "raymeta/deploy/jobs/fetch.py",
        "            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):\n",
        "            if False:\n",
        "tests/deploy/jobs/test_fetch.py",
        "links_and_devices",
        is_quick=True,
    ),
    "links-of-trials": Mend(
        "raymeta/run_folder.py",
        "_TRIALS if of_trials else ()",
        "()",
        "tests/test_strangers.py",
        "folders_of_trials",
        is_quick=True,
    ),
    "lock-link": Mend(
        "raymeta/run_guard.py",
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
        "os.O_RDWR | os.O_CREAT",
        _REFUSED,
        "place_of_the_lock",
        is_quick=True,
    ),
    "own-code": Mend(
        "raymeta/data/readers/python.py",
        "    if hashlib.sha256(content).hexdigest() not in allowed_code():\n",
        "    if False:\n",
        "tests/test_strangers.py",
        "strangers_run",
        is_quick=True,
    ),
    "data-links": Mend(
        "raymeta/experiment/data_files.py",
        "        refuse_outside(folder, file)\n",
        "",
        "tests/experiment/test_data_files.py",
        "link_out_of_the_folder",
        is_quick=True,
    ),
    "alias-bomb": Mend(
        "raymeta/experiment/yaml_lines.py",
        "        if self._total[0] > self.max_values:\n",
        "        if False:\n",
        "tests/experiment/test_yaml_lines.py",
        "bomb_takes",
        is_quick=True,
    ),
    "edited-experiment": Mend(
        "raymeta/run_format.py",
        "        if found:\n",
        "        if False:\n",
        _REFUSED,
        "command_line and experiment",
        is_quick=True,
        says="Ray was asked for",
    ),
    "other-data": Mend(
        "raymeta/run_format.py",
        "        if data != self.data:\n",
        "        if False:\n",
        _REFUSED,
        "command_line and data",
        is_quick=True,
        says="Ray was asked for",
    ),
    "other-version": Mend(
        "raymeta/run_format.py",
        "        if others:\n",
        "        if False:\n",
        _REFUSED,
        "command_line and version",
        is_quick=True,
        says="Ray was asked for",
    ),
    "storage-away": Mend(
        "raymeta/storage/outage.py",
        "        last, pause, told = time",
        "        return action()\n        last, pause, told = time",
        _ON_PROCESSES,
        "storage_that_is_away",
    ),
    "failed-again": Mend(
        "raymeta/search/tuner.py",
        'if r.status in ("running", "failed")]',
        'if r.status == "running"]',
        _DAMAGED,
        "failed_trials_run_again",
    ),
    "SIGTERM": Mend(
        _WATCHDOG, _SIGNALS, "    signals = ()\n", _ON_PROCESSES, "signal_saves and TERM"
    ),
    "SIGHUP": Mend(
        _WATCHDOG, _SIGNALS, "    signals = ()\n", _ON_PROCESSES, "signal_saves and HUP"
    ),
    "SIGTERM-refit": Mend(
        _WATCHDOG, _SIGNALS, "    signals = ()\n", _ON_PROCESSES, "signal_during_the_refit"
    ),
    "SIGTERM-meta-test": Mend(
        "raymeta/cli/local.py",
        "        for number in (signal.SIGTERM, signal.SIGHUP)\n",
        "        for number in ()\n",
        "tests/cli/test_signals.py",
        "SIGTERM and meta-test",
    ),
    "nohup": Mend(
        "raymeta/cli/local.py",
        "        if signal.getsignal(number) != signal.SIG_IGN\n",
        "",
        "tests/cli/test_signals.py",
        "stays_ignored",
        is_quick=True,
        says="ended by SIGHUP",
    ),
    "passed-on": Mend(
        "raymeta/deploy/jobs/driver.py",
        "        for number in (signal.SIGTERM, signal.SIGHUP)\n",
        "        for number in ()\n",
        "tests/deploy/jobs/test_driver.py",
        "passed_on_to_the_run",
        is_quick=True,
        says="assert -15 == ",
    ),
    "stop-wait": Mend(
        "raymeta/deploy/jobs/client.py",
        '["env_vars"] = {**wait, ',
        '["env_vars"] = {',
        "tests/deploy/jobs/test_submission.py",
        "longer_than_its_grace",
        is_quick=True,
        says="KeyError: 'RAY_JOB_STOP_WAIT_TIME_S'",
    ),
    "tunnel": Mend(
        "raymeta/deploy/jobs/tunnel.py",
        "    handled = [s for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN]\n",
        "    handled: list[int] = []\n",
        "tests/deploy/jobs/test_tunnel.py",
        "signal_ends",
        is_quick=True,
    ),
    "unreachable": Mend(
        "raymeta/storage/paths.py",
        '            reason = str(error).rpartition("Details: ")[2] or str(error)\n',
        "            raise\n",
        "tests/storage/test_paths.py",
        "cannot_be_reached",
        is_quick=True,
    ),
    "silent-storage": Mend(
        "raymeta/storage/paths.py",
        "        filesystem = _with_limits(filesystem)\n",
        "        pass\n",
        "tests/storage/test_paths.py",
        "limits_of_a_storage",
        is_quick=True,
        says="assert (-1.0, -1.0) == (5, 10)",
    ),
    "trackers": Mend(
        "raymeta/running.py",
        "    if is_tracked:\n",
        "    if True:\n",
        "tests/test_strangers.py",
        "tells_no_server",
        is_quick=True,
        says="['Bearer hush'",
    ),
    "unpickle": Mend(
        "raymeta/training/checkpoint.py",
        "        _check_header_length(read_regular(path, _LENGTH_BYTES), str(path))\n",
        '        __import__("pickle").loads(read_regular(path))\n',
        "tests/training/test_checkpoint.py",
        "runs_no_code",
        is_quick=True,
        says="assert not True",
    ),
    "header": Mend(
        "raymeta/training/checkpoint.py",
        "    if fault:\n",
        "    if False:\n",
        "tests/training/test_checkpoint.py",
        "huge_header and 94000000",
        is_quick=True,
        says="header must have at most 1,000,000 bytes",
    ),
    "run-name": Mend(
        "raymeta/deploy/jobs/fetch.py",
        "    if not is_run_name(job.run):\n",
        "    if False:\n",
        "tests/deploy/jobs/test_fetch.py",
        "invalid_run_names_are_refused",
        is_quick=True,
        says="is not a name of a run",
    ),
    "loader-files": Mend(
        "raymeta/experiment/data_files.py",
        "    for file in experiment.tasks.data_files():\n",
        '    for file in (p for p in folder.glob("**/*") if p.is_file()):\n',
        "tests/experiment/test_data_files.py",
        "takes_only_the_data_files",
        is_quick=True,
        says="data/.env",
    ),
    "pending-stopped": Mend(
        _WATCHDOG,
        "        if running <= self._reported or",
        "        if (running and running <= self._reported) or",
        "tests/deploy/jobs/test_client.py",
        "trials_all_wait",
    ),
    "token-mode": Mend(
        "raymeta/storage/token.py",
        "            path.chmod(mode & 0o700)\n",
        "            pass\n",
        "tests/storage/test_token.py",
        "only_its_owner",
        is_quick=True,
    ),
}
MENDS |= SEARCH | NUMBERS | INPUTS


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
