"""What is sampled: task distributions with disjoint meta-splits, and their episodes."""

from __future__ import annotations

from raymeta.experiment import Experiment, PenTasks, SentimentTasks
from raymeta.remote import path_at
from raymeta.tasks.episodes import SPLITS, Episodes, Examples, InputSpec, Split, TaskDistribution
from raymeta.tasks.pen import Augmentation, load_pen
from raymeta.tasks.sentiment import load_sentiment
from raymeta.tasks.sinusoid import load_sinusoid

__all__ = [
    "SPLITS",
    "Episodes",
    "Examples",
    "InputSpec",
    "Split",
    "TaskDistribution",
    "load_tasks",
]


def load_tasks(experiment: Experiment) -> TaskDistribution:
    """The task distribution that an experiment asks for.

    Raises:
        DataError: its data are broken or cannot serve such episodes.
    """
    tasks, seed = experiment.tasks, experiment.seed
    if isinstance(tasks, PenTasks):
        return load_pen(
            num_ways=tasks.num_ways,
            num_shots=tasks.num_shots,
            num_queries=tasks.num_queries,
            num_points=tasks.num_points,
            augmentation=Augmentation(**tasks.augmentation.model_dump()),
            seed=seed,
            split_seed=tasks.split_seed,
            data_dir=path_at(tasks.data_dir) if tasks.data_dir else None,
        )
    if isinstance(tasks, SentimentTasks):
        return load_sentiment(
            num_shots=tasks.num_shots,
            num_queries=tasks.num_queries,
            test_domain=tasks.test_domain,
            max_tokens=tasks.max_tokens,
            min_count=tasks.min_count,
            token_dropout=tasks.token_dropout,
            seed=seed,
            split_seed=tasks.split_seed,
            data_dir=path_at(tasks.data_dir) if tasks.data_dir else None,
        )
    return load_sinusoid(num_shots=tasks.num_shots, num_queries=tasks.num_queries, seed=seed)
