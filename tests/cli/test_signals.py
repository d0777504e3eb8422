"""SIGTERM and SIGHUP outside a search: the command to resume, an exit code, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY

TIMEOUT_S = 240


def wait_for(folder: Path, pattern: str, command: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := list(folder.glob(pattern))):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline, pattern
        time.sleep(0.05)
    return found[0].parent


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a training of moments with a meta-test of minutes."""
    sets = [*TINY, "evaluation.num_episodes=100000", "training.eval_every=4"]
    options = [part for value in sets for part in ("--set", value)]
    # Whoever runs the tests may ignore signals, and children inherit that.
    heeding = ["env", "--default-signal=HUP,TERM", sys.executable]
    command = subprocess.Popen(
        [*heeding, "-m", "raymeta", "train", "sinusoid", "--runs-dir", ".", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield command
    if command.poll() is None:
        command.kill()
    command.communicate()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "*/trials.jsonl"),
        (signal.SIGTERM, "*/best.yaml"),
        (signal.SIGHUP, "*/best.yaml"),
    ],
    ids=["SIGTERM when Ray has started", "SIGTERM in the meta-test", "SIGHUP in the meta-test"],
)
def test_a_signal_ends_a_run_with_the_command_that_goes_on(
    training: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    run = wait_for(tmp_path, moment, training)
    training.send_signal(number)
    output, error = training.communicate(timeout=TIMEOUT_S)
    assert training.returncode == 128 + number
    assert f"ended by {number.name}; go on with `raymeta train --resume" in error
    assert run.name in error
    for stack in ("Traceback", "***", "@ "):
        assert stack not in output + error


HEEDING = """
import time

from raymeta.cli.local import _signals_as_interrupts

try:
    with _signals_as_interrupts() as received:
        print("ready", flush=True)
        print(input(), flush=True)
        while True:  # a signal just before one long wait would be seen only after it
            time.sleep(0.05)
except KeyboardInterrupt:
    print(f"ended by {received[0].name}")
"""


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    command = ["env", "--default-signal=TERM", "--ignore-signal=HUP", sys.executable, "-c", HEEDING]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write("goes on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "goes on\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ended by SIGTERM\n"
