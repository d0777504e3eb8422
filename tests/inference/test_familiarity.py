"""Every interface reports support examples that do not look like the training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raymeta
from raymeta.errors import DataWarning, RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.familiarity import FAMILIARITY_FILE, keep_reference
from raymeta.inference.model import Model
from raymeta.run_folder import Run
from raymeta.serving.service import Service
from raymeta.serving.settings import Limits
from raymeta.serving.tasks import KeptTasks, new_id
from raymeta.tasks.load import load_tasks
from tests.inference.conftest import Cli, make_run

Change = Callable[[np.ndarray], np.ndarray]
RNG = np.random.default_rng(0)
UNLIKE = "do not look like the tasks of meta-training"


def network_of(run: Run) -> Network:
    """Returns a run's network with its tasks."""
    model = raymeta.load(str(run.path))
    return Network(load_tasks(run.best_experiment()), model.trained.recipe, model.networks[0])


def referenced(folder: Path, source: str, *overrides: str) -> Run:
    """Makes a run as the meta-test leaves it."""
    run = make_run(folder, source, *overrides)
    keep_reference(run, network_of(run))
    return run


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return referenced(tmp_path_factory.mktemp("vowels"), "vowels", "learner=prototypes")


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return referenced(tmp_path_factory.mktemp("waves"), "sinusoid", "learner=alpaca")


def supports(
    run: Run, change: Change = lambda x: x, target: Change = lambda y: y, num: int = 60
) -> list[tuple[Any, Any]]:
    """Returns support sets of the meta-test in their user's form, changed."""
    scaling = raymeta.load(str(run.path)).trained.inputs.scaling
    assert scaling is not None
    mean, deviation = scaling
    tasks, found = load_tasks(run.best_experiment()), []
    for number in range(num):
        episode = tasks.episode("test", number)
        x, sizes = episode.support_x, episode.support_lengths
        sizes = np.full(len(x), x.shape[1]) if sizes is None else sizes
        raw = [
            change(one[:size].astype(float) * deviation + mean)
            for one, size in zip(x, sizes, strict=True)
        ]
        found.append((raw, target(episode.support_y)))
    return found


def share_unlike(model: Model, tasks: list[tuple[Any, Any]]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        adapted = model.adapt_many(tasks)
    known = [one.familiarity for one in adapted]
    return float(np.mean([one is not None and one.is_unlike_training for one in known]))


def shuffled(x: np.ndarray) -> np.ndarray:
    return x[RNG.permutation(len(x))]


@pytest.mark.slow
def test_new_speakers_are_ordinary_and_other_signals_are_not(vowels: Run) -> None:
    model = raymeta.load(str(vowels.path))
    found = share_unlike(model, supports(vowels))
    assert found <= 0.05
    assert model.reference is not None
    counted = model.reference.unlike_training(network_of(vowels), 60)
    assert (counted.of_test, counted.num_test, counted.num_validation) == (found, 60, 200)
    assert counted.of_validation == 1 / 200  # the threshold is the second largest of them
    changes: list[tuple[str, Change, float]] = [
        ("noise", lambda x: RNG.normal(x.mean(axis=0), x.std(), x.shape), 0.9),
        ("steps in disorder", shuffled, 0.7),
        ("tenfold", lambda x: 10 * x, 1.0),
        ("a thousandth", lambda x: x / 1000, 1.0),
        ("one channel in another unit", lambda x: x * ([1.8] + [1] * 11) + ([32] + [0] * 11), 1.0),
        ("a constant", lambda x: 0 * x + x.mean(), 1.0),
    ]
    for name, change, least in changes:
        assert share_unlike(model, supports(vowels, change)) >= least, name


def test_waves_in_other_units_or_of_other_kinds_are_detected(waves: Run) -> None:
    model = raymeta.load(str(waves.path))
    assert share_unlike(model, supports(waves)) <= 0.05
    assert share_unlike(model, supports(waves, change=lambda x: 57.3 * x)) == 1
    assert share_unlike(model, supports(waves, target=lambda y: 100 * y)) >= 0.95
    assert share_unlike(model, supports(waves, target=lambda y: y + 20)) == 1


def test_every_interface_reports_an_unfamiliar_support_set(
    vowels: Run, tmp_path: Path, run_cli: Cli
) -> None:
    model = raymeta.load(str(vowels.path))
    (good, bad) = supports(vowels, num=1)[0], supports(vowels, lambda x: 10 * x, num=1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.adapt(*good).familiarity is not None
    with pytest.warns(DataWarning, match=UNLIKE):
        adapted = model.adapt(*bad)
    with pytest.warns(DataWarning, match=f"task 2: these support examples {UNLIKE}"):
        model.adapt_many([good, bad])
    adapted.save(tmp_path / "bad.raymeta")
    assert raymeta.load_adapted(tmp_path / "bad.raymeta").familiarity == adapted.familiarity

    settings: Any = vowels.best_experiment().tasks
    for name, (x, y) in {"good": good, "bad": bad}.items():
        rows = [
            {
                "utterance": n,
                "speaker": f"s{y[n]}",
                "step": t,
                **dict(zip(settings.features, row, strict=True)),
            }
            for n, one in enumerate(x)
            for t, row in enumerate(one.tolist())
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        code, out, error = run_cli(
            *("adapt", str(vowels.path), "--support", f"{name}.jsonl", "-o", f"{name}.raymeta")
        )
        assert code == 0
        told = {"good": "like the tasks of meta-training", "bad": "they are unlike the tasks"}
        assert told[name] in out
        assert (UNLIKE in " ".join(error.split())) == (name == "bad")
        code, out, error = run_cli("predict", f"{name}.raymeta", f"{name}.jsonl")
        assert code == 0
        assert (UNLIKE in " ".join(error.split())) == (name == "bad")

    service = Service(model=model, tasks=KeptTasks(tmp_path / "tasks"), limits=Limits())
    for (x, y), is_unlike in ((good, False), (bad, True)):
        body = {"x": [one.tolist() for one in x], "y": y.tolist()}
        task = new_id(60)
        answer = json.loads(service.adapt(task, json.dumps(body).encode(), None).body)
        assert answer["familiarity"]["is_unlike_training"] == is_unlike
        assert any(UNLIKE in text for text in answer["warnings"]) == is_unlike
        assert json.loads(service.task(task).body)["familiarity"] == answer["familiarity"]


def test_older_runs_say_that_familiarity_is_unknown(tmp_path: Path, run_cli: Cli) -> None:
    run = make_run(tmp_path, "table", "learner=prototypes")
    x, y = [np.ones((4, 2)) * n for n in range(6)], list("aabbcc")
    assert raymeta.load(str(run.path)).adapt(x, y).familiarity is None
    rows = ["recording,kind,second,volt,ampere"]
    rows += [f"{n},{y[n]},{t},{n},{t}" for n in range(6) for t in range(4)]
    (tmp_path / "six.csv").write_text("\n".join(rows))
    code, out, _ = run_cli("adapt", str(run.path), "--support", "six.csv", "-o", "mine.raymeta")
    assert code == 0
    assert "is not known" in out
    assert "`raymeta evaluate RUN` makes it known" in out


def test_a_file_that_is_damaged_or_of_another_network_is_refused(
    vowels: Run, waves: Run, tmp_path: Path
) -> None:
    run = make_run(tmp_path, "vowels", "learner=prototypes", "model.hidden_size=7")
    file = Path(str(run.path)) / FAMILIARITY_FILE
    for other in (vowels, waves):
        file.write_bytes((Path(str(other.path)) / FAMILIARITY_FILE).read_bytes())
        with pytest.raises(RunError, match="does not fit the run's network"):
            raymeta.load(str(run.path))
    file.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"is damaged \(.*\); `raymeta evaluate` makes it anew"):
        raymeta.load(str(run.path))
