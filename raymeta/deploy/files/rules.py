"""Rules for several kinds of clusters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from raymeta.deploy.files.mistakes import Key, Mistake

TOKEN, RUNS_DIR = "RAY_AUTH_MODE", "RAYMETA_RUNS_DIR"

UNPINNED = (
    "must name a fixed version",
    "add a tag other than latest, or a digest: every node must run the same",
)


def pinned(image: str) -> bool:
    """Whether an image's name fixes its version."""
    name, _, tag = image.rsplit("/", 1)[-1].partition(":")
    return "@sha256:" in name + tag or tag.split("@")[0] not in ("", "latest")


def loopback(key: Key, flags: Mapping[str, str]) -> Iterator[Mistake]:
    """Refuses a dashboard that listens beyond the head's loopback."""
    host = flags.get("dashboard-host", "127.0.0.1")
    if host not in ("127.0.0.1", "localhost"):
        remedy = "set it to 127.0.0.1; `ray dashboard` and `raymeta submit` tunnel to it"
        yield Mistake(key, "must bind the dashboard to loopback (--dashboard-host)", remedy, host)


_UNITS = {"": 1.0, "m": 1e-3}
_UNITS |= {unit: 1000.0 ** (n + 1) for n, unit in enumerate("kMGTP")}
_UNITS |= {f"{unit}i": 1024.0 ** (n + 1) for n, unit in enumerate("KMGTP")}


def quantity(amount: object) -> float:
    """Converts a Kubernetes quantity, such as 500m or 16Gi, to a number."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([a-zA-Z]*)", str(amount))
    return float(match[1]) * _UNITS.get(match[2], 1.0) if match else 0.0
