"""The schema for editors accepts what raymeta accepts, and marks what it refuses."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]
from typer.testing import CliRunner

from raymeta.cli import app
from raymeta.errors import ExperimentError
from raymeta.experiment import yaml_lines
from raymeta.experiment.file import load_experiment, shipped_experiments, to_yaml
from raymeta.experiment.json_schema import json_schema
from raymeta.storage.paths import path_at

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
TABLE = """
name: mine
tasks: {source: table, data_dir: ., sequence: id, target: y, features: [x]}
"""


def accepts(text: str) -> bool:
    return not list(VALIDATOR.iter_errors(yaml_lines.read_document(text).data))


def test_it_is_a_schema_without_loose_ends() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    references = {f"#/$defs/{name}" for name in SCHEMA["$defs"]}
    assert {word for word in json.dumps(SCHEMA).split('"') if word.startswith("#/")} == references


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped_files_and_whole_experiments_fit(name: str) -> None:
    file = resources.files("raymeta.experiment.shipped") / f"{name}.yaml"
    assert accepts(file.read_text(encoding="utf-8"))
    assert accepts(to_yaml(load_experiment(name)))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (TABLE, True),
        (TABLE.replace("{source", "{files: a.csv, source"), True),
        (TABLE.replace("{source", "{files: [a.csv, b.csv], source"), True),
        (TABLE.replace("{source", "{file: a.csv, source"), False),
        (TABLE.replace("target: y, ", ""), False),
        (TABLE.replace("table", "tables"), False),
        (TABLE.replace("table", "python, function: 'a:load', options: {b: [1, c]}"), True),
        (TABLE.replace("table", "python, function: 'a:load', options: 3"), False),
        (TABLE.replace("table", "python"), False),
        (TABLE.replace("table", "table, function: 'a:load'"), False),
        (TABLE.replace("table", "pen"), False),
        (TABLE.replace("[x]", "x"), False),
        ("tasks: {source: pen}", False),
        ("name: a\ntasks: {}", False),
        ("name: a b\ntasks: {source: pen}", False),
        ("name: a\nbase: pen\ntasks: {num_ways: 3}", True),
        ("name: a\nbase: pen\ntasks: {num_way: 3}", False),
        ("name: a\nbase: pen\nmodel: {hidden_size: 0}", False),
        ("name: a\nbase: pen\nmodel: {hidden_size: big}", False),
        ("name: a\nbase: pen\nlearner: protonets", False),
        ("name: a\nbase: pen\nmaml: {inner_lr: 0.1, inner_steps: 3}", False),
        ("name: a\nbase: pen\nsearch: {space: {model.cell: {choices: [gru, lstm]}}}", True),
        ("name: a\nbase: pen\nsearch: {space: {model.cells: {choices: [gru, lstm]}}}", False),
        ("name: a\nbase: pen\nsearch: {space: {tasks.source: {choices: [pen, text]}}}", False),
        ("name: a\nbase: pen\nsearch: {space: {training.seed: {low: 1, high: 2}}}", False),
    ],
)
def test_it_judges_files_as_raymeta_does(tmp_path: Path, text: str, fits: bool) -> None:
    assert accepts(text) is fits
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    if fits:
        load_experiment(str(file))
    else:
        with pytest.raises(ExperimentError):
            load_experiment(str(file))


def test_conditions_may_name_one_value_or_several() -> None:
    def space(when: str) -> Any:
        dimension = f"{{low: 0.1, high: 1, when: {when}}}"
        return f"name: a\nbase: pen\nsearch: {{space: {{maml.inner_lr: {dimension}}}}}"

    assert accepts(space("{learner: maml}"))
    assert accepts(space("{learner: [maml, cavia]}"))
    assert not accepts(space("{learner: {maml: 1}}"))


def test_the_command_writes_it_or_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == SCHEMA
    told = CliRunner().invoke(app, ["schema", "-o", "raymeta.json"]).stdout
    assert "# yaml-language-server: $schema=raymeta.json" in told
    assert json.loads((tmp_path / "raymeta.json").read_text()) == SCHEMA


def test_it_is_written_to_a_storage_as_it_is_to_a_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = str(path_at(bucket) / "raymeta.json")
    found = CliRunner().invoke(app, ["schema", "-o", uri])
    assert found.exit_code == 0
    assert "$schema=raymeta.json" in found.stdout
    assert json.loads(path_at(uri).read_text()) == SCHEMA
    nowhere = CliRunner().invoke(app, ["schema", "-o", "nowhere://bucket/raymeta.json"])
    assert "is not a storage that Arrow can open" in str(nowhere.exception)
    assert list(tmp_path.iterdir()) == []
