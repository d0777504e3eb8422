"""raymeta: meta-trained recurrent networks, tuned by Bayesian optimisation on Ray.

The functions are those of the command line: `tune`, `train`, `evaluate`, `explain` and
`list`.  They are imported when they are first used, since torch and Ray take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymeta.api import evaluate, explain, train, tune
    from raymeta.runs import list_runs as list  # noqa: A004  (named as the command is)

__all__ = ["evaluate", "explain", "list", "train", "tune"]

_HOMES = {
    "evaluate": ("raymeta.api", "evaluate"),
    "explain": ("raymeta.api", "explain"),
    "list": ("raymeta.runs", "list_runs"),
    "train": ("raymeta.api", "train"),
    "tune": ("raymeta.api", "tune"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymeta' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
