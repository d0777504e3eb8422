"""The trial actor: a Tune trainable that owns a group of data-parallel workers.

The workers live in the bundles of the trial's placement group and keep their processes, devices
and process group from one trial to the next (`reuse_actors`): a later trial starts at once.  A
trial of one worker trains in the trial actor itself and needs no process group.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raymeta.distributed import Group, join_group
from raymeta.errors import TrainingError
from raymeta.experiment import Experiment, Resources
from raymeta.experiment_file import with_values
from raymeta.files import write_file
from raymeta.native import keep_freed_memory
from raymeta.storage import first_kept
from raymeta.training import CHECKPOINT_NAME, Trainer, build_trainer

STEP_METRIC = "meta_steps"


class NodeLeavingError(ray.exceptions.RayActorError):
    """A node of the trial is about to be taken away, as a spot machine is: the trial moves on.

    Tune starts it again from its last checkpoint, and counts no failure, as for an actor that was
    lost with its node.
    """

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)


class Worker:
    """One rank: joins the group once, then trains one configuration after another."""

    def __init__(self, num_threads: int, use_gpu: bool) -> None:
        torch.set_num_threads(num_threads)
        keep_freed_memory()
        self._device = torch.device("cuda:0" if use_gpu else "cpu")  # Ray shows a worker its own
        self._group = Group()
        self._trainer: Trainer | None = None

    def node(self) -> str:
        """The id of the node that it runs on."""
        return _node_id()

    def free_address(self) -> str:
        """Where rank 0 will listen: `tcp://HOST:PORT`."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def join(self, rank: int, world_size: int, address: str, backend: str) -> None:
        """Joins the trial's process group."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._group = join_group(rank, world_size, address, backend)

    def start(self, experiment: Mapping[str, Any]) -> None:
        """Begins a configuration at step 0; nothing of the one before remains."""
        self._trainer = build_trainer(
            Experiment.model_validate(experiment), self._group, self._device
        )

    def train(self, num_steps: int) -> dict[str, float]:
        """Trains and validates; the metrics, with the step reached."""
        trainer = self._training()
        metrics = trainer.train(num_steps)
        began = time.perf_counter()
        scores = trainer.validate()
        spent = (time.perf_counter() - began) * self._group.world_size
        return {
            STEP_METRIC: trainer.step,
            **metrics,
            **scores,
            # Of a worker for an episode, adapted among others in one batch, as in use.
            "adaptation_seconds": spent / trainer.recipe.outer.val_episodes,
            "num_parameters": float(sum(v.numel() for v in trainer.meta_params.values())),
        }

    def serialize(self) -> bytes:
        """The trainer's state."""
        return self._training().serialize()

    def restore(self, state: bytes) -> None:
        """Goes on from what `serialize` gave."""
        self._training().restore(state)

    def _training(self) -> Trainer:
        assert self._trainer is not None, "start() comes first"
        return self._trainer


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


class WorkerGroup:
    """The workers of one trial actor, called together."""

    def __init__(self, resources: Resources) -> None:
        use_gpu = resources.gpus_per_worker > 0
        num_threads = max(1, int(resources.cpus_per_worker))
        self._local: Worker | None = None
        self._actors: list[Any] = []
        self._nodes = {_node_id()}
        if resources.num_workers == 1:
            self._local = Worker(num_threads, use_gpu)
            return
        placement_group = ray.util.get_current_placement_group()
        actor_class = ray.remote(Worker)
        for rank in range(resources.num_workers):
            options: dict[str, Any] = {
                "num_cpus": resources.cpus_per_worker,
                "num_gpus": resources.gpus_per_worker,
            }
            if placement_group is not None:
                # Tune leaves an empty first bundle out, so that worker bundles count from 0.
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group, placement_group_bundle_index=rank
                )
            self._actors.append(actor_class.options(**options).remote(num_threads, use_gpu))
        # NCCL refuses two ranks on one GPU.
        backend = "nccl" if resources.gpus_per_worker >= 1 else "gloo"
        self._nodes |= set(ray.get([actor.node.remote() for actor in self._actors]))
        address = ray.get(self._actors[0].free_address.remote())
        self._wait(
            [
                actor.join.remote(rank, len(self._actors), address, backend)
                for rank, actor in enumerate(self._actors)
            ]
        )

    def check_nodes(self) -> None:
        """Sees to it that no time is spent on a node that is going.

        Raises:
            NodeLeavingError: Ray drains one of the nodes, after a notice from the provider.
        """
        draining = ray._private.state.state.get_draining_nodes()  # noqa: SLF001  (as Ray Train does)
        leaving = self._nodes & draining.keys()
        if leaving:
            raise NodeLeavingError(f"node {min(leaving)} is being drained; the trial moves on")

    def call(self, method: str, *args: Any) -> Any:
        """Calls every rank; rank 0's answer.

        Raises:
            RayActorError: a worker is gone.  The others may hang in a collective that will never
                end, so all of them are ended; the trial then starts anew, with new ones.
        """
        if self._local is not None:
            return getattr(self._local, method)(*args)
        return self._wait([getattr(actor, method).remote(*args) for actor in self._actors])

    def call_first(self, method: str, *args: Any) -> Any:
        """Calls rank 0 alone, for what needs no collective."""
        if self._local is not None:
            return getattr(self._local, method)(*args)
        return ray.get(getattr(self._actors[0], method).remote(*args))

    def close(self) -> None:
        """Ends the workers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._local = [], None

    def _wait(self, answers: list[Any]) -> Any:
        waiting = list(answers)
        try:
            while waiting:
                # Whichever is first: a dead rank must be seen while the others still wait for it.
                (done,), waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        except ray.exceptions.RayError as error:
            if isinstance(getattr(error, "cause", None), TrainingError):
                # All ranks give up at the same step, and are ready for another trial.
                if waiting:
                    ray.wait(waiting, num_returns=len(waiting))
                raise
            self.close()
            raise
        return ray.get(answers[0])


class MetaTrial(tune.Trainable):
    """Meta-trains one configuration: the experiment with the trial's values in it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the workers.

        Args:
            config: the whole experiment under `experiment`, and beside it the trial's own values by
                dotted key.
        """
        base = Experiment.model_validate(config["experiment"])
        self._workers = WorkerGroup(base.resources)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes over another trial with the same workers."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        values = {key: value for key, value in config.items() if key != "experiment"}
        self._experiment = with_values(Experiment.model_validate(config["experiment"]), values)
        self._workers.call("start", self._experiment.model_dump())

    def step(self) -> dict[str, Any]:
        """Trains up to the next validation.

        A trial whose gradients are no longer finite ends here, its metric NaN: to run it again
        from the last checkpoint would end the same way.
        """
        training = self._experiment.training
        self._workers.check_nodes()  # the last step's checkpoint is written: nothing is lost
        try:
            result = dict(self._workers.call("train", training.eval_every))
        except (TrainingError, ray.exceptions.RayTaskError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if not isinstance(cause, TrainingError):
                raise
            logging.getLogger(__name__).warning("%s", cause)
            return {
                self._experiment.metric: math.nan,
                "diverged": str(cause),
                tune.result.DONE: True,
            }
        result[tune.result.DONE] = result[STEP_METRIC] >= training.meta_steps
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the trainer's state; all ranks hold the same."""
        state = cast("bytes", self._workers.call_first("serialize"))
        write_file(Path(checkpoint_dir) / CHECKPOINT_NAME, state)

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Goes on from a checkpoint, every rank alike."""
        path = Path(cast("str", checkpoint)) / CHECKPOINT_NAME
        self._workers.call("restore", path.read_bytes())

    def restore(self, checkpoint_path: Any) -> None:
        """Goes on from the checkpoint that Tune knows, or the next later one.

        Tune saves what it knows once a second and keeps two checkpoints: of a trial that makes many
        a second, the one that it knew when it was killed may be gone.
        """
        known = checkpoint_path.checkpoint
        kept = first_kept(known.filesystem, known.path, CHECKPOINT_NAME)
        checkpoint_path.checkpoint = tune.Checkpoint(kept, known.filesystem)
        super().restore(checkpoint_path)

    def cleanup(self) -> None:
        """Ends the workers with the actor."""
        self._workers.close()
