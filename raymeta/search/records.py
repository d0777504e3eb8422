"""What the search remembers of its trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raymeta.search.space import Point

Status = Literal["running", "completed", "early_stopped", "failed", "abandoned"]
Source = Literal["given", "sobol", "bo", "random"]


@dataclass
class TrialRecord:
    """All that the search knows of a trial; the list of these is the searcher's whole state.

    `curve` holds (step, mean, standard error or None) as reported, finite means only.  `source`
    says where the point came from: given by the user, Ax's Sobol sequence, its model (Bayesian
    optimisation), or drawn at random where the model failed.
    """

    point: Point
    source: Source
    status: Status = "running"
    curve: list[tuple[int, float, float | None]] = field(default_factory=list)
