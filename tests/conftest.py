"""What the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment
from raymeta.native import library, scans

TINY = (
    "model.hidden_size=4",
    "model.num_layers=1",
    "maml.adaptation_steps=2",
    "training.pretrain_steps=0",
    "training.meta_steps=8",
    "training.meta_batch_size=3",
    "training.val_episodes=5",
    "training.precision=float64",
    "resources.num_workers=1",
    "search.space={}",
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["compiled", "torch"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways in which a recurrent layer runs on a CPU."""
    if request.param == "compiled" and library() is None:
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(scans, "serves", lambda _: False)
        yield str(request.param)


@pytest.fixture(scope="session")
def tiny():
    """A shipped experiment cut down to fractions of a second, with overrides."""

    def load(name: str, *overrides: str) -> Experiment:
        return load_experiment(name, [*TINY, *overrides])

    return load


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nobody can write; root takes a read-only mount."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, check=False).returncode:
        pytest.skip("root may write anywhere, and nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
