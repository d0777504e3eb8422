"""The errors that raymeta raises for mistakes of users, files and machines.

Each message is complete by itself: which key or file, the rule, the value found, what to do.  The
command line prints the message alone; a traceback is kept for defects of raymeta.  Messages quote
files that others wrote, so each is bounded and holds no control characters.
"""

from __future__ import annotations

import reprlib

REPEAT_S = 5.0  # in which a signal is the same one, sent to each process of a tree
MAX_MESSAGE = 1500  # characters
_MAX_LINE = 600  # of a message that is too long
_MAX_VALUE = 200


class RaymetaError(Exception):
    """Base of every error a user can act on.

    Args:
        message: shown without control characters, cut to `MAX_MESSAGE`.
    """

    exit_code = 1  # of the command line

    def __init__(self, message: str = "") -> None:
        super().__init__(_bounded(message))


class EndedBySignalError(RaymetaError, RuntimeError):
    """A signal (SIGTERM, SIGHUP) ended the work; `exit_code` is 128 + its number, as in shells."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class ExperimentError(RaymetaError, ValueError):
    """An experiment file or an override breaks a rule of the schema."""


class DataError(RaymetaError, ValueError):
    """A data file is missing, empty or broken, or cannot serve the episodes asked of it."""


class DataWarning(UserWarning):
    """Data were accepted, but some were dropped or changed."""


class RunError(RaymetaError, RuntimeError):
    """A run folder cannot be created, read, written or resumed."""


class ResourceError(RaymetaError, RuntimeError):
    """The machine or cluster cannot give what the experiment asks for."""


class ClusterError(RaymetaError, ValueError):
    """A cluster file breaks a rule, or the cluster cannot be reached or will not take a job."""


class TrainingError(RaymetaError, ArithmeticError):
    """Meta-training cannot go on: its gradients are no longer finite.

    `outcome` is the state in which the trial ends, as progress and results name it.
    """

    outcome = "diverged"


class AdaptationError(TrainingError):
    """Meta-training is finite, but validation's further adaptation steps are not."""

    outcome = "overflowed"


class SearchError(RaymetaError, RuntimeError):
    """A search ended without a trial that can be used."""


def shown(value: object) -> str:
    """Quotes a value for a message: its `repr`, shortened in the middle."""
    return _shortened(_VALUES.repr(value), _MAX_VALUE)


class _Values(reprlib.Repr):
    """`repr` of values of any size or depth, in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 5
        self.maxdict = self.maxlist = self.maxtuple = 20
        self.maxstring = self.maxother = 2 * _MAX_VALUE

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        """Prints an integer of any size; Python refuses more than 4,300 digits."""
        return repr(x) if x.bit_length() <= 256 else f"a number of {x.bit_length()} bits"

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """A mapping in its own order."""
        if level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in list(x.items())[: self.maxdict]
        ]
        return "{" + ", ".join([*pairs, *["..."] * (len(x) > self.maxdict)]) + "}"


_VALUES = _Values()


def _shortened(text: str, limit: int) -> str:
    """Cuts the middle out of a text longer than `limit`."""
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[len(text) - half :]}"


def _bounded(message: str) -> str:
    """Cuts a message to `MAX_MESSAGE` characters and removes control characters."""
    text = _shortened(message, 20 * MAX_MESSAGE)
    text = "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )
    if len(text) <= MAX_MESSAGE:
        return text
    lines = [_shortened(line, _MAX_LINE) for line in text.split("\n")]
    kept = [lines[0]]
    size = len(lines[0])
    for line in lines[1:]:
        size += 1 + len(line)
        if size > MAX_MESSAGE - 40:  # room for the last line
            break
        kept.append(line)
    left_out = len(lines) - len(kept)
    return "\n".join([*kept, *[f"... and {left_out} more lines"] * (left_out > 0)])
