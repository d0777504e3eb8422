"""The errors raymeta raises for what a user, a file or a machine got wrong.

Each message is complete by itself: which key or file, the rule, the value found, what to do.  The
command line prints the message alone; a traceback is kept for defects of raymeta.
"""

from __future__ import annotations


class RaymetaError(Exception):
    """Base of every error a user can act on."""


class ExperimentError(RaymetaError, ValueError):
    """An experiment file or an override breaks a rule of the schema."""


class DataError(RaymetaError, ValueError):
    """A data file is missing, empty or broken, or cannot serve the episodes asked of it."""


class RunError(RaymetaError, RuntimeError):
    """A run folder cannot be created, read, written or resumed."""


class ResourceError(RaymetaError, RuntimeError):
    """The machine or cluster cannot give what the experiment asks for."""


class ClusterError(RaymetaError, ValueError):
    """A cluster file breaks a rule, or the cluster cannot be reached or will not take a job."""


class TrainingError(RaymetaError, ArithmeticError):
    """Meta-training cannot go on: its gradients are no longer finite."""


class SearchError(RaymetaError, RuntimeError):
    """A search ended without a trial that can be used."""
