"""The file with a cluster's token, which Ray writes for everybody on the machine to read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def protect_token() -> None:
    """Lets only its owner read the token: who has it may run code on the cluster."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    with suppress(OSError, RuntimeError):  # there is none, or it is not ours
        path = path.expanduser()
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            path.chmod(mode & 0o700)
