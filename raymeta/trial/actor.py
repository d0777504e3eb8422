"""The trial actor: a Tune trainable that owns a group of data-parallel workers.

Tune reuses the actor for the next trial (`reuse_actors`).  A trial of one worker trains in the
actor itself and needs no process group.

Tune hands the actor out, and the watchdog's clock starts, only once its class is imported and
`setup` has returned.  So whatever may hang waits for the first step: imports of torch, devices,
workers, data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray import tune

from raymeta.errors import RunError, TrainingError
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.storage.atomic import write_file
from raymeta.storage.outage import StorageWatch
from raymeta.storage.paths import path_at
from raymeta.storage.tune import usable_checkpoint

if TYPE_CHECKING:
    from raymeta.trial.workers import WorkerGroup

# Keys of a configuration beside the trial's own values:
CONTINUED = "continued"  # the trial of an earlier session to continue, and its checkpoints
RUN_FOLDER = "run_folder"


_NOT_SEARCHED = {"experiment", CONTINUED, RUN_FOLDER}


def own_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Extracts the trial's searched values from its configuration."""
    return {key: value for key, value in config.items() if key not in _NOT_SEARCHED}


class MetaTrial(tune.Trainable):
    """Meta-trains one configuration: the experiment with the trial's values in it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Keeps the configuration; nothing starts yet.

        Args:
            config: the whole experiment under `experiment`, the run's folder under `run_folder` if
                there is one, and beside them the trial's own values by dotted key.
        """
        self._group: WorkerGroup | None = None
        self._watch: StorageWatch | None = None
        self._to_start: dict[str, Any] | None = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Switches to another trial and keeps the workers."""
        self._to_start = new_config
        return True

    def _workers(self) -> WorkerGroup:
        """The workers, which have started this trial's configuration."""
        if self._to_start is not None:
            self._start(self._to_start)
            self._to_start = None
        assert self._group is not None
        return self._group

    def _start(self, config: dict[str, Any]) -> None:
        from raymeta.trial.workers import WorkerGroup

        base = Experiment.model_validate(config["experiment"])
        self._experiment = with_values(base, own_values(config))
        if self._group is None:
            folder = config.get(RUN_FOLDER)
            self._watch = folder and StorageWatch(path_at(folder), "experiment.yaml")
            self._group = WorkerGroup(base.resources)
        self._group.call("start", self._experiment.model_dump())
        self._note = ""  # sent with the next result
        if CONTINUED in config:
            self._continue_from(self._group, config[CONTINUED]["checkpoints"])

    def _continue_from(self, workers: WorkerGroup, files: Sequence[str]) -> None:
        """Continues from the first undamaged checkpoint file, or from step 0 without one."""
        from raymeta.training.checkpoint import parse

        damage = ""
        for file in files:
            try:
                state = path_at(file).read_bytes()
                parse(state, file)
            except (OSError, RunError) as error:
                damage = damage or str(error)
                continue
            workers.call("restore", state)
            self._note = damage and f"{damage}; the trial goes on from {file}"
            return
        self._note = damage and f"{damage}; the trial begins anew"

    def step(self) -> dict[str, Any]:
        """Trains up to the next validation.

        A trial with a TrainingError ends with the metric NaN: a restart from its last checkpoint
        would end the same way.  `outcome` and `training_error` tell how and why.
        """
        workers = self._workers()
        training = self._experiment.training
        workers.check_nodes()  # the last checkpoint is written, so nothing is lost
        try:
            result = dict(workers.call("train", training.eval_every))
        except (TrainingError, ray.exceptions.RayTaskError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if not isinstance(cause, TrainingError):
                raise
            logging.getLogger(__name__).warning("%s", cause)
            return {
                self._experiment.metric: math.nan,
                "outcome": cause.outcome,
                "training_error": str(cause),
                tune.result.DONE: True,
            }
        if self._note:
            result["note"], self._note = self._note, ""
        result[tune.result.DONE] = result[STEP_METRIC] >= training.meta_steps
        return result

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Saves a checkpoint; waits out storage outages, which are not failures."""
        save = partial(super().save, checkpoint_dir)
        return save() if self._watch is None else self._watch.outlast(save)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the trainer's state, which all ranks share."""
        from raymeta.training.checkpoint import CHECKPOINT_NAME

        state = cast("bytes", self._workers().call_first("serialize"))
        write_file(Path(checkpoint_dir) / CHECKPOINT_NAME, state)

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Continues from a checkpoint on every rank."""
        from raymeta.training.checkpoint import CHECKPOINT_NAME

        path = Path(cast("str", checkpoint)) / CHECKPOINT_NAME
        self._workers().call("restore", path.read_bytes())

    def restore(self, checkpoint_path: Any) -> None:
        """Continues from the checkpoint that Tune knows, or from the nearest usable one.

        Tune saves its state once a second and keeps two checkpoints a trial: the one it knows may
        be gone.
        """
        from raymeta.training.checkpoint import CHECKPOINT_NAME, parse

        known = checkpoint_path.checkpoint
        damage: list[str] = []

        def is_whole(state: bytes) -> bool:
            try:
                parse(state, "a checkpoint")
            except RunError as error:
                damage.append(str(error))
                return False
            return True

        used = usable_checkpoint(known.filesystem, known.path, CHECKPOINT_NAME, is_whole)
        checkpoint_path.checkpoint = tune.Checkpoint(used, known.filesystem)
        super().restore(checkpoint_path)
        if damage:
            self._note = f"{damage[0]}; the trial goes on from {used}"

    def cleanup(self) -> None:
        """Kills the workers when the actor ends."""
        if self._group is not None:
            self._group.close()
