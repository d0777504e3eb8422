"""The acquisition functions of the search: one file each, and one line each here.

A file defines an `Acquisition`.  Experiment files, settings and the model all read `ACQUISITIONS`.
This package imports no BoTorch until a class is loaded.
"""

from __future__ import annotations

from raymeta.acquisitions.base import Acquisition as Acquisition
from raymeta.acquisitions.log_ehvi import LOG_EHVI
from raymeta.acquisitions.log_ei import LOG_EI
from raymeta.acquisitions.log_nehvi import LOG_NEHVI
from raymeta.acquisitions.log_nei import LOG_NEI
from raymeta.acquisitions.log_nei_per_second import LOG_NEI_PER_SECOND
from raymeta.acquisitions.ucb import UCB

AUTO = "auto"  # Ax's choice: `log_nei` for one objective, `log_nehvi` for several
ACQUISITIONS: tuple[Acquisition, ...] = (
    LOG_EI,
    LOG_NEI,
    LOG_NEI_PER_SECOND,
    UCB,
    LOG_EHVI,
    LOG_NEHVI,
)
BY_NAME = {acquisition.name: acquisition for acquisition in ACQUISITIONS}
FOR_ONE_OBJECTIVE = (AUTO, *(a.name for a in ACQUISITIONS if not a.is_multi_objective))
