"""Ray Tune's callbacks that tell trials to TensorBoard, MLflow and Weights & Biases.

A tracker never decides about a search: one that fails is left out from then on, and that is said
once.  None keeps a secret in an attribute, since Tune pickles callbacks into the run folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.result import AUTO_RESULT_KEYS, TIMESTEPS_TOTAL, TRAINING_ITERATION

from raymeta.errors import ExperimentError
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.run_folder import Run
from raymeta.search.progress import own_id
from raymeta.storage.mlflow import mlflow_experiment, mlflow_uri
from raymeta.storage.paths import RemotePath
from raymeta.trial.actor import own_values

_EXTRA = "pip install 'raymeta[trackers]'"
_UPLOAD_S = 120  # that the end of a search waits for what is still on its way
_LONGEST = 300  # characters of an error
Say = Callable[[str], object]


def check_trackers(experiment: Experiment) -> None:
    """Refuses trackers whose packages are not installed.

    Raises:
        ExperimentError: naming the key, the package and the remedy.
    """
    for key, package in experiment.trackers.needed.items():
        if find_spec(package) is None:
            raise ExperimentError(
                f"trackers.{key} needs the package {package}, which is not installed: {_EXTRA}, or "
                "leave the key out"
            )


def loggers(experiment: Experiment, run: Run, say: Say) -> list[tune.Callback]:
    """Tune's own loggers of results as CSV and JSON, and the trackers that the experiment names."""
    chosen, makers = experiment.trackers, dict[str, Callable[[], tune.Callback]]()
    if chosen.tensorboard:
        makers["tensorboard"] = TBXLoggerCallback
    if chosen.mlflow is not None:
        makers["mlflow"] = lambda: _mlflow_callback(experiment, run)
    if chosen.wandb is not None:
        makers["wandb"] = lambda: _wandb_callback(experiment, run)
    trackers = [Tracker(key, make, experiment, say) for key, make in makers.items()]
    return [CSVLoggerCallback(), JsonLoggerCallback(), *trackers]


@contextmanager
def own_loggers_alone() -> Iterator[None]:
    """Tune adds no logger of its own meanwhile, whose event files nobody has asked for."""
    name = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _ShownTrial:
    """A trial as trackers see it: its searched values in place of the whole configuration."""

    def __init__(self, trial: Trial, values: Mapping[str, Any]) -> None:
        self._trial = trial
        self.config = self.evaluated_params = dict(values)

    def __str__(self) -> str:
        return own_id(self._trial)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


class Tracker(tune.Callback):
    """Passes the events of trials on to a callback of Tune's, until that fails.

    Args:
        key: of the experiment's `trackers`.
        make: makes the callback.
        experiment: whose searched keys every trial shows, those of other learners included:
            TensorBoard's table needs the same keys in every trial.
        say: receives why a tracker is left out.
    """

    def __init__(
        self, key: str, make: Callable[[], tune.Callback], experiment: Experiment, say: Say
    ) -> None:
        self._key, self._say = key, say
        self._defaults = {name: experiment.value(name) for name in experiment.search.space}
        self._shown: dict[str, _ShownTrial] = {}
        self._make = make
        self._inner: tune.Callback | None = None
        if key == "tensorboard":  # Tune copies such files to the run's storage
            self._SAVED_FILE_TEMPLATES = TBXLoggerCallback._SAVED_FILE_TEMPLATES  # noqa: SLF001

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the callback: a resumed search makes its own."""
        return {"_key": self._key, "_inner": None, "_shown": {}}

    def setup(self, **info: Any) -> None:
        """Makes the callback: an experiment of MLflow's may be made, a server be asked."""

        def begin() -> None:
            inner = self._make()
            inner.setup(**info)
            self._inner = inner

        self._tried(begin)

    def on_trial_start(self, *, trial: Trial, **info: Any) -> None:
        """Tells the values of a trial."""
        self._pass_on("on_trial_start", trial, **info)

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """Tells the finite numbers of a result, by meta-step."""
        step = result.get(STEP_METRIC)
        if step is not None:
            numbers = {
                name: value
                for name, value in result.items()
                if isinstance(value, int | float)
                and not isinstance(value, bool)
                and name not in AUTO_RESULT_KEYS
                and math.isfinite(value)
            }
            told = {**numbers, TIMESTEPS_TOTAL: step, TRAINING_ITERATION: step}
            self._pass_on("on_trial_result", trial, result=told, **info)

    def on_trial_complete(self, *, trial: Trial, **info: Any) -> None:
        """Tells an end."""
        self._pass_on("on_trial_complete", trial, **info)

    def on_trial_error(self, *, trial: Trial, **info: Any) -> None:
        """Tells a failure."""
        self._pass_on("on_trial_error", trial, **info)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Waits for what is still on its way."""
        inner = self._inner
        if inner is not None:
            self._tried(lambda: inner.on_experiment_end(trials, **info))

    def _pass_on(self, event: str, trial: Trial, **info: Any) -> None:
        inner = self._inner
        if inner is None:
            return
        shown = self._shown.get(trial.trial_id)
        if shown is None:
            shown = _ShownTrial(trial, {**self._defaults, **own_values(trial.config)})
            self._shown[trial.trial_id] = shown
        self._tried(lambda: getattr(inner, event)(trial=shown, **info))

    def _tried(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  (a tracker must not end a run, however it fails; it is said)
            self._inner = None
            self._say(left_out(f"trackers.{self._key}", error))


def left_out(key: str, error: Exception) -> str:
    """Says that a tracker failed; without values of the environment, which may be secret."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else 'no reason is known'}"
    for name, value in os.environ.items():
        if name.startswith(("WANDB_", "MLFLOW_")) and len(value) > 3:
            text = text.replace(value, f"${name}")
    return f"{key} failed and is left out: {text[:_LONGEST]}; the run goes on without it"


def _mlflow_callback(experiment: Experiment, run: Run) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: PLC0415  (an extra)

    assert experiment.trackers.mlflow is not None
    uri = mlflow_uri(experiment.trackers.mlflow)
    mlflow_experiment(uri, experiment.name)
    tags = {"run": run.path.name, "part": run.part}
    return MLflowLoggerCallback(uri, experiment_name=experiment.name, tags=tags)


def _wandb_callback(experiment: Experiment, run: Run) -> tune.Callback:
    from raymeta.search.wandb_callback import WandbCallback  # noqa: PLC0415  (an extra)

    chosen = experiment.trackers.wandb
    assert chosen is not None
    here = Path.cwd() if isinstance(run.path, RemotePath) else run.path
    return WandbCallback(
        project=chosen.project,
        group=run.path.name,
        mode=chosen.mode,
        dir=str(here),
        tags=[run.part],
        upload_timeout=_UPLOAD_S,
    )
