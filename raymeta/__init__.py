"""raymeta: meta-trained recurrent networks, tuned by Bayesian optimisation on Ray.

The functions are those of the command line: `tune`, `train`, `watch`, `evaluate`, `explain`,
`write_report` and `compare`; `runs` lists the runs.  `load` opens a run's network, which adapts to
new tasks, and `write_hub_folder` writes it for others; `load_adapted` reads an adapted network;
`load_forecaster` opens a network that forecasts series; `FewShotClassifier` and `FewShotRegressor`
wrap both as scikit-learn estimators.  All are imported on first use, since torch and Ray take
seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymeta.api import compare, evaluate, explain, train, tune, watch, write_report
    from raymeta.inference.estimators import FewShotClassifier, FewShotRegressor
    from raymeta.inference.files import load, load_adapted, load_forecaster
    from raymeta.report.hub import write_hub_folder
    from raymeta.run_folder import runs

__all__ = [
    "FewShotClassifier",
    "FewShotRegressor",
    "compare",
    "evaluate",
    "explain",
    "load",
    "load_adapted",
    "load_forecaster",
    "runs",
    "train",
    "tune",
    "watch",
    "write_hub_folder",
    "write_report",
]

_HOMES = {
    "FewShotClassifier": "raymeta.inference.estimators",
    "FewShotRegressor": "raymeta.inference.estimators",
    "compare": "raymeta.api",
    "evaluate": "raymeta.api",
    "explain": "raymeta.api",
    "load": "raymeta.inference.files",
    "load_adapted": "raymeta.inference.files",
    "load_forecaster": "raymeta.inference.files",
    "runs": "raymeta.run_folder",
    "train": "raymeta.api",
    "tune": "raymeta.api",
    "watch": "raymeta.api",
    "write_hub_folder": "raymeta.report.hub",
    "write_report": "raymeta.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymeta' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
