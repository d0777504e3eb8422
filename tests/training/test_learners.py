"""Meta-training by every learner: exact resume, chunks and progress."""

from __future__ import annotations

import pytest
import torch

from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.meta.learners.maml_plus_plus import MamlPlusPlus
from raymeta.meta.settings import SETTINGS
from raymeta.training.trainer import build_trainer

every_learner = pytest.mark.parametrize("name", SETTINGS)


def experiment_with(name: str, *overrides: str) -> Experiment:
    """Makes a tiny experiment of a problem that the learner serves."""
    base = "sinusoid" if "classification" in SETTINGS[name].refuses else "sentiment"
    steps = (f"{name}.adaptation_steps=3",) if SETTINGS[name]().adaptation_steps else ()
    return load_experiment(
        base,
        [
            f"learner={name}",
            "model={hidden_size: 4, dropout: 0.3}",
            "training={meta_steps: 6, meta_batch_size: 3, val_episodes: 5, precision: float64}",
            "training.pretrain_steps=0",
            "search.space={}",
            *steps,
            *overrides,
        ],
    )


@pytest.mark.slow
@every_learner
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str) -> None:
    whole, before, after = (build_trainer(experiment_with(name)) for _ in range(3))
    whole.train(6)
    before.train(2)
    after.restore(before.serialize())
    after.train(4)
    assert after.serialize() == whole.serialize()
    assert after.validate() == whole.validate()


@every_learner
@pytest.mark.parametrize("graph", ["full", "flat"])
def test_chunks_and_graphs_change_no_step(name: str, graph: str) -> None:
    once = build_trainer(experiment_with(name))
    chunks = build_trainer(
        experiment_with(name, "training.chunk_size=1", f"training.graph={graph}")
    )
    for trainer in (once, chunks):
        trainer.train(4)
    torch.testing.assert_close(chunks.meta_params, once.meta_params, rtol=1e-9, atol=1e-9)


def test_a_learner_receives_the_share_of_finished_meta_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []

    def at_progress(self: MamlPlusPlus, progress: float) -> MamlPlusPlus:
        told.append(progress)
        return self

    monkeypatch.setattr(MamlPlusPlus, "at_progress", at_progress)
    first, second = (build_trainer(experiment_with("maml_plus_plus")) for _ in range(2))
    first.train(2)
    second.restore(first.serialize())
    second.train(9)
    assert told == [step / 6 for step in range(6)]
