"""A Tune run whose trials only wait: what holds up Tune's loop, and how long slots are free.

A trial's own process starts at once: it imports Ray and no torch, whose seconds would be those of
the trial and not of the search.
"""

from __future__ import annotations

import math
import tempfile
import time
from typing import Any

from ray import tune

from raymeta.search import AxSearcher

CONCURRENT, TRIAL_SECONDS, REPORT_SECONDS = 8, 10.0, 0.1


class Sleeper(tune.Trainable):
    """Reports a value of a smooth function every tenth of a second."""

    def setup(self, config: dict[str, Any]) -> None:
        """Evaluates it once."""
        self._value = -sum((x - 0.3) ** 2 + 0.1 * math.cos(9 * x) for x in config.values())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes over another trial."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """A tenth of a second."""
        time.sleep(REPORT_SECONDS)
        done = self.iteration + 1 >= TRIAL_SECONDS / REPORT_SECONDS
        return {"value": self._value, "done": done}


class Clock(tune.Callback):
    """Measures the steps of Tune's loop, and when trials start and end."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.starts: list[float] = []
        self.events: list[tuple[float, int]] = []
        self._last = 0.0

    def on_step_begin(self, **_: Any) -> None:
        """A step begins."""
        self._last = time.monotonic()

    def on_step_end(self, **_: Any) -> None:
        """A step ends; without a running trial nothing is held up, and Tune waits by itself."""
        if sum(change for _, change in self.events) > 0:
            self.steps.append(time.monotonic() - self._last)

    def on_trial_start(self, **_: Any) -> None:
        """A slot is busy."""
        self.starts.append(time.monotonic())
        self.events.append((time.monotonic(), 1))

    def on_trial_complete(self, **_: Any) -> None:
        """A slot is free."""
        self.events.append((time.monotonic(), -1))

    def busy_share(self) -> float:
        """The busy share of all slots, from the eighth start to the last."""
        begin, end = self.starts[CONCURRENT - 1], self.starts[-1]
        busy, running, at = 0.0, 0, begin
        for when, change in sorted(self.events):
            if when > begin:
                busy += running * (min(when, end) - at)
                at = min(when, end)
            running += change
        return busy / (CONCURRENT * (end - begin))


class WaitingSearcher(AxSearcher):
    """Waits for Ax on Tune's loop."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A point; None only when no slot is free."""
        while (point := super().suggest(trial_id)) is None:
            if sum(record.status == "running" for record in self.records.values()) >= CONCURRENT:
                return None
            time.sleep(0.01)
        return point


def run_tune(searcher: AxSearcher, num_trials: int) -> Clock:
    """The Tune run that the claims are about."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            Sleeper,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=num_trials,
                max_concurrent_trials=CONCURRENT,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[clock],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    return clock
