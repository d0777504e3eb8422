from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymeta.deploy.jobs.client import connect
from raymeta.errors import ClusterError
from raymeta.storage.token import protect_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a token as `ray get-auth-token --generate` does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("secret")
    path.chmod(0o644)
    return path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_its_owner_can_read_the_token(token: Path) -> None:
    protect_token()
    assert mode(token) == 0o600
    assert token.read_text() == "secret"


def test_the_token_may_be_elsewhere_or_missing(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    protect_token()
    (tmp_path / "other").write_text("secret")
    protect_token()
    assert (mode(tmp_path / "other"), mode(token)) == (0o600, 0o644)


def test_a_stricter_file_mode_is_kept(token: Path) -> None:
    token.chmod(0o400)
    protect_token()
    assert mode(token) == 0o400


def test_commands_that_ask_a_cluster_protect_the_token(token: Path) -> None:
    with pytest.raises(ClusterError), connect("http://127.0.0.1:9", None):
        pytest.fail("nobody is there")
    assert mode(token) == 0o600


@pytest.mark.ray
@pytest.mark.slow
def test_a_token_that_ray_makes_for_a_search_is_protected(tmp_path: Path) -> None:
    """Ray makes one when it starts on a machine that has none."""
    script = (
        "from raymeta.experiment.file import load_experiment\n"
        "from raymeta.search.session import start_ray\n"
        "start_ray(load_experiment('sinusoid').resources, verbose=False)\n"
    )
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment
        | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
        | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert mode(tmp_path / ".ray" / "auth_token") == 0o600
