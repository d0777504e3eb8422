"""The functions accept names, paths, experiments, and overrides in both forms."""

from __future__ import annotations

from pathlib import Path

import pytest

import raymeta
from raymeta import api
from raymeta.errors import ExperimentError
from raymeta.experiment.file import load_experiment, to_yaml
from raymeta.run_folder import Run


def test_a_name_a_path_and_an_experiment_are_the_same(tmp_path: Path) -> None:
    experiment = load_experiment("sinusoid")
    (tmp_path / "own.yaml").write_text(to_yaml(experiment))
    for given in ("sinusoid", tmp_path / "own.yaml", str(tmp_path / "own.yaml"), experiment):
        assert api.read_experiment(given) == experiment
        changed = api.read_experiment(given, ["seed=3"])
        assert changed == api.read_experiment(given, {"seed": 3})
        assert changed.seed == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("maml.inner_lr", 1e-05),
        ("maml.inner_lr", 1e22),
        ("maml.learn_inner_lr", True),
        ("training.outer_clip", None),
        ("name", "1e5"),
        ("name", "true"),
        ("search.space", {}),
        ("search.space.maml.inner_lr", {"low": 1e-4, "high": 1, "log": True}),
        ("search.constraints", []),
    ],
)
def test_values_of_a_mapping_arrive_as_they_are(key: str, value: object) -> None:
    loaded = api.read_experiment("sinusoid", {key: value})
    if key == "search.space.maml.inner_lr":
        assert loaded.search.space["maml.inner_lr"].low == 1e-4
    else:
        assert loaded.value(key) == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"maml.inner_rate": 1}, "maml.inner_rate"),
        ({"maml.inner_lr": -1}, "maml.inner_lr must be > 0"),
        ({"maml.inner_lr": object()}, "maml.inner_lr must be a plain value"),
        ({"maml.inner_lr": float("nan")}, "maml.inner_lr"),
        ("seed=3", "must be a list or a mapping"),
    ],
)
def test_wrong_overrides_are_refused_by_their_key(overrides: object, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        api.read_experiment("sinusoid", overrides)  # type: ignore[arg-type]


def test_runs_are_listed_by_the_package(tmp_path: Path) -> None:
    run = Run.create(tmp_path, load_experiment("sinusoid"))
    assert raymeta.runs(tmp_path) == raymeta.runs(str(tmp_path)) == [run]
    assert not hasattr(raymeta, "list")
    assert set(raymeta.__all__) == {
        *("FewShotClassifier", "FewShotRegressor", "load", "load_adapted", "load_forecaster"),
        *("compare", "evaluate", "explain", "runs", "train", "tune", "watch"),
        *("write_hub_folder", "write_report"),
    }
    for name in raymeta.__all__:
        assert callable(getattr(raymeta, name))
