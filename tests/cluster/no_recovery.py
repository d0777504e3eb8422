"""raymeta that gives up at the first fault: `python -m tests.cluster.no_recovery tune …`.

With it instead of raymeta (`RAYMETA_TEST_RECOVERY=off`), every test of a fault must fail.
"""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

from ray import tune

from raymeta import trial
from raymeta.cli import main
from raymeta.search import tuner


class Staying(trial.MetaTrial):
    """Stays on a node that is to go; pickled by value, as all of this file is."""

    def step(self) -> dict[str, object]:
        """Trains."""
        with patch.object(trial.WorkerGroup, "check_nodes", lambda _: None):
            return super().step()


if __name__ == "__main__":
    one_failure_ends_all = tune.FailureConfig(fail_fast=True)
    with (
        patch.object(tuner, "MetaTrial", Staying),
        patch.object(tuner, "_killed_for_memory_is_lost", nullcontext),
        patch.object(tune, "FailureConfig", lambda **_: one_failure_ends_all),
    ):
        main()
