"""Meta-training: the outer loop, validation, checkpoints and exact resume.  Knows no Ray.

All state is (meta-parameters, optimiser moments, step, counters): episodes are functions of (seed,
step) and the learning rate is a function of the step, so a run resumed from a checkpoint continues
bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from raymeta.episodes import TaskDistribution
from raymeta.errors import AdaptationError, TrainingError
from raymeta.experiment.schema import Experiment
from raymeta.meta.cuda_graph import GraphedMetaGradient
from raymeta.meta.learner import Learner
from raymeta.meta.memory import MemoryPlan, plan_memory
from raymeta.nn.networks import Params
from raymeta.tasks.load import load_tasks
from raymeta.training.checkpoint import META_PREFIX, check_tensors, parse, state_bytes
from raymeta.training.curves import adaptation_curves
from raymeta.training.distributed import Group
from raymeta.training.identity import Identity
from raymeta.training.joint import train_joint
from raymeta.training.outer import OuterOptimizer, flat_sums
from raymeta.training.recipe import Recipe, build_recipe, initial_meta_params
from raymeta.uncertainty import HALVES, Units

_COUNTERS = "counters"


def build_trainer(
    experiment: Experiment, group: Group | None = None, device: torch.device | None = None
) -> Trainer:
    """Makes a trainer at step 0 for one rank of `group`; by default the only rank, on the CPU."""
    # This setting is global: the process may have trained in another precision before.
    tf32 = experiment.training.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    tasks = load_tasks(experiment)
    return Trainer(
        tasks,
        build_recipe(experiment, tasks),
        group or Group(),
        device or torch.device("cpu"),
    )


def estimate_memory(experiment: Experiment) -> int:
    """Estimates the peak of a worker's meta-step in bytes, without its process; see `memory`."""
    tasks = load_tasks(experiment)
    recipe = build_recipe(experiment, tasks)
    share = math.ceil(recipe.outer.meta_batch_size / experiment.resources.num_workers)
    plan = plan_memory(
        recipe.learner.at_progress(0.0),
        recipe.spec,
        initial_meta_params(recipe, torch.device("cpu")),
        tasks.episodes("train", range(share)),
        mode=recipe.graph,
        chunk_size=recipe.chunk_size,
        limit_bytes=recipe.memory_bytes,
    )
    return plan.num_bytes


class Trainer:
    """Meta-trains one network.  Every rank of `group` makes the same calls in the same order."""

    def __init__(
        self, tasks: TaskDistribution, recipe: Recipe, group: Group, device: torch.device
    ) -> None:
        self.tasks, self.recipe, self.group, self.device = tasks, recipe, group, device
        self._identity = Identity.of(recipe, tasks)
        self.meta_params = initial_meta_params(recipe, device)
        self._optimizer = OuterOptimizer(
            self.meta_params, clip=recipe.outer.clip, weight_decay=recipe.outer.weight_decay
        )
        self.step = 0
        self.num_skipped = 0
        graphed = recipe.cuda_graph and device.type == "cuda"
        self._meta_gradient = GraphedMetaGradient() if graphed else Learner.meta_gradient
        self.plan: MemoryPlan | None = None  # of the last step in which this rank had episodes
        self._skipped_in_a_row = 0

    def train(self, num_steps: int) -> dict[str, float]:
        """Takes up to `num_steps` meta-steps within the budget, after pretraining if any.

        Returns:
            `train_loss` and `train_score` (means over the episodes of the steps taken),
            `meta_grad_norm` (mean, before clipping), `num_skipped` (non-finite steps so far),
            `meta_steps_per_s`; and this rank's memory plan: `planned_mb` (the estimated peak, 1e6
            bytes), `chunk_size` and `graph_steps`.

        Raises:
            TrainingError: more than `max_skipped` steps in a row, or all steps of the budget, were
                not finite.
        """
        if self.step == 0 and self.recipe.outer.pretrain_steps > 0:
            self._pretrain()
        start = time.perf_counter()
        end = min(self.step + num_steps, self.recipe.outer.meta_steps)
        taken = end - self.step
        loss = score = norm = 0.0
        good = 0
        while self.step < end:
            stats = self._meta_step()
            if stats is not None:
                loss, score, norm = loss + stats[0], score + stats[1], norm + stats[2]
                good += 1
        seconds = time.perf_counter() - start
        if self.num_skipped == self.step == self.recipe.outer.meta_steps:
            raise TrainingError(
                f"none of {self.step} meta-steps gave a finite gradient; {self._remedy}"
            )
        mean = 1.0 / good if good else math.nan
        return {
            "train_loss": loss * mean,
            "train_score": score * mean,
            "meta_grad_norm": norm * mean,
            "num_skipped": float(self.num_skipped),
            "meta_steps_per_s": taken / seconds if seconds > 0 else math.nan,
        } | self._planned()

    @property
    def _remedy(self) -> str:
        return f"{self.recipe.learner.remedy}, and start a new run"

    def _planned(self) -> dict[str, float]:
        if self.plan is None:
            return {}
        return {
            "planned_mb": self.plan.num_bytes / 1e6,
            "chunk_size": float(self.plan.chunk_size),
            "graph_steps": float(self.plan.graph_steps),
        }

    def _meta_step(self) -> tuple[float, float, float] | None:
        """One meta-step; mean loss, mean score and gradient norm, or None if it was skipped."""
        outer = self.recipe.outer
        first = self.step * outer.meta_batch_size
        mine = self.group.shard(range(first, first + outer.meta_batch_size))
        buffer = self._local_sums(mine)
        buffer = self.group.sum(buffer)
        self.step += 1
        # NaN and infinity survive the sum, so all ranks see them and skip the step together.
        if not bool(buffer.isfinite().all()):
            self.num_skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > outer.max_skipped:
                raise TrainingError(
                    f"{self._skipped_in_a_row} meta-steps in a row gave a non-finite gradient "
                    f"(step {self.step}, {self.num_skipped} skipped in all); {self._remedy}"
                )
            return None
        self._skipped_in_a_row = 0

        mean = buffer[:-1] / buffer[-1]
        norm = self._optimizer.step(mean[:-2], outer.lr_at(self.step - 1))
        return mean[-2].item(), mean[-1].item(), norm

    def _pretrain(self) -> None:
        """Initialises the network by joint training, and an unfit head by zeros."""
        recipe = self.recipe
        joint = train_joint(
            self.tasks,
            recipe.spec,
            recipe.problem,
            recipe.outer,
            num_steps=recipe.outer.pretrain_steps,
            lr=recipe.pretrain_lr,
            seed=recipe.seed,
            dtype=recipe.dtype,
            device=self.device,
            group=self.group,
        )
        recipe.learner.starts_from(self.meta_params, joint)

    def _local_sums(self, indices: Sequence[int]) -> Tensor:
        """Flat float64 [meta-gradients, loss, score, number of episodes] of this rank's shard."""
        if len(indices) == 0:  # more workers than episodes
            size = sum(value.numel() for value in self.meta_params.values())
            return torch.zeros(size + 3, dtype=torch.float64, device=self.device)
        episodes = self.tasks.episodes("train", indices).to(self.device, self.recipe.dtype)
        recipe = self.recipe
        learner = recipe.learner.at_progress(self.step / recipe.outer.meta_steps)
        # A learner that changes with each step would need a CUDA graph for each.
        is_lasting = learner == recipe.learner
        meta_gradient = self._meta_gradient if is_lasting else Learner.meta_gradient
        self.plan = plan_memory(
            learner,
            recipe.spec,
            self.meta_params,
            episodes,
            mode=recipe.graph,
            chunk_size=recipe.chunk_size,
            limit_bytes=recipe.memory_bytes,
        )
        size = self.plan.chunk_size
        sums = None
        for start in range(0, len(episodes), size):
            result = meta_gradient(
                learner,
                recipe.spec,
                recipe.problem,
                self.meta_params,
                episodes[start : start + size],
                graph_steps=self.plan.graph_steps,
            )
            count = result.loss.new_full((1,), result.num_episodes)
            chunk = flat_sums(result.grads, result.loss, result.score, count)
            sums = chunk if sums is None else sums + chunk
        assert sums is not None, "there are episodes"
        return sums

    def validate(self) -> dict[str, float]:
        """Mean validation score after adaptation and its standard error over the units.

        Returns:
            The problem's `val_metric`, and the same with the suffix `_sem`, and with those of
            `HALVES` over two halves of the units.

        Raises:
            AdaptationError: scores are not finite after the further steps of validation, though
                they are after those of meta-training.
            TrainingError: scores are not finite.
        """
        recipe = self.recipe
        curves = adaptation_curves(
            self.tasks,
            recipe,
            self.meta_params,
            "val",
            num_episodes=recipe.outer.val_episodes,
            num_steps=recipe.num_steps,
            group=self.group,
        )
        self._check_validation(curves)
        scores, name = curves[..., -1].numpy(), recipe.problem.val_metric
        found = self._val_units.estimate(scores)
        halves = zip(HALVES, self._val_units.halves(scores), strict=True)
        return {
            name: found.mean,
            f"{name}_sem": found.standard_error,
            **{name + suffix: mean for suffix, mean in halves},
        }

    @cached_property
    def _val_units(self) -> Units:
        return self.tasks.query_units("val", self.recipe.outer.val_episodes)

    def _check_validation(self, curves: Tensor) -> None:
        """Refuses validation scores that are not finite; `curves` are `[E, M, S + 1]`."""
        is_finite = curves.isfinite().all(dim=1)
        bad = int((~is_finite[:, -1]).sum())
        if bad == 0:
            return
        name = self.recipe.learner.name
        trained, asked = self.recipe.learner.adaptation_steps, self.recipe.num_steps
        found = (
            f"validation at meta-step {self.step}: after {asked} adaptation steps {bad} of "
            f"{len(curves)} episodes have no finite score"
        )
        if trained < asked and bool(is_finite[:, trained].all()):
            raise AdaptationError(
                f"{found}, though all have one after the {trained} steps of meta-training; lower "
                f"evaluation.adaptation_steps towards {name}.adaptation_steps ({trained}), or "
                "raise the latter, and start a new run"
            )
        raise TrainingError(f"{found}; {self._remedy}")

    def serialize(self) -> bytes:
        """Serialises the whole state as a checkpoint, for `restore`."""
        counters = torch.tensor([self.step, self.num_skipped, self._skipped_in_a_row])
        return state_bytes(self._state() | {_COUNTERS: counters}, self._identity)

    def _state(self) -> Params:
        return {META_PREFIX + k: v for k, v in self.meta_params.items()} | self._optimizer.moments()

    def restore(self, content: bytes) -> None:
        """Continues from what `serialize` returned in a trainer of the same recipe and data.

        Raises:
            RunError: the checkpoint is damaged, or of another network, recipe or data.
        """
        state = parse(content, "checkpoint")
        state.identity.check(self._identity, "checkpoint")
        own = self._state()
        counters = torch.zeros(3, dtype=torch.int64)
        check_tensors(state.tensors, own | {_COUNTERS: counters}, "checkpoint")
        for name, value in own.items():
            value.copy_(state.tensors[name])
        self.step, self.num_skipped, self._skipped_in_a_row = state.tensors[_COUNTERS].tolist()
