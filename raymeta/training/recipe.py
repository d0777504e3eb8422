"""Recipe: everything that determines a training run, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from raymeta.episodes import InputSpec, TaskDistribution
from raymeta.experiment.schema import Experiment
from raymeta.meta.learner import Learner
from raymeta.meta.learners import LEARNERS
from raymeta.meta.memory import GraphMode
from raymeta.nn.networks import NetworkSpec, Params, init_params
from raymeta.problem import Problem
from raymeta.training.outer import OuterLoop


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, as plain values."""

    spec: NetworkSpec
    learner: Learner
    outer: OuterLoop
    pretrain_lr: float
    problem: Problem
    seed: int
    dtype: torch.dtype
    eval_steps: int  # adaptation steps of meta-validation and meta-test, for learners with steps
    graph: GraphMode = "auto"
    chunk_size: int | None = None  # episodes at once; None: as many as fit
    memory_bytes: float = math.inf  # limit of a worker's meta-step
    cuda_graph: bool = False

    @property
    def num_steps(self) -> int:
        """Adaptation steps of the learner in meta-validation and meta-test."""
        return self.eval_steps if self.learner.adaptation_steps else 0

    def __post_init__(self) -> None:
        self.learner.check_problem(self.learner.name, self.problem.name)


def build_recipe(experiment: Experiment, tasks: TaskDistribution) -> Recipe:
    """Makes the recipe of an experiment on its tasks."""
    return recipe_for_inputs(experiment, tasks.input_spec)


def recipe_for_inputs(experiment: Experiment, spec: InputSpec) -> Recipe:
    """Makes the recipe of an experiment from its tasks' input spec alone."""
    problem = experiment.problem
    assert spec.problem == problem.name, "settings and loader name one problem"
    training, model = experiment.training, experiment.model.model_dump()
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
        learner=LEARNERS[experiment.learner](**experiment.learner_settings),
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
        problem=problem,
        seed=(experiment.seed + training.seed) % 2**64,
        dtype=torch.float64 if training.precision == "float64" else torch.float32,
        eval_steps=experiment.evaluation.adaptation_steps,
        graph=training.graph,
        chunk_size=training.chunk_size,
        memory_bytes=training.memory_gb * 1e9,
        cuda_graph=training.cuda_graph,
    )


def initial_meta_params(recipe: Recipe, device: torch.device) -> Params:
    """Draws the initial meta-parameters from the recipe's seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    params = init_params(recipe.spec, generator, recipe.dtype)
    meta_params = recipe.learner.init_meta_params(params, recipe.seed)
    return {k: v.to(device) for k, v in meta_params.items()}


def meta_params_like(recipe: Recipe) -> Params:
    """Meta-parameters without values, to compare names, shapes and types with.

    They take no memory, however large the sizes are that a file names.

    Raises:
        RuntimeError, TypeError: the sizes are none that a tensor may have.
    """
    nowhere = torch.device("meta")
    with nowhere:
        return initial_meta_params(recipe, nowhere)
