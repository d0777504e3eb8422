"""Keeps the score of every meta-test query in RUN/scores.safetensors.

Paired comparisons need them: between a network and a control, and between two runs whose meta-tests
had the same episodes.

Shape legend: R trainings, E episodes, M queries of an episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from raymeta.episodes import Episode, TaskDistribution
from raymeta.errors import RunError
from raymeta.run_folder import Run
from raymeta.storage.atomic import write_file
from raymeta.storage.bounds import parse_tensors
from raymeta.storage.paths import read_regular
from raymeta.uncertainty import Units

SCORES_FILE = "scores.safetensors"
MAX_BYTES = 256 << 20  # of the file: 600 episodes of 15 queries take less than one MiB


@dataclass(frozen=True)
class DrawnQueries:
    """The episodes of a meta-test: `units` are int64 `[E, M]` by axis, `digests` int64 `[E]`."""

    units: dict[str, np.ndarray]
    digests: np.ndarray

    @classmethod
    def of(cls, tasks: TaskDistribution, num_episodes: int) -> DrawnQueries:
        """Describes the first meta-test episodes."""
        drawn = [tasks.episode("test", index) for index in range(num_episodes)]
        axes = sorted(drawn[0].query_units or {})
        units = {
            axis: np.stack([np.asarray((e.query_units or {})[axis]) for e in drawn]).astype("int64")
            for axis in axes
        }
        return cls(units, np.array([_digest(episode) for episode in drawn], dtype="int64"))


def _digest(episode: Episode) -> int:
    """Computes a digest of an episode's support and query examples and their targets."""
    digest = hashlib.sha256()
    arrays = (episode.support_ids, episode.query_ids, episode.support_y, episode.query_y)
    for array in arrays:
        if array is not None:
            # Targets may be of another precision in another run.
            kind = "float32" if np.asarray(array).dtype.kind == "f" else "int64"
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        digest.update(b"|")
    return int.from_bytes(digest.digest()[:8], "big", signed=True)


@dataclass(frozen=True)
class QueryScores:
    """The scores, float64: `own` `[R, E, M]` of the run's trainings, `controls` `[E, M]` each.

    `unadapted` `[E, M]` is the run's network before its first adaptation step, the mean over its
    trainings.  `queries` says which episodes they were.
    """

    own: np.ndarray
    unadapted: np.ndarray
    controls: dict[str, np.ndarray]
    queries: DrawnQueries

    @property
    def units(self) -> Units:
        """The units of the queries."""
        _, episodes, queries = self.own.shape
        return Units(self.queries.units, episodes, queries)

    def write(self, run: Run) -> None:
        """Writes the scores to the run folder.

        Raises:
            RunError: they cannot be written.
        """
        tensors = {"own": self.own, "unadapted": self.unadapted, "episodes": self.queries.digests}
        tensors |= {f"control {name}": values for name, values in self.controls.items()}
        tensors |= {f"unit {axis}": ids for axis, ids in self.queries.units.items()}
        content = save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
        write_file(run.path / SCORES_FILE, content)

    @classmethod
    def read(cls, run: Run) -> QueryScores | None:
        """Reads what `write` wrote; None for a run whose meta-test kept no scores.

        Raises:
            RunError: the file is damaged.
        """
        path = run.path / SCORES_FILE
        try:
            content = read_regular(path, most=MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            return _scores(parse_tensors(content))
        except (KeyError, ValueError) as error:
            raise RunError(f"{path}: is damaged ({error}); {run.made_anew}") from error


def _scores(tensors: Mapping[str, np.ndarray]) -> QueryScores:
    own, unadapted, digests = tensors["own"], tensors["unadapted"], tensors["episodes"]
    if own.ndim != 3 or not own.size:
        raise ValueError(f"own has the shape {list(own.shape)}")

    def named(prefix: str, dtype: str) -> dict[str, np.ndarray]:
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for name, values in found.items():
            _check(f"{prefix}{name}", values, own.shape[1:], dtype)
        return found

    _check("own", own, own.shape, "float64")
    _check("unadapted", unadapted, own.shape[1:], "float64")
    _check("episodes", digests, own.shape[1:2], "int64")
    queries = DrawnQueries(named("unit ", "int64"), digests)
    return QueryScores(own, unadapted, named("control ", "float64"), queries)


def _check(name: str, values: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(f"{name} is {values.dtype} {list(values.shape)}, not {dtype} {shape}")
