"""The outer loop: its steps, its skips, its schedule, and exact resume."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from raymeta.errors import AdaptationError, RunError, TrainingError
from raymeta.experiment.schema import Experiment
from raymeta.meta.inner import RATE_PREFIX
from raymeta.nn.networks import Params
from raymeta.tasks.load import load_tasks
from raymeta.training import curves as curves_module
from raymeta.training.checkpoint import parse, state_bytes
from raymeta.training.curves import adaptation_curves
from raymeta.training.distributed import Group
from raymeta.training.joint import train_joint
from raymeta.training.recipe import build_recipe
from raymeta.training.trainer import Trainer, build_trainer
from raymeta.uncertainty import HALVES
from tests.reference import ReferenceMaml, ReferenceNetwork, pairs, poisoned

CPU = torch.device("cpu")
Tiny = Callable[..., Experiment]


def trainer_of(experiment: Experiment, bad_steps: tuple[int, ...] = ()) -> Trainer:
    """Makes a trainer; in each of `bad_steps` one episode has NaN."""
    tasks = load_tasks(experiment)
    size = experiment.training.meta_batch_size
    bad = [step * size + step % size for step in bad_steps]
    return Trainer(poisoned(tasks, bad), build_recipe(experiment, tasks), Group(), CPU)


def snapshot(trainer: Trainer) -> Params:
    return {name: value.clone() for name, value in trainer.meta_params.items()}


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "meta_steps_per_s"}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.outer_clip=0.05", "training.weight_decay=0.1"),
        ("maml.learn_inner_lr=true", "maml.inner_clip=0.5", "training.weight_decay=0.1"),
        ("training.schedule=constant", "training.outer_clip=null"),
        ("maml.first_order=true", "maml.adapt=head"),
    ],
    ids=lambda overrides: "-".join(overrides) or "plain",
)
@pytest.mark.parametrize("name", ["sinusoid", "sentiment"])
def test_steps_are_those_of_torchs_adamw_on_the_references_gradients(
    tiny: Tiny, name: str, overrides: tuple[str, ...]
) -> None:
    experiment = tiny(name, "model.dropout=0", *overrides)
    trainer, outer = build_trainer(experiment), experiment.training
    network = ReferenceNetwork(**asdict(trainer.recipe.spec))
    maml = ReferenceMaml(network=network, **asdict(trainer.recipe.learner))
    params = {k: torch.nn.Parameter(v) for k, v in snapshot(trainer).items()}
    rates = [value for key, value in params.items() if key.startswith(RATE_PREFIX)]
    weights = [value for key, value in params.items() if not key.startswith(RATE_PREFIX)]
    optimizer = torch.optim.AdamW(weights, lr=outer.outer_lr, weight_decay=outer.weight_decay)
    if rates:  # decay would draw their logarithms to zero
        optimizer.add_param_group({"params": rates, "weight_decay": 0.0})
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, outer.meta_steps)
    losses, norms = [], []
    for step in range(4):
        indices = range(3 * step, 3 * step + 3)
        episodes = trainer.tasks.episodes("train", indices).to(CPU, torch.float64)
        grads, loss = maml.meta_gradient(params, pairs(episodes))
        norm = torch.cat([grad.flatten() for grad in grads.values()]).norm().item() / 3
        scale = 1.0 if outer.outer_clip is None else min(1.0, outer.outer_clip / norm)
        for key, value in params.items():
            value.grad = grads[key] / 3 * scale
        optimizer.step()
        if outer.schedule == "cosine":
            cosine.step()
        losses.append(loss.item() / 3)
        norms.append(norm)
    metrics = trainer.train(4)
    expected = {key: value.detach() for key, value in params.items()}
    torch.testing.assert_close(trainer.meta_params, expected, rtol=1e-10, atol=1e-10)
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 4)
    assert metrics["meta_grad_norm"] == pytest.approx(sum(norms) / 4)


def test_cosine_schedule_goes_from_the_rate_to_zero(tiny: Tiny) -> None:
    outer = trainer_of(tiny("sinusoid", "training.outer_lr=0.4")).recipe.outer
    assert outer.lr_at(0) == 0.4
    assert outer.lr_at(4) == pytest.approx(0.2)
    assert outer.lr_at(8) == pytest.approx(0, abs=1e-15)
    assert 0 < outer.lr_at(7) < outer.lr_at(6)


def test_constant_schedule_keeps_the_rate(tiny: Tiny) -> None:
    outer = trainer_of(tiny("sinusoid", "training.schedule=constant")).recipe.outer
    assert {outer.lr_at(step) for step in range(9)} == {outer.lr}


@pytest.mark.parametrize(("clip", "clipped"), [("0.01", True), ("1000.0", False), ("null", False)])
def test_outer_clipping_bounds_what_the_optimiser_sees(
    tiny: Tiny, clip: str, clipped: bool
) -> None:
    trainer = build_trainer(tiny("sinusoid", f"training.outer_clip={clip}"))
    norm = trainer.train(1)["meta_grad_norm"]
    # After one step the first moment is (1 - beta_1) times the gradient.
    first = [v for k, v in load(trainer.serialize()).items() if k.startswith("adamw.exp_avg.")]
    seen = torch.cat([moment.flatten() for moment in first]).norm().item() / 0.1
    assert norm > 0.1
    assert seen == pytest.approx(0.01 if clipped else norm)


def test_training_ends_with_its_budget(tiny: Tiny) -> None:
    trainer = build_trainer(tiny("sinusoid"))
    trainer.train(100)
    assert trainer.step == 8
    before = trainer.serialize()
    assert math.isnan(trainer.train(1)["train_loss"])
    assert trainer.serialize() == before


def test_training_lowers_the_validation_loss(tiny: Tiny) -> None:
    trainer = build_trainer(
        tiny("sinusoid", "training.meta_steps=60", "training.outer_lr=0.01", "model.hidden_size=8")
    )
    before = trainer.validate()["val_loss"]
    trainer.train(60)
    assert trainer.validate()["val_loss"] < 0.9 * before


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("maml.learn_inner_lr=true",),
        ("model.dropout=0.3", "model.num_layers=2"),
        ("training.pretrain_steps=2", "maml.shared_head=true", "training.precision=float32"),
    ],
    ids=lambda overrides: "-".join(overrides) or "plain",
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tiny: Tiny, tmp_path: Path, first: int, overrides: tuple[str, ...]
) -> None:
    experiment = tiny("sentiment", *overrides)
    whole, before, after = (build_trainer(experiment) for _ in range(3))
    whole.train(first)
    rest = whole.train(3)

    before.train(first)
    file = tmp_path / "checkpoint"
    file.write_bytes(before.serialize())
    after.train(1)  # what it did before is forgotten
    after.restore(file.read_bytes())
    assert after.step == first
    again = after.train(3)

    assert timeless(again) == timeless(rest)
    assert after.serialize() == whole.serialize()
    assert after.validate() == whole.validate()


def test_steps_taken_in_parts_are_those_taken_at_once(tiny: Tiny) -> None:
    once, parts = (build_trainer(tiny("sinusoid")) for _ in range(2))
    once.train(6)
    for _ in range(3):
        parts.train(2)
        parts.validate()  # draws nothing that training would miss
    assert parts.serialize() == once.serialize()


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny: Tiny) -> None:
    trainer = trainer_of(tiny("sinusoid"), bad_steps=(1,))
    first = trainer.train(1)
    before = load(trainer.serialize())
    skipped = trainer.train(1)
    after = load(trainer.serialize())
    assert skipped["num_skipped"] == 1
    assert math.isnan(skipped["train_loss"])
    assert trainer.step == 2
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"counters"}

    last = trainer.train(1)
    assert last["num_skipped"] == 1
    assert math.isfinite(last["train_loss"])
    assert not torch.equal(trainer.meta_params["head.weight"], before["meta_params.head.weight"])
    # A mean over steps is one over those that were taken.
    again = trainer_of(tiny("sinusoid"), bad_steps=(1,)).train(3)
    assert again["train_loss"] == pytest.approx((first["train_loss"] + last["train_loss"]) / 2)


def test_more_skipped_steps_in_a_row_than_allowed_end_training(tiny: Tiny) -> None:
    experiment = tiny("sinusoid", "training.max_skipped=2")
    with pytest.raises(TrainingError, match=r"3 meta-steps in a row .*maml\.inner_lr"):
        trainer_of(experiment, bad_steps=(1, 2, 3)).train(8)


def test_skipped_steps_apart_from_each_other_do_not_end_training(tiny: Tiny) -> None:
    trainer = trainer_of(tiny("sinusoid", "training.max_skipped=2"), bad_steps=(0, 1, 3, 4, 6))
    assert trainer.train(8)["num_skipped"] == 5


def test_skipped_steps_are_counted_across_a_resume(tiny: Tiny) -> None:
    experiment = tiny("sinusoid", "training.max_skipped=2")
    before, after = (trainer_of(experiment, bad_steps=(0, 1, 2)) for _ in range(2))
    before.train(2)
    after.restore(before.serialize())
    assert after.num_skipped == 2
    with pytest.raises(TrainingError, match="3 meta-steps in a row"):
        after.train(1)


def without(content: bytes, name: str) -> bytes:
    state = parse(content, "checkpoint")
    tensors = {key: value for key, value in state.tensors.items() if key != name}
    return state_bytes(tensors, state.identity)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"no checkpoint at all, just some text",
    "cut off": lambda state: state[: len(state) // 2],
    "pickle": lambda state: pickle.dumps(load(state)),
    "without moments": lambda state: without(state, "adamw.exp_avg.head.bias"),
    "without counters": lambda state: without(state, "counters"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_and_changes_nothing(tiny: Tiny, kind: str) -> None:
    trainer = build_trainer(tiny("sinusoid"))
    trainer.train(1)
    before = trainer.serialize()
    other = build_trainer(tiny("sinusoid"))
    other.train(3)
    with pytest.raises(RunError, match="checkpoint"):
        trainer.restore(BROKEN[kind](other.serialize()))
    assert trainer.serialize() == before


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        ("model.hidden_size=5", ""),
        ("model.cell=gru", ""),
        ("model.bidirectional=true", ""),
        ("training.precision=float32", ""),
        ("model.num_layers=2", ""),
        ("", "model.num_layers=2"),
        ("maml.learn_inner_lr=true", ""),
        ("", "maml.learn_inner_lr=true"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(
    tiny: Tiny, saved: str, restored: str
) -> None:
    source, target = (
        build_trainer(tiny("sinusoid", *filter(None, [override]))) for override in (saved, restored)
    )
    before = target.serialize()
    with pytest.raises(RunError, match="checkpoint"):
        target.restore(source.serialize())
    assert target.serialize() == before


@pytest.mark.parametrize("changes", [{"chunk_size": 2}, {"chunk_size": 3}, {"graph": "flat"}])
def test_chunks_and_flat_memory_leave_the_steps_as_they_are(
    tiny: Tiny, changes: dict[str, object]
) -> None:
    def trained(*overrides: str) -> Trainer:
        trainer = build_trainer(tiny("sentiment", "training.meta_batch_size=5", *overrides))
        trainer.train(4)
        return trainer

    whole, parts = trained(), trained(*(f"training.{k}={v}" for k, v in changes.items()))
    torch.testing.assert_close(parts.meta_params, whole.meta_params, rtol=1e-10, atol=1e-10)
    assert parts.plan is not None
    assert parts.plan.chunk_size == changes.get("chunk_size", 5)
    assert (parts.plan.graph_steps == 0) == ("graph" in changes)


def test_a_small_memory_limit_recomputes_steps_in_chunks(tiny: Tiny) -> None:
    trainer = build_trainer(tiny("sentiment", "training.memory_gb=1e-9"))
    metrics = trainer.train(1)
    assert (metrics["chunk_size"], metrics["graph_steps"]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "metric"), [("sinusoid", "val_loss"), ("pen-maml", "val_accuracy")]
)
def test_validation_is_mean_and_standard_error_over_units(
    tiny: Tiny, name: str, metric: str
) -> None:
    trainer = build_trainer(tiny(name, "evaluation.adaptation_steps=3"))
    scores = adaptation_curves(
        trainer.tasks, trainer.recipe, trainer.meta_params, "val", num_episodes=5, num_steps=3
    )[..., -1]
    units = trainer.tasks.query_units("val", 5)
    found = units.estimate(scores.numpy())
    halves = zip(HALVES, units.halves(scores.numpy()), strict=True)
    assert trainer.validate() == {
        metric: pytest.approx(scores.mean().item()),
        f"{metric}_sem": pytest.approx(found.standard_error),
        **{f"{metric}{half}": pytest.approx(mean) for half, mean in halves},
    }
    over_episodes = scores.mean(dim=1).std(correction=1).item() / math.sqrt(5)
    if name == "sinusoid":  # whose episodes are its units
        assert found.standard_error == pytest.approx(over_episodes)
    else:
        assert found.standard_error >= over_episodes


def test_scores_do_not_depend_on_how_many_episodes_are_adapted_at_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(tiny("sentiment"))

    def curves() -> torch.Tensor:
        return adaptation_curves(
            trainer.tasks, trainer.recipe, trainer.meta_params, "val", num_episodes=5, num_steps=2
        )

    at_once = curves()
    monkeypatch.setattr(curves_module, "EVALUATION_CHUNK", 2)
    torch.testing.assert_close(curves(), at_once, rtol=1e-10, atol=1e-10)
    assert at_once.shape == (5, 20, 3)


def test_meta_training_starts_from_the_pretrained_network(tiny: Tiny) -> None:
    experiment = tiny("sentiment", "training.pretrain_steps=3", "training.meta_steps=1")
    trainer = build_trainer(experiment)
    recipe = trainer.recipe
    joint = train_joint(
        trainer.tasks,
        recipe.spec,
        recipe.problem,
        recipe.outer,
        num_steps=3,
        lr=recipe.pretrain_lr,
        seed=recipe.seed,
        dtype=recipe.dtype,
        device=CPU,
    )
    plain = Trainer(
        trainer.tasks,
        replace(recipe, outer=replace(recipe.outer, pretrain_steps=0)),
        Group(),
        CPU,
    )
    for name, value in joint.items():
        plain.meta_params[name].copy_(value)
    trainer.train(1)
    plain.train(1)
    torch.testing.assert_close(trainer.meta_params, plain.meta_params, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("precision", "dtype", "layer_dtype", "products"),
    [
        ("float64", torch.float64, None, "highest"),
        ("tf32", torch.float32, None, "high"),
        ("float32", torch.float32, None, "highest"),  # after tf32: nothing of it remains
        ("bfloat16", torch.float32, torch.bfloat16, "highest"),
    ],
)
def test_precision_follows_the_setting(
    tiny: Tiny, precision: str, dtype: torch.dtype, layer_dtype: torch.dtype | None, products: str
) -> None:
    trainer = build_trainer(tiny("sinusoid", f"training.precision={precision}"))
    metrics = trainer.train(2)
    assert {value.dtype for value in trainer.meta_params.values()} == {dtype}
    assert trainer.recipe.spec.layer_dtype == layer_dtype
    assert torch.get_float32_matmul_precision() == products
    assert math.isfinite(metrics["train_loss"])
    assert metrics["num_skipped"] == 0


def test_a_validation_that_is_not_finite_is_an_error_with_a_remedy(tiny: Tiny) -> None:
    trainer = build_trainer(tiny("sentiment"))
    trainer.meta_params["head.bias"].fill_(math.nan)
    with pytest.raises(TrainingError, match=r"no finite score; lower maml\.inner_lr"):
        trainer.validate()


def test_an_overflow_in_further_validation_steps_names_both_keys(
    tiny: Tiny,
) -> None:
    # Each step multiplies the distance to the optimum by a large number.
    trainer = build_trainer(
        tiny(
            "sinusoid",
            "training.precision=float32",
            "maml.adaptation_steps=1",
            "maml.inner_lr=1e10",
            "maml.adapt=head",
            "maml.inner_clip=null",
            "evaluation.adaptation_steps=10",
        )
    )
    with pytest.raises(AdaptationError) as caught:
        trainer.validate()
    for part in ("after 10 adaptation steps", "evaluation.adaptation_steps", "(1)"):
        assert part in str(caught.value)
    assert "maml.inner_lr" not in str(caught.value)


@pytest.mark.parametrize(("meta_steps", "eval_every"), [(1, 1), (4, 4), (5, 2)])
def test_a_run_without_a_finite_meta_step_is_an_error_at_any_length(
    tiny: Tiny, meta_steps: int, eval_every: int
) -> None:
    experiment = tiny("sinusoid", f"training.meta_steps={meta_steps}", "training.max_skipped=20")

    def trained() -> None:
        state = None
        for _ in range(0, meta_steps, eval_every):
            trainer = trainer_of(experiment, bad_steps=tuple(range(meta_steps)))
            if state is not None:  # as after a restart
                trainer.restore(state)
            trainer.train(eval_every)
            state = trainer.serialize()

    with pytest.raises(TrainingError, match=rf"none of {meta_steps} meta-steps .*inner_lr"):
        trained()


def test_one_finite_meta_step_is_enough(tiny: Tiny) -> None:
    trainer = trainer_of(tiny("sinusoid", "training.meta_steps=4"), bad_steps=(0, 1, 3))
    assert trainer.train(4)["num_skipped"] == 3
