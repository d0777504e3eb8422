"""Fixtures that all tests share."""

from __future__ import annotations

import os

# Before NumPy loads: several processes of these tests share the cores, where threads of one wait
# for those of others.  The processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.nn.native import library, scans

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray wait most: they come first, so that others fit in beside them."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["compiled", "torch"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Selects each of the two ways in which a recurrent layer runs on a CPU."""
    if request.param == "compiled" and library() is None:
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(scans, "serves", lambda _: False)
        yield str(request.param)


@pytest.fixture(scope="session")
def tiny():
    """Loads a shipped experiment cut down to fractions of a second, with overrides."""

    def load(name: str, *overrides: str) -> Experiment:
        return load_experiment(name, [*TINY, *overrides])

    return load


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Starts an S3 server in a process of its own, and returns its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes a bucket and returns its URI; this process and its children have the keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    name = f"bucket-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"{s3}/{name}", method="PUT")).close()  # noqa: S310
    return f"s3://{name}?endpoint_override={s3}&region=us-east-1"


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """Makes a folder in which nobody can write; for root, by a read-only mount."""
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
