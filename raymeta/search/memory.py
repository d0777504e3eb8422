"""Finds points of a search that would not fit into a worker's memory before they are tried."""

from __future__ import annotations

from raymeta.errors import RaymetaError
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.search.space import Point
from raymeta.training.trainer import estimate_memory


class MemoryLimit:
    """Says why a point's meta-step would take more than `training.memory_gb`.

    The plan of a meta-step shrinks to what fits, down to one episode at once without kept graphs;
    what is still too large then is refused here.

    Args:
        experiment: whose search it is.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def __call__(self, point: Point) -> str:
        """The reason with both sizes; empty where the point fits."""
        try:
            asked = with_values(self._experiment, point)
            needed = estimate_memory(asked)
        except RaymetaError:
            return ""  # the trial itself will report the error
        limit = asked.training.memory_gb
        if needed <= limit * 1e9:
            return ""
        values = ", ".join(f"{key} {value}" for key, value in point.items())
        return (
            f"a meta-step with {values} would take {needed / 1e9:.3g} GB, more than "
            f"training.memory_gb {limit:g}"
        )
