"""The data-parallel workers of a trial.

The workers live in the bundles of the trial's placement group and keep their processes, devices
and process group from one trial to the next, so that a later trial starts at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raymeta.errors import TrainingError
from raymeta.experiment.resources import Resources
from raymeta.experiment.schema import STEP_METRIC, Experiment
from raymeta.nn.native import keep_freed_memory
from raymeta.training.distributed import Group, join_group
from raymeta.training.trainer import Trainer, build_trainer


class NodeLeavingError(ray.exceptions.RayActorError):
    """A node of the trial, such as a spot machine, is about to be reclaimed: the trial moves on.

    Tune restarts the trial from its last checkpoint and counts no failure, as for an actor that
    was lost with its node.
    """

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)


class Worker:
    """One rank.  It joins the process group once, then trains one configuration after another."""

    def __init__(self, num_threads: int, use_gpu: bool) -> None:
        torch.set_num_threads(num_threads)
        keep_freed_memory()
        self._device = torch.device("cuda:0" if use_gpu else "cpu")  # Ray shows a worker its own
        self._group = Group()
        self._trainer: Trainer | None = None

    def node(self) -> str:
        """The id of the worker's node."""
        return _node_id()

    def free_address(self) -> str:
        """Finds a free address for rank 0: `tcp://HOST:PORT`."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def join(
        self, rank: int, world_size: int, address: str, backend: str, timeout_s: float
    ) -> None:
        """Joins the trial's process group."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._group = join_group(rank, world_size, address, backend, timeout_s)

    def start(self, experiment: Mapping[str, Any]) -> None:
        """Starts a configuration at step 0 and forgets the previous one."""
        self._trainer = build_trainer(
            Experiment.model_validate(experiment), self._group, self._device
        )

    def train(self, num_steps: int) -> dict[str, float]:
        """Trains and validates.

        Returns:
            The metrics of training and validation, `meta_steps` (the step reached),
            `adaptation_seconds` (of one worker, an episode) and `num_parameters`.
        """
        trainer = self._training()
        metrics = trainer.train(num_steps)
        began = time.perf_counter()
        scores = trainer.validate()
        spent = (time.perf_counter() - began) * self._group.world_size
        return {
            STEP_METRIC: trainer.step,
            **metrics,
            **scores,
            # Adapts episodes in batches here, as in use.
            "adaptation_seconds": spent / trainer.recipe.outer.val_episodes,
            "num_parameters": float(sum(v.numel() for v in trainer.meta_params.values())),
        }

    def serialize(self) -> bytes:
        """Returns the trainer's state."""
        return self._training().serialize()

    def restore(self, state: bytes) -> None:
        """Continues from what `serialize` returned."""
        self._training().restore(state)

    def _training(self) -> Trainer:
        assert self._trainer is not None, "call start() first"
        return self._trainer


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


class WorkerGroup:
    """The workers of one trial actor.  Every call goes to all of them."""

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
                # Tune drops an empty first bundle: worker bundles then count from 0.
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group, placement_group_bundle_index=rank
                )
            self._actors.append(actor_class.options(**options).remote(num_threads, use_gpu))
        # NCCL refuses two ranks on one GPU.
        backend = "nccl" if resources.gpus_per_worker >= 1 else "gloo"
        timeout_s = resources.collective_timeout_s
        self._nodes |= set(ray.get([actor.node.remote() for actor in self._actors]))
        address = ray.get(self._actors[0].free_address.remote())
        self._wait(
            [
                actor.join.remote(rank, len(self._actors), address, backend, timeout_s)
                for rank, actor in enumerate(self._actors)
            ]
        )

    def check_nodes(self) -> None:
        """Leaves a node that is about to be reclaimed.

        Raises:
            NodeLeavingError: Ray drains one of the trial's nodes.
        """
        draining = ray._private.state.state.get_draining_nodes()  # noqa: SLF001  (as Ray Train does)
        leaving = self._nodes & draining.keys()
        if leaving:
            raise NodeLeavingError(f"node {min(leaving)} is being drained; the trial moves on")

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of every rank and returns rank 0's answer.

        Raises:
            RayActorError: a worker is gone.  The others may hang in a collective that never ends,
                so all workers are killed; the restarted trial gets new ones.
        """
        if self._local is not None:
            return getattr(self._local, method)(*args)
        return self._wait([getattr(actor, method).remote(*args) for actor in self._actors])

    def call_first(self, method: str, *args: Any) -> Any:
        """Calls rank 0 only, for what needs no collective."""
        if self._local is not None:
            return getattr(self._local, method)(*args)
        return ray.get(getattr(self._actors[0], method).remote(*args))

    def close(self) -> None:
        """Kills the workers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._local = [], None

    def _wait(self, answers: list[Any]) -> Any:
        waiting = list(answers)
        try:
            while waiting:
                # One answer at a time: a dead rank must be noticed while the others wait for it.
                (done,), waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        except ray.exceptions.RayError as error:
            if isinstance(getattr(error, "cause", None), TrainingError):
                # All ranks fail at the same step and are ready for another trial.
                if waiting:
                    ray.wait(waiting, num_returns=len(waiting))
                raise
            self.close()
            raise
        return ray.get(answers[0])
