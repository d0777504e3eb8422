"""raymeta without recovery: `python -m tests.cluster.no_recovery tune …`.

With it instead of raymeta (`RAYMETA_TEST_RECOVERY=off`), every test of a fault must fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

from ray import tune

from raymeta.cli import main
from raymeta.run_folder import Run
from raymeta.search import tuner
from raymeta.search.trial_log import LoggedTrials, logged_trials
from raymeta.search.watchdog import Watchdog
from raymeta.storage.outage import StorageWatch
from raymeta.trial import actor, workers


class Staying(actor.MetaTrial):
    """Stays on a node that will be taken away; this file is pickled by value."""

    def step(self) -> dict[str, object]:
        """Trains."""
        with patch.object(workers.WorkerGroup, "check_nodes", lambda _: None):
            return super().step()


def forget_earlier_sessions(read: Callable[[Run], LoggedTrials]) -> Callable[[Run], LoggedTrials]:
    """Reads no trials the first time, at the start of a search or of its resumption."""
    nothing = [LoggedTrials()]
    return lambda run: nothing.pop() if nothing else read(run)


if __name__ == "__main__":
    one_failure_ends_all = tune.FailureConfig(fail_fast=True)
    with (
        patch.object(tuner, "MetaTrial", Staying),
        patch.object(tuner, "out_of_memory_is_a_lost_actor", nullcontext),
        patch.object(tuner, "logged_trials", forget_earlier_sessions(logged_trials)),
        patch.object(StorageWatch, "outlast", lambda _, action: action()),
        patch.object(Watchdog, "_limit_s", lambda *_: math.inf),
        patch.object(tune, "FailureConfig", lambda **_: one_failure_ends_all),
    ):
        main()
