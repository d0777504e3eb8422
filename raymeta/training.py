"""Meta-training: the outer loop, validation, checkpoints and exact resume.  Knows no Ray.

All state is (meta-parameters, optimiser moments, step, counters): episodes are functions of (seed,
step) and the learning rate is a function of the step, so a run resumed from a checkpoint continues
bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raymeta.distributed import Group
from raymeta.errors import RunError, TrainingError
from raymeta.experiment import Experiment
from raymeta.meta.cuda_graph import GraphedMetaGradient
from raymeta.meta.maml import (
    Kind,
    Maml,
    adaptation_scores,
    init_meta_params,
    meta_gradient,
)
from raymeta.meta.memory import GraphMode, MemoryPlan, plan_memory
from raymeta.models import NetworkSpec, Params, init_params, is_head
from raymeta.outer import OuterLoop, OuterOptimizer, flat_sums
from raymeta.pretraining import train_joint
from raymeta.remote import AnyPath
from raymeta.tasks import Split, TaskDistribution, load_tasks

CHECKPOINT_NAME = "checkpoint.safetensors"
_META = "meta_params."
_COUNTERS = "counters"
EVALUATION_CHUNK = 64  # episodes adapted at once; bounds memory, never changes a score


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, as plain values."""

    spec: NetworkSpec
    maml: Maml
    outer: OuterLoop
    pretrain_lr: float
    kind: Kind
    seed: int
    dtype: torch.dtype
    eval_steps: int  # adaptation steps of meta-validation and meta-test
    graph: GraphMode = "auto"
    chunk_size: int | None = None  # episodes at once; None: as many as fit
    memory_bytes: float = math.inf  # what a worker's meta-step may take
    cuda_graph: bool = False


def build_recipe(experiment: Experiment, tasks: TaskDistribution) -> Recipe:
    """The plain values that an experiment asks for, given the tasks it runs on."""
    training, model, spec = experiment.training, experiment.model.model_dump(), tasks.input_spec
    if spec.vocabulary_size is None:
        model["embedding_size"] = 0
    return Recipe(
        spec=NetworkSpec(
            num_outputs=spec.num_outputs,
            num_features=spec.num_features,
            vocabulary_size=spec.vocabulary_size,
            layer_dtype=torch.bfloat16 if training.precision == "bfloat16" else None,
            **model,
        ),
        maml=Maml(**experiment.maml.model_dump()),
        outer=OuterLoop(
            pretrain_steps=training.pretrain_steps,
            meta_steps=training.meta_steps,
            meta_batch_size=training.meta_batch_size,
            lr=training.outer_lr,
            clip=training.outer_clip,
            weight_decay=training.weight_decay,
            cosine=training.schedule == "cosine",
            val_episodes=training.val_episodes,
            max_skipped=training.max_skipped,
        ),
        pretrain_lr=training.pretrain_lr,
        kind=experiment.kind,
        seed=experiment.seed,
        dtype=torch.float64 if training.precision == "float64" else torch.float32,
        eval_steps=experiment.evaluation.adaptation_steps,
        graph=training.graph,
        chunk_size=training.chunk_size,
        memory_bytes=training.memory_gb * 1e9,
        cuda_graph=training.cuda_graph,
    )


def build_trainer(
    experiment: Experiment, group: Group | None = None, device: torch.device | None = None
) -> Trainer:
    """A trainer at step 0, for one rank of `group` (None: the only one) on `device` (None: CPU)."""
    # Of the whole process, which may have trained another way before.
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
    """The estimated peak of a worker's meta-step in bytes, without its process; see `memory`."""
    tasks = load_tasks(experiment)
    recipe = build_recipe(experiment, tasks)
    share = math.ceil(recipe.outer.meta_batch_size / experiment.resources.num_workers)
    plan = plan_memory(
        recipe.maml,
        recipe.spec,
        initial_meta_params(recipe, torch.device("cpu")),
        tasks.episodes("train", range(share)),
        mode=recipe.graph,
        chunk_size=recipe.chunk_size,
        limit_bytes=recipe.memory_bytes,
    )
    return plan.num_bytes


def initial_meta_params(recipe: Recipe, device: torch.device) -> Params:
    """The meta-parameters before the first step, drawn from the recipe's seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    params = init_params(recipe.spec, generator, recipe.dtype)
    return {k: v.to(device) for k, v in init_meta_params(recipe.maml, params).items()}


class Trainer:
    """Meta-trains one network.  Every rank of `group` makes the same calls in the same order."""

    def __init__(
        self, tasks: TaskDistribution, recipe: Recipe, group: Group, device: torch.device
    ) -> None:
        self.tasks, self.recipe, self.group, self.device = tasks, recipe, group, device
        self.meta_params = initial_meta_params(recipe, device)
        self._optimizer = OuterOptimizer(
            self.meta_params, clip=recipe.outer.clip, weight_decay=recipe.outer.weight_decay
        )
        self.step = 0
        self.num_skipped = 0
        graphed = recipe.cuda_graph and device.type == "cuda"
        self._meta_gradient = GraphedMetaGradient() if graphed else meta_gradient
        self.plan: MemoryPlan | None = None  # of the last step with episodes for this rank
        self._skipped_in_a_row = 0

    def train(self, num_steps: int) -> dict[str, float]:
        """Takes up to `num_steps` meta-steps, not beyond the budget, after pretraining if any.

        Returns:
            `train_loss` and `train_score` (means over the episodes of the steps taken),
            `meta_grad_norm` (mean, before clipping), `num_skipped` (non-finite steps so far),
            `meta_steps_per_s`; and this rank's memory plan: `planned_mb` (the estimated peak, 1e6
            bytes), `chunk_size` and `graph_steps`.

        Raises:
            TrainingError: more than `max_skipped` steps in a row were not finite.
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
        mean = 1.0 / good if good else math.nan
        return {
            "train_loss": loss * mean,
            "train_score": score * mean,
            "meta_grad_norm": norm * mean,
            "num_skipped": float(self.num_skipped),
            "meta_steps_per_s": taken / seconds if seconds > 0 else math.nan,
        } | self._planned()

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
                    f"(step {self.step}); lower maml.inner_lr or training.outer_lr, or set "
                    "maml.inner_clip"
                )
            return None
        self._skipped_in_a_row = 0

        mean = buffer[:-1] / buffer[-1]
        norm = self._optimizer.step(mean[:-2], outer.lr_at(self.step - 1))
        return mean[-2].item(), mean[-1].item(), norm

    def _pretrain(self) -> None:
        """Starts from joint training's features; a head made for its classes starts anew."""
        recipe = self.recipe
        joint = train_joint(
            self.tasks,
            recipe.spec,
            recipe.kind,
            recipe.outer,
            num_steps=recipe.outer.pretrain_steps,
            lr=recipe.pretrain_lr,
            seed=recipe.seed,
            dtype=recipe.dtype,
            device=self.device,
            group=self.group,
        )
        for name, value in joint.items():
            if not is_head(name) or (
                not recipe.maml.shared_head and value.shape == self.meta_params[name].shape
            ):
                self.meta_params[name].copy_(value)
            else:
                self.meta_params[name].zero_()

    def _local_sums(self, indices: Sequence[int]) -> Tensor:
        """Flat float64 [meta-gradients, loss, score, number of episodes] of this rank's shard."""
        if len(indices) == 0:  # more workers than episodes
            size = sum(value.numel() for value in self.meta_params.values())
            return torch.zeros(size + 3, dtype=torch.float64, device=self.device)
        episodes = self.tasks.episodes("train", indices).to(self.device, self.recipe.dtype)
        recipe = self.recipe
        self.plan = plan_memory(
            recipe.maml,
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
            result = self._meta_gradient(
                recipe.maml,
                recipe.spec,
                recipe.kind,
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
        """Mean validation score after adaptation and its standard error over the episodes.

        Returns:
            `val_accuracy` or `val_loss` (regression), and the same with the suffix `_sem`.
        """
        recipe = self.recipe
        scores = adaptation_curves(
            self.tasks,
            recipe,
            self.meta_params,
            "val",
            num_episodes=recipe.outer.val_episodes,
            num_steps=recipe.eval_steps,
            group=self.group,
        )[:, -1]
        name = "val_loss" if recipe.kind == "regression" else "val_accuracy"
        return {
            name: scores.mean().item(),
            f"{name}_sem": (scores.std() / math.sqrt(len(scores))).item(),
        }

    def serialize(self) -> bytes:
        """The whole state in safetensors form: reading it back runs no code."""
        tensors = self._state()
        counters = torch.tensor([self.step, self.num_skipped, self._skipped_in_a_row])
        tensors[_COUNTERS] = counters
        return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})

    def _state(self) -> Params:
        return {_META + k: v for k, v in self.meta_params.items()} | self._optimizer.moments()

    def restore(self, state: bytes) -> None:
        """Goes on from what `serialize` gave, by a trainer of the same recipe.

        Raises:
            RunError: the state is broken or of another architecture.
        """
        tensors = _parse(state, "checkpoint")
        saved = self._state()
        expected = saved | {_COUNTERS: torch.zeros(3, dtype=torch.int64)}
        for name in sorted(expected.keys() | tensors.keys()):
            wanted, found = expected.get(name), tensors.get(name)
            if (
                wanted is None
                or found is None
                or found.shape != wanted.shape
                or found.dtype != wanted.dtype
            ):
                raise RunError(f"checkpoint: does not fit this experiment's network at {name}")
        for name, value in saved.items():
            value.copy_(tensors[name])
        self.step, self.num_skipped, self._skipped_in_a_row = tensors[_COUNTERS].tolist()


def model_bytes(meta_params: Params) -> bytes:
    """The meta-parameters alone in a checkpoint's form, for `load_meta_params`."""
    return save({_META + k: v.detach().cpu().contiguous() for k, v in meta_params.items()})


def load_meta_params(path: AnyPath) -> Params:
    """The meta-parameters in a checkpoint or model file.

    Raises:
        RunError: the file is missing, broken or another program's.
    """
    try:
        state = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    tensors = _parse(state, str(path))
    found = {k.removeprefix(_META): v for k, v in tensors.items() if k.startswith(_META)}
    if not found:
        raise RunError(f"{path}: holds no network of raymeta")
    return found


def _parse(state: bytes, origin: str) -> Params:
    try:
        return load(state)
    except SafetensorError as error:
        raise RunError(f"{origin}: not a raymeta checkpoint: {error}") from error


def adaptation_curves(
    tasks: TaskDistribution,
    recipe: Recipe,
    meta_params: Params,
    split: Split,
    *,
    num_episodes: int,
    num_steps: int,
    group: Group | None = None,
) -> Tensor:
    """Scores of the first episodes of `split` after 0 … S steps, float64 `[num_episodes, S + 1]`.

    The same on every rank, whatever their number.
    """
    group = group or Group()
    reference = meta_params["head.weight"]
    mine = group.shard(range(num_episodes))
    rows = [torch.empty(0, num_steps + 1, dtype=torch.float64, device=reference.device)]
    for start in range(0, len(mine), EVALUATION_CHUNK):
        chunk = mine[start : start + EVALUATION_CHUNK]
        episodes = tasks.episodes(split, chunk).to(reference.device, reference.dtype)
        scores = adaptation_scores(
            recipe.maml, recipe.spec, recipe.kind, meta_params, episodes, num_steps
        )
        rows.append(scores.double())
    return group.gather_rows(torch.cat(rows), num_episodes).cpu()
