"""Run folders and files of adapted networks: reading and refusals; no code in them runs."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raymeta
from raymeta.errors import RaymetaError, RunError
from raymeta.inference.adapted import Adapted
from raymeta.run_folder import Run
from raymeta.training.checkpoint import State, read_state, state_bytes
from tests.inference.conftest import RunOf

X = [50 * np.random.default_rng(n).normal(size=(5, 2)) for n in range(6)]
Y = ["a", "a", "b", "b", "c", "c"]


@pytest.fixture
def moved(run_of: RunOf, tmp_path: Path) -> Run:
    """Copies a run elsewhere, without its training data."""
    source = run_of("table", "learner=prototypes")
    copy = Path(shutil.copytree(str(source.path), tmp_path / "copy"))
    for name in ("experiment.yaml", "best.yaml"):
        text = (copy / name).read_text()
        folder = str(source.experiment().tasks.data_dir)
        assert folder in text
        (copy / name).write_text(text.replace(folder, "/nowhere"))
    return Run(copy)


@pytest.fixture
def adapted(run_of: RunOf) -> Adapted:
    return raymeta.load(str(run_of("table", "learner=prototypes").path)).adapt(X, Y)


@pytest.mark.slow
def test_a_run_is_used_without_its_data_and_without_ray(moved: Run, adapted: Adapted) -> None:
    found = raymeta.load(str(moved.path)).adapt(X, Y)
    np.testing.assert_array_equal(found.predict_proba(X), adapted.predict_proba(X))
    by_name = raymeta.load("copy", runs_dir=moved.path.parent)
    np.testing.assert_array_equal(by_name.adapt(X, Y).predict_proba(X), found.predict_proba(X))
    script = f"import sys, raymeta; raymeta.load({str(moved.path)!r}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" in loaded
    assert not {"ray", "ax", "sklearn", "transformers", "typer"} & set(loaded)


def test_a_run_in_a_bucket_is_used(run_of: RunOf, adapted: Adapted, bucket: str) -> None:
    source = Path(str(run_of("table", "learner=prototypes").path))
    address, _, query = bucket.partition("?")
    from raymeta.storage.paths import path_at  # noqa: PLC0415

    for file in source.rglob("*"):
        if file.is_file():
            target = f"{address}/runs/mine/{file.relative_to(source)}?{query}"
            path_at(target).write_bytes(file.read_bytes())
    model = raymeta.load(f"{address}/runs/mine?{query}")
    np.testing.assert_array_equal(model.adapt(X, Y).predict_proba(X), adapted.predict_proba(X))
    place = f"{address}/mine.raymeta?{query}"
    adapted.save(place)
    again = raymeta.load_adapted(place)
    np.testing.assert_array_equal(again.predict_proba(X), adapted.predict_proba(X))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("- volt\n  - ampere", "- ampere\n  - volt", "tasks.features is"),
        ("hidden_size: 6", "hidden_size: 7", "network.hidden_size"),
        ("learner: prototypes", "learner: ridge", "learner"),
        ("distance: euclidean", "distance: cosine", "learner.distance"),
        ("precision: float64", "precision: float32", "training.dtype"),
        ("cell: gru", "cell: gpu", "model.cell"),
    ],
)
def test_an_edited_best_yaml_is_refused_naming_the_key(
    moved: Run, before: str, after: str, said: str
) -> None:
    file = Path(str(moved.path)) / "best.yaml"
    text = file.read_text()
    assert before in text, text
    file.write_text(text.replace(before, after))
    with pytest.raises(RunError, match=said):
        raymeta.load(str(moved.path))


def test_sizes_that_a_model_file_names_are_compared_before_they_are_allocated(
    run_of: RunOf, tmp_path: Path
) -> None:
    source = run_of("table", "learner=maml")
    run = Run(Path(shutil.copytree(str(source.path), tmp_path / "copy")))
    file = run.model_file("tuned")
    state = read_state(file)
    settings = {**state.identity.settings, "network.num_outputs": 10**7}
    file.write_bytes(state_bytes(state.tensors, replace(state.identity, settings=settings)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match=r"head\.bias is float64 \[3\], not float64 \[10000000\]"):
        raymeta.load(str(run.path))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 100_000  # kB


def test_a_refit_of_more_seeds_than_an_experiment_may_have_is_damage(moved: Run) -> None:
    moved.write_json("refit.json", {"seeds": [1] * 101, "default_meta_steps": 1})
    with pytest.raises(RunError, match=r"refit\.json: names 101 seeds, but a refit has at most"):
        raymeta.load(str(moved.path))


def test_anything_but_a_finished_run_is_refused(moved: Run, run_of: RunOf, tmp_path: Path) -> None:
    other = run_of("table", "learner=prototypes", "seed=4")
    own = Path(str(moved.model_file("tuned")))
    own.write_bytes(Path(str(other.model_file("tuned"))).read_bytes())
    with pytest.raises(RunError, match="is not the network 'tuned' of this run"):
        raymeta.load(str(moved.path))
    own.unlink()
    with pytest.raises(RunError, match=r"tuned\.safetensors: cannot be read"):
        raymeta.load(str(moved.path))
    (Path(str(moved.path)) / "best.yaml").unlink()
    with pytest.raises(RunError, match="no best trial yet; go on with"):
        raymeta.load(str(moved.path))
    with pytest.raises(RunError, match="no run folder of that name"):
        raymeta.load(str(tmp_path / "gone"))


def test_a_damaged_file_is_refused_wherever_the_damage_is(adapted: Adapted, tmp_path: Path) -> None:
    file = tmp_path / "mine.raymeta"
    adapted.save(file)
    content = file.read_bytes()
    for place in range(0, len(content), len(content) // 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        for changed in (bytes(damaged), content[:place]):
            file.write_bytes(changed)
            with pytest.raises(RunError, match=r"mine\.raymeta"):
                raymeta.load_adapted(file)


def test_other_files_are_refused(moved: Run, adapted: Adapted, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is a folder; raymeta\.load opens runs"):
        raymeta.load_adapted(str(moved.path))
    with pytest.raises(RunError, match="holds no adapted network"):
        raymeta.load_adapted(moved.model_file("tuned"))
    with pytest.raises(RunError, match="cannot be read"):
        raymeta.load_adapted(tmp_path / "gone")
    adapted.save(tmp_path / "mine.raymeta")
    with pytest.raises(RunError, match="no run folder"):
        raymeta.load(str(tmp_path / "mine.raymeta"))


def test_a_file_of_an_older_raymeta_predicts_as_it_did(adapted: Adapted, tmp_path: Path) -> None:
    file = tmp_path / "mine.raymeta"
    replace(adapted, support=None).save(file)
    again = raymeta.load_adapted(file)
    assert again.support is None
    np.testing.assert_array_equal(again.predict_proba(X), adapted.predict_proba(X))


def facts_with(change: Callable[[dict[str, Any]], object]) -> Callable[[State], State]:
    def forged(state: State) -> State:
        facts = dict(state.identity.facts)
        change(facts)
        return State(state.tensors, replace(state.identity, facts=facts))

    return forged


def tensors_with(**changed: torch.Tensor | None) -> Callable[[State], State]:
    def forged(state: State) -> State:
        tensors = {**state.tensors}
        for name, value in changed.items():
            key = "network-0." + name.replace("__", ".")
            assert key in tensors
            del tensors[key]
            if value is not None:
                tensors[key] = value
        return State(tensors, state.identity)

    return forged


def support_with(name: str, value: torch.Tensor) -> Callable[[State], State]:
    return lambda state: State({**state.tensors, name: value}, state.identity)


@pytest.mark.parametrize(
    "forge",
    [
        facts_with(lambda f: f.pop("labels")),
        facts_with(lambda f: f.update(labels=None)),
        facts_with(lambda f: f.update(labels=["a", "b", "c", "d"])),
        facts_with(lambda f: f.update(labels={"a": 1})),
        facts_with(lambda f: f.update(num_outputs=10**12)),
        facts_with(lambda f: f.update(num_outputs="3")),
        facts_with(lambda f: f.update(experiment={})),
        facts_with(lambda f: f.update(data={})),
        facts_with(lambda f: f.update(data={**f["data"], "mean": [1.0]})),
        facts_with(lambda f: f.update(data={**f["data"], "deviation": [0.0, 1.0]})),
        facts_with(lambda f: f["experiment"]["model"].update(hidden_size=8192)),
        facts_with(lambda f: f["experiment"].update(tasks={"source": "sinusoid"})),
        tensors_with(rnn__weight_ih_l0=torch.zeros(18, 3, dtype=torch.float64)),
        tensors_with(rnn__weight_ih_l0=None),
        tensors_with(support__features=torch.zeros(1, 4, 6, dtype=torch.float64)),
        tensors_with(support__features=torch.zeros(2, 6, 6, dtype=torch.float64)),
        tensors_with(support__targets=torch.full((1, 6), 9)),
        lambda state: State(
            {k: v for k, v in state.tensors.items() if k != "support-rows"}, state.identity
        ),
        support_with("support-mean-0", torch.zeros(3, dtype=torch.float64)),
        support_with("support-mean-0", torch.full((2,), torch.nan, dtype=torch.float64)),
        support_with("support-mean-0", torch.zeros(2)),
        support_with("support-mean-1", torch.zeros(2, dtype=torch.float64)),
        support_with("support-rows", torch.zeros(6, dtype=torch.int64)),
        support_with("support-rows", torch.arange(5)),
        tensors_with(log_scale=torch.zeros(1, dtype=torch.float32)),
        lambda state: State({}, state.identity),
        lambda state: State({"other": torch.zeros(1)}, state.identity),
    ],
)
def test_a_forged_file_with_a_right_checksum_is_refused(
    adapted: Adapted, tmp_path: Path, forge: Callable[[State], State]
) -> None:
    file = tmp_path / "mine.raymeta"
    adapted.save(file)
    forged = forge(read_state(file))
    file.write_bytes(state_bytes(forged.tensors, forged.identity))
    with pytest.raises(RaymetaError, match=r"mine\.raymeta|tasks"):
        raymeta.load_adapted(file)


def test_the_file_holds_no_path_of_the_data_and_replaces_whole_files(
    adapted: Adapted, tmp_path: Path
) -> None:
    file = tmp_path / "mine.raymeta"
    file.write_text("what was there")
    adapted.save(file)
    folder = str(adapted.trained.experiment.tasks.data_dir)
    assert folder.encode() not in file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.raymeta"]
    again = raymeta.load_adapted(file)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
