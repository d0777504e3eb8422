"""Regression of sine waves from a few points (Finn et al. 2017, section 5.1).

Amplitudes are uniform in [0.1, 5], phases in [0, π], inputs in [-5, 5].  A point is a sequence of
one time step, on which a recurrent layer is a fully connected one: two layers of 40 units are the
paper's network with tanh in place of ReLU.
"""

from __future__ import annotations

import numpy as np

from raymeta.tasks.episodes import Episode, InputSpec, Split, TaskDistribution


def load_sinusoid(*, num_shots: int, num_queries: int, seed: int) -> TaskDistribution:
    """The task distribution; waves of different splits differ with probability one."""

    def sample(split: Split, rng: np.random.Generator) -> Episode:
        del split  # a split has random streams of its own
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        x = rng.uniform(-5.0, 5.0, (num_shots + num_queries, 1))
        y = (amplitude * np.sin(x - phase)).astype(np.float32)
        inputs = x.astype(np.float32)[:, None, :]
        ids = np.arange(num_shots + num_queries)
        return Episode(
            support_x=inputs[:num_shots],
            support_y=y[:num_shots],
            query_x=inputs[num_shots:],
            query_y=y[num_shots:],
            support_ids=ids[:num_shots],
            query_ids=ids[num_shots:],
        )

    return TaskDistribution(
        name="sinusoid",
        input_spec=InputSpec("regression", 1, num_features=1),
        seed=seed,
        sample_episode=sample,
        fixed_labels=True,
        note="meta-test: waves drawn from the paper's ranges; scores are mean squared errors",
    )
