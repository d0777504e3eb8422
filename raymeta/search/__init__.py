"""Bayesian search: Ax/BoTorch as a Ray Tune searcher, and the Tuner that runs raymeta's trials."""

from __future__ import annotations

from raymeta.experiment.parameter import Parameter
from raymeta.search.saved import is_saved
from raymeta.search.searcher import AxSearcher
from raymeta.search.space import Space, search_space

__all__ = ["AxSearcher", "Parameter", "Space", "is_saved", "search_space"]
