"""Protects the file with a cluster's token, which Ray writes readable for everybody."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def protect_token() -> None:
    """Lets only its owner read the token, which allows running code on the cluster."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    with suppress(OSError, RuntimeError):  # no file, or another user's
        path = path.expanduser()
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            path.chmod(mode & 0o700)
