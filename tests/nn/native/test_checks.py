"""Arguments that do not fit a layer or a network are refused before compiled code runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from raymeta.nn.cells import Cell
from raymeta.nn.native import library

PROGRAM = Path(__file__).with_name("misfits.py")


@pytest.mark.slow
@pytest.mark.parametrize("cell", get_args(Cell))
@pytest.mark.parametrize("native", ["1", "0"], ids=["native", "torch"])
def test_every_argument_that_does_not_fit_is_refused(cell: Cell, native: str) -> None:
    if native == "1" and library() is None:
        pytest.skip("no C++ compiler")
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), cell],
        env=os.environ | {"RAYMETA_NATIVE": native},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    results = json.loads(ended.stdout)
    assert len(results) > 100
    missed = {name: error for name, error in results.items() if error[0] != "ValueError"}
    assert not missed
    assert all(len(message) < 500 for _, message in results.values())


@pytest.mark.slow
def test_a_refusal_names_the_expected_and_the_given_input() -> None:
    program = (
        "import torch; from raymeta.nn.networks import *\n"
        "spec = NetworkSpec(num_outputs=2, num_features=5)\n"
        "params = expand_params(init_params(spec, torch.Generator()), 1)\n"
        "forward(spec, params, torch.zeros(1, 1, 1, 1_000_000))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (
        "ValueError: x must be floating-point [1, N, T, 5], not empty, for this network, but got "
        "torch.float32 [1, 1, 1, 1000000]"
    ) in ended.stderr
