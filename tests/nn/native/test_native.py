"""Building and loading the compiled scans, and working without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymeta.nn.native import FLAGS, library, scans
from raymeta.nn.recurrence import recurrence

needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler")
PROGRAM = """
import logging, torch
logging.basicConfig(level=logging.INFO)
from raymeta.nn.native import library
from raymeta.nn.recurrence import recurrence
states = recurrence("lstm", torch.ones(1, 3, 1, 8), torch.ones(1, 2, 8))
print(library() is not None, states.sum().item())
"""


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Prints, in a new process, whether compiled scans load, and a number that must not change."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "raymeta").glob("*"))


@pytest.mark.slow
@needs_compiler
def test_scans_are_built_once_and_found_again(tmp_path):
    first = run(tmp_path)
    (built,) = cached(tmp_path)
    when = built.stat().st_mtime_ns
    second = run(tmp_path)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("True")
    assert cached(tmp_path) == [built]
    assert built.stat().st_mtime_ns == when


@pytest.mark.slow
@needs_compiler
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("True")
    assert len(cached(tmp_path)) == 1


@pytest.mark.slow
def test_without_a_compiler_the_results_are_the_same(tmp_path):
    usual = run(tmp_path).stdout.split()[1]
    without = run(tmp_path, CXX="no-such-compiler", PATH=str(tmp_path))
    assert without.stdout.split()[0] == "False"
    assert "no C++ compiler" in without.stderr
    assert float(without.stdout.split()[1]) == pytest.approx(float(usual), rel=1e-6)


@pytest.mark.slow
def test_a_compiler_that_fails_is_reported_and_done_without(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'is broken' >&2; exit 1; }\n")
    compiler.chmod(0o755)
    result = run(tmp_path, CXX=str(compiler))
    assert result.stdout.startswith("False")
    assert "is broken" in result.stderr
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_the_environment_can_switch_the_scans_off(tmp_path):
    assert run(tmp_path, RAYMETA_NATIVE="0").stdout.startswith("False")
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "cache").write_text("in the way")
    result = run(tmp_path)
    assert result.stdout.startswith("False")
    assert "cannot be used" in result.stderr


@needs_compiler
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_number_of_threads_changes_no_bit(cell):
    generator = torch.Generator().manual_seed(0)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    inputs = torch.randn(3, 5, 40, gates * 17, generator=generator)
    weight = torch.randn(3, 17, gates * 17, generator=generator).requires_grad_()

    def second_order() -> list[torch.Tensor]:
        states = recurrence(cell, inputs, weight)
        (first,) = torch.autograd.grad(states.square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        return [states.detach(), first.detach(), second]

    alone = second_order()
    torch.set_num_threads(3)
    try:
        torch.testing.assert_close(second_order(), alone, rtol=0, atol=0)
    finally:
        torch.set_num_threads(1)


def test_no_flag_gives_up_nan():
    assert not {"-ffast-math", "-ffinite-math-only", "-Ofast"} & set(FLAGS)


@needs_compiler
def test_numbers_that_are_stored_with_the_other_sign_are_refused():
    inputs = torch._neg_view(torch.ones(1, 2, 2, 2))
    with pytest.raises(ValueError, match="inputs must be"):
        scans.run("rnn", inputs, torch.ones(1, 2, 2), torch.zeros(1, 2), None)
