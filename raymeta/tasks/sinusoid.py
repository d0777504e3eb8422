"""Regression of sine waves from a few points (Finn et al. 2017, section 5.1).

Amplitudes are uniform in [0.1, 5], phases in [0, π], inputs in [-5, 5].  A point is a sequence of
one time step, on which a recurrent layer acts as a fully connected one: two layers of 40 units are
the paper's network with tanh in place of ReLU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymeta.episodes import Episode, InputSpec, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.settings import SinusoidTasks


def load_sinusoid(settings: SinusoidTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution; waves of different splits differ with probability one.

    The sealed deal has waves of its own in every split.
    """
    return TaskDistribution(
        name="sinusoid",
        input_spec=InputSpec("regression", 1, num_features=1),
        seed=seed if not sealed else _sealed_seed(seed),
        sample_episode=_Sampler(settings.num_shots, settings.num_queries),
        fixed_labels=True,
        note="meta-test: waves drawn from the paper's ranges; scores are mean squared errors",
        fingerprint="sinusoid: amplitude 0.1-5, phase 0-pi, input -5-5" + ", sealed" * sealed,
    )


def sinusoid_inputs(settings: SinusoidTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is a point on a wave: one time step of one channel."""
    del settings, facts
    return Inputs(
        channels=("x",),
        prepare=_prepared,
        sequence=None,
        target="y",
        numeric_target=True,
        stream_steps=1,
        scaling=(np.zeros(1), np.ones(1)),
    )


def _prepared(examples: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    for name, x in zip(names, examples, strict=True):
        if len(x) != 1:
            raise DataError(f"{name}: must be one point, [1, 1], but has {len(x)} time steps")
    return [x.astype(np.float32) for x in examples]


def _sealed_seed(seed: int) -> int:
    digest = hashlib.blake2b(f"sealed-{seed}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class _Sampler:
    """Draws a wave and points on it."""

    num_shots: int
    num_queries: int

    def __call__(self, split: Split, rng: np.random.Generator) -> Episode:
        """Draws one episode; a split has random streams of its own."""
        del split
        num_shots, num_points = self.num_shots, self.num_shots + self.num_queries
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        x = rng.uniform(-5.0, 5.0, (num_points, 1))
        y = (amplitude * np.sin(x - phase)).astype(np.float32)
        inputs = x.astype(np.float32)[:, None, :]
        ids = np.arange(num_points)
        return Episode(
            support_x=inputs[:num_shots],
            support_y=y[:num_shots],
            query_x=inputs[num_shots:],
            query_y=y[num_shots:],
            support_ids=ids[:num_shots],
            query_ids=ids[num_shots:],
            # The wave is the unit; its amplitude's bits tell it from all others.
            query_units={"wave": np.full(self.num_queries, np.float64(amplitude).view(np.int64))},
        )
