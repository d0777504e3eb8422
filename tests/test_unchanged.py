"""The numbers of version 0.1: meta-gradients, meta-steps, a search and a meta-test table.

`tests/unchanged.json` holds what version 0.1 computed, before its modules moved.  A change of
structure must reproduce it.  `python tests/test_unchanged.py` records it anew; that is right only
where a change of the numbers is intended, and then the change log names the change.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import raymeta
from raymeta.episodes import Episodes, Examples
from raymeta.experiment.file import load_experiment
from raymeta.meta.learners.maml import Maml
from raymeta.nn.native import scans as native_scans
from raymeta.nn.networks import NetworkSpec, init_params
from raymeta.problem import PROBLEMS
from raymeta.training.trainer import build_trainer
from raymeta.uncertainty import HALVES

RECORDED = Path(__file__).with_name("unchanged.json")
EPISODES, WAYS, STEPS, FEATURES, VOCABULARY = 4, 3, 6, 3, 11
INNER_STEPS = 3

EXPERIMENTS = {"pen": "pen-maml", "sinusoid": "sinusoid"}  # their names then and now
CELLS = ("rnn", "gru", "lstm")
LEARNERS: dict[str, dict[str, Any]] = {
    "second order": {},
    "first order": {"first_order": True},
    "head": {"adapt": "head"},
    "learned rates": {"learn_inner_lr": True},
    "shared head": {"shared_head": True},
    "clipped": {"inner_clip": 0.05},
    "all of it": {"learn_inner_lr": True, "shared_head": True, "inner_clip": 0.05},
}
GRAPHS: dict[str, tuple[int | None, int]] = {  # steps whose graph is kept, episodes at once
    "full": (None, EPISODES),
    "flat": (0, EPISODES),
    "flat in chunks": (1, 3),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean"},
    "attention": {"pooling": "attention"},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "dropout": {"dropout": 0.3},
    "tokens": {"num_features": None, "vocabulary_size": VOCABULARY, "embedding_size": 4},
    "regression": {"num_outputs": 2},
}
CASES = {
    **{
        f"{cell}, {learner}, {graph}": (cell, learner, graph, None)
        for cell, learner, graph in itertools.product(CELLS, LEARNERS, GRAPHS)
    },
    **{
        f"{cell}, {network}": (cell, "second order", "full", network)
        for cell, network in itertools.product(CELLS, NETWORKS)
    },
}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}  # of the largest entry

TINY = (
    "model.hidden_size=4",
    "maml.adaptation_steps=2",
    "training.meta_steps=10",
    "training.eval_every=5",
    "training.meta_batch_size=3",
    "training.val_episodes=5",
    "training.precision=float64",
    "evaluation.num_episodes=20",
    "evaluation.adaptation_steps=2",
)
SEARCH = (
    *TINY,
    "resources.num_workers=1",
    "search.num_trials=4",
    "search.num_sobol=2",
    "search.early_stopping=none",
)

Numbers = dict[str, list[float]]


def summary(values: Mapping[str, Tensor]) -> Numbers:
    """Returns each tensor's norm, and its product with a fixed vector."""
    found = {}
    for name, value in values.items():
        flat = value.detach().double().flatten()
        fixed = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 1.7 + 0.3)
        found[name] = [flat.norm().item(), (flat @ fixed).item()]
    return found


def example_sets(rng: np.random.Generator, network: str | None, per_way: int) -> Examples:
    """Draws random sequences of different lengths."""
    count = WAYS * per_way
    lengths = torch.from_numpy(rng.integers(1, STEPS + 1, (EPISODES, count)))
    x = torch.from_numpy(rng.normal(size=(EPISODES, count, STEPS, FEATURES)))
    if network == "tokens":
        x = torch.from_numpy(rng.integers(1, VOCABULARY, (EPISODES, count, STEPS)))
    y = torch.arange(WAYS).repeat_interleave(per_way).expand(EPISODES, -1).contiguous()
    if network == "regression":
        y = torch.from_numpy(rng.normal(size=(EPISODES, count, 2)))
    return Examples(x, y, lengths)


def gradient(case: str, dtype: torch.dtype) -> Numbers:
    """Computes the meta-gradient of a case on random episodes."""
    cell, learner, graph, network = CASES[case]
    rng = np.random.default_rng(7)
    episodes = Episodes(
        support=example_sets(rng, network, 2),
        query=example_sets(rng, network, 3),
        seeds=torch.arange(EPISODES) + 5,
    ).to(torch.device("cpu"), dtype)
    spec = replace(
        NetworkSpec(num_outputs=WAYS, cell=cell, num_features=FEATURES, hidden_size=5),  # type: ignore[arg-type]
        **(NETWORKS[network] if network else {}),
    )
    maml = Maml(adaptation_steps=INNER_STEPS, inner_lr=0.4, **LEARNERS[learner])
    params = init_params(spec, torch.Generator().manual_seed(3), torch.float64)
    meta_params = {k: v.to(dtype) for k, v in maml.init_meta_params(params).items()}
    if learner in ("shared head", "all of it"):  # which starts from zero
        meta_params |= {k: v + 0.1 for k, v in meta_params.items() if k.startswith("head.")}
    problem = PROBLEMS["regression" if network == "regression" else "classification"]
    kept, size = GRAPHS[graph]
    parts = [
        maml.meta_gradient(spec, problem, meta_params, episodes[i : i + size], graph_steps=kept)
        for i in range(0, EPISODES, size)
    ]
    sums = {name: sum((p.grads[name] for p in parts), torch.tensor(0.0)) for name in meta_params}
    sums["loss"] = sum((p.loss for p in parts), torch.tensor(0.0))
    sums["score"] = sum((p.score for p in parts), torch.tensor(0.0))
    return summary(sums)


def meta_steps(name: str) -> Numbers:
    """Returns parameters, mean loss and validation after ten meta-steps of a shipped experiment."""
    trainer = build_trainer(load_experiment(EXPERIMENTS[name], [*TINY, "search.space={}"]))
    report = trainer.train(10)
    found = {k: torch.tensor(report[k]) for k in ("train_loss", "train_score", "meta_grad_norm")}
    validation = {k: v for k, v in trainer.validate().items() if not k.endswith(HALVES)}
    found |= {k: torch.tensor(v) for k, v in validation.items()}
    return summary(trainer.meta_params | found)


def trained(num_workers: int, folder: str) -> Numbers:
    """Returns the network and the meta-test table after ten meta-steps over worker processes."""
    report = raymeta.train(
        "pen-maml", overrides=[*TINY, f"resources.num_workers={num_workers}"], runs_dir=folder
    )
    state = load_file(Path(str(report.run.path)) / "models" / "tuned.safetensors")
    rows = {
        f"row {row.name}": [row.over_episodes.mean, row.over_episodes.half_width or 0.0]
        for row in report.meta_test.rows
    }
    return summary({k: v for k, v in state.items() if k.startswith("meta_params.")}) | rows


def searched(folder: str) -> Numbers:
    """Returns the points and results of a search of four trials, two of them the model's."""
    report = raymeta.tune("sinusoid", overrides=SEARCH, runs_dir=folder)
    return {
        f"trial {number}": [*map(float, record.point.values()), record.curve[-1][1]]
        for number, record in enumerate(report.trials.values())
    }


def record() -> dict[str, Numbers]:
    """Returns all that is recorded."""
    found = {case: gradient(case, torch.float64) for case in CASES}
    found |= {f"meta-steps of {name}": meta_steps(name) for name in EXPERIMENTS}
    with tempfile.TemporaryDirectory() as folder:
        found |= {f"{n} workers": trained(n, folder) for n in (1, 2)}
        found["search"] = searched(folder)
    return found


@pytest.fixture
def recorded() -> dict[str, Numbers]:
    content: dict[str, Numbers] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content


def assert_same(found: Numbers, expected: Numbers, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    scale = max(abs(v) for values in expected.values() for v in values)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=tolerance, abs=tolerance * scale), name


@pytest.fixture(params=["compiled", "torch"])
def either_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native_scans, "serves", lambda _: False)


@pytest.mark.usefixtures("either_backend")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_is_that_of_version_0_1(
    case: str, dtype: torch.dtype, recorded: dict[str, Numbers]
) -> None:
    assert_same(gradient(case, dtype), recorded[case], TOLERANCES[dtype])


@pytest.mark.slow
@pytest.mark.usefixtures("either_backend")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_ten_meta_steps_are_those_of_version_0_1(name: str, recorded: dict[str, Numbers]) -> None:
    found, expected = meta_steps(name), recorded[f"meta-steps of {name}"]
    if name == "pen":  # version 0.1 took its standard error over episodes, not over tasks
        del found["val_accuracy_sem"], expected["val_accuracy_sem"]
    assert_same(found, expected, 1e-7)


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    from tests.search.helpers import local_ray  # noqa: PLC0415  (not where this file records)

    with local_ray(num_cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_trained_network_and_meta_test_table_are_those_of_version_0_1(
    num_workers: int, recorded: dict[str, Numbers], tmp_path: Path
) -> None:
    found, expected = trained(num_workers, str(tmp_path)), recorded[f"{num_workers} workers"]
    # Controls may be added.
    assert_same({name: found[name] for name in expected}, expected, 1e-6)


def different(found: Numbers, expected: Numbers, tolerance: float) -> Iterator[str]:
    for name, values in expected.items():
        for one, other in zip(found[name], values, strict=True):
            if not math.isclose(one, other, rel_tol=tolerance):
                yield name


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_search_tries_the_points_of_version_0_1(
    recorded: dict[str, Numbers], tmp_path: Path
) -> None:
    found, expected = searched(str(tmp_path)), recorded["search"]
    given_and_sobol = {name: expected[name] for name in ("trial 0", "trial 1")}
    assert not list(different(found, given_and_sobol, 1e-7))
    # The model's points come from an optimiser, whose last digits depend on the processor.
    assert not list(different(found, expected, 2e-2))


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=None, separators=(",", ":")) + "\n")
    sys.exit()
