"""Ray Tune's callback for Weights & Biases, without its ways of leaving the key in files.

Tune's own hands the key to Ray as an environment variable of the loggers' processes, which Ray
writes to its logs, and asks for a key that runs offline do not need.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor
from ray.air.util.node import _force_on_current_node
from ray.tune.experiment import Trial

_KEY = "WANDB_API_KEY"


class _Logger(_WandbLoggingActor):
    """The process of a trial's run: its key comes as an argument, which Ray does not log."""

    def run(self) -> None:
        """Logs what comes in, to the end of the trial."""
        key = self.kwargs.pop("api_key", None)
        if key:
            os.environ[_KEY] = key
        os.environ["WANDB_SILENT"] = "true"
        super().run()


class WandbCallback(WandbLoggerCallback):
    """Tells trials to Weights & Biases; see `WandbLoggerCallback` for the arguments."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Looks for the key, unless runs stay on this machine."""
        if self.kwargs.get("mode") != "offline":
            super().setup(*args, **kwargs)
        self._remote_logger_class = ray.remote(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, **_force_on_current_node()
        )(_Logger)

    def _start_logging_actor(self, trial: Trial, exclude_results: list[str], **kwargs: Any) -> None:
        key = os.environ.get(_KEY) if kwargs.get("mode") != "offline" else None
        super()._start_logging_actor(trial, exclude_results, api_key=key, **kwargs)

    def _cleanup_logging_actor(self, trial: Trial) -> None:
        future = self._trial_logging_futures[trial]
        is_over = bool(ray.wait([future], timeout=0)[0])
        super()._cleanup_logging_actor(trial)
        if is_over:
            ray.get(future)  # raises what the logger met with, which nobody else would say
